"""The daemons that have a state directory on this machine, and the attempts they have on record.

Owns finding them, without a server and without taking part in anything: no lock is taken, nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from worker.commands.session import CommandError
from worker.processes.file_locks import lock_holder
from worker.runs.journal_entry import Entry
from worker.runs.journal_reader import JournalUnreadable, read_journal
from worker.state_directory import StateDirectory

SHORTEST_PREFIX = 4


@dataclass(frozen=True, slots=True)
class Daemon:
    """One state directory: whose it is, who holds it, what is open.

    `pool` is None where the directory does not say; `pid` is None when no daemon runs. `problem` is why its journal, or
    a part of it, cannot be read.
    """

    state: StateDirectory
    name: str
    pool: str | None
    pid: int | None
    entries: tuple[Entry, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One open entry, and the daemon that has it."""

    entry: Entry
    daemon: Daemon


def find_daemons(root: Path, *, pool: str | None, name: str | None) -> list[Daemon]:
    """The daemons under the root of the state directories, by name. Raises CommandError."""
    place = root.expanduser()
    try:
        directories = sorted(path for path in place.iterdir() if path.is_dir() and (path / "runs").is_dir())
    except FileNotFoundError:
        directories = []
    except OSError as error:
        raise CommandError(
            f"the state directory {place} cannot be read: {error.strerror}; run this as the daemon's user,"
            " or name the daemon's directory with --state-dir"
        ) from error
    found = [_daemon(StateDirectory(directory)) for directory in directories]
    chosen = [daemon for daemon in found if pool in {None, daemon.pool} and name in {None, daemon.name}]
    if not chosen and (pool or name):
        asked = " and ".join(f"{what} {value!r}" for what, value in (("pool", pool), ("name", name)) if value)
        known = ", ".join(f"{daemon.name} (pool {daemon.pool or 'unknown'})" for daemon in found) or "none"
        raise CommandError(f"no daemon with {asked} has state in {place}; those that have: {known}")
    return chosen


def attempts(daemons: Iterable[Daemon]) -> list[Attempt]:
    """All open entries."""
    return [Attempt(entry, daemon) for daemon in daemons for entry in daemon.entries]


def matching(found: Sequence[Attempt], text: str) -> list[Attempt]:
    """The attempts at the runs that are meant by an id, the beginning of one, or a name; of each run the latest.

    A whole id means that run only; else a name counts as much as the beginning of an id.
    """
    exact = as_run_id(text)
    prefix = text.lower() if len(text) >= SHORTEST_PREFIX else None
    chosen = [
        attempt
        for attempt in found
        if attempt.entry.flow_run_id == exact
        or attempt.entry.name == text
        or (exact is None and prefix is not None and str(attempt.entry.flow_run_id).startswith(prefix))
    ]
    latest: dict[UUID, Attempt] = {}
    for attempt in sorted(chosen, key=lambda attempt: attempt.entry.since):
        latest[attempt.entry.flow_run_id] = attempt
    return list(latest.values())


def the_one(found: Sequence[Attempt], text: str) -> Attempt | None:
    """The one attempt that is meant, None if none is; CommandError if several are."""
    chosen = matching(found, text)
    if len(chosen) > 1:
        lines = "".join(f"\n  {attempt.entry.flow_run_id}  {attempt.entry.name}" for attempt in chosen)
        raise CommandError(f"{text!r} can be any of these runs; give more of the id:{lines}")
    return chosen[0] if chosen else None


def as_run_id(text: str) -> UUID | None:
    """The id that the text is; None if it is none."""
    try:
        return UUID(text)
    except ValueError:
        return None


def _daemon(state: StateDirectory) -> Daemon:
    label = _label(state)
    problems: list[str] = []
    pid, entries = None, ()
    try:
        pid = lock_holder(state.lock)
        contents = read_journal(state.journal)
        entries = contents.entries
        if contents.unreadable:
            problems.append(f"{contents.unreadable} entries of the journal {state.journal} cannot be read")
    except JournalUnreadable as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"{state.path} cannot be read: {error.strerror}")
    return Daemon(
        state=state,
        name=label.get("name") or state.path.name.rpartition("-")[0],
        pool=label.get("pool"),
        pid=pid,
        entries=tuple(entries),
        problem="; ".join(problems) or None,
    )


def _label(state: StateDirectory) -> dict[str, str]:
    try:
        content: Any = json.loads(state.label.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # made by an earlier version, or on a full disk
    if not isinstance(content, dict):
        return {}
    label = cast("dict[Any, Any]", content)
    return {key: value for key, value in label.items() if isinstance(key, str) and isinstance(value, str)}
