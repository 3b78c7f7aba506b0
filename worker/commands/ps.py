"""`headrace ps`: the runs in flight on this machine, from the journals and the process table.

Owns when to look, and the two forms of output. No server is asked, so it answers in an outage, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

from worker.commands.daemons import Daemon, attempts, find_daemons
from worker.commands.in_flight import Row, Sample, rows, take_samples
from worker.commands.session import EXIT_DONE
from worker.commands.text import aligned, duration, one_line
from worker.processes.evidence import describe_bytes
from worker.settings import Settings

WATCH_INTERVAL: Final = 2.0
# Long enough that a busy process has used some ticks (10 ms) of the processor.
_MEASURE: Final = 0.5
_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
_HEADER: Final = ("RUN", "NAME", "FLOW", "DEPLOYMENT", "POOL", "PHASE", "PID", "AGE", "CPU", "MEMORY")


def ps(arguments: argparse.Namespace, settings: Settings, *, stdout: TextIO) -> int:
    """Show the table once, or again and again until Ctrl-C. Raises CommandError."""
    look = _Looker(root=settings.headrace.state_dir, pool=arguments.pool, name=arguments.name)
    indent = None if arguments.watch else 2
    form = partial(_json, indent=indent) if arguments.json else _table
    if not arguments.watch:
        look.measure()
        time.sleep(_MEASURE)
        stdout.write(form(*look.once()))
        return EXIT_DONE
    screen = stdout.isatty() and not arguments.json
    try:
        while True:
            text = form(*look.once())
            stdout.write(_CLEAR + _fitting(text) if screen else text)
            stdout.flush()
            time.sleep(WATCH_INTERVAL)
    except KeyboardInterrupt:
        return EXIT_DONE


class _Looker:
    """Looks at the daemons and remembers the last look, as the use of processors is between two of them."""

    def __init__(
        self,
        *,
        root: Path,
        pool: str | None,
        name: str | None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._pool, self._name = root, pool, name
        self._monotonic, self._clock = monotonic, clock
        self._last: dict[Any, Sample] = {}

    def measure(self) -> None:
        """Look without telling."""
        self.once()

    def once(self) -> tuple[list[Daemon], list[Row]]:
        daemons = find_daemons(self._root, pool=self._pool, name=self._name)
        found = attempts(daemons)
        before, self._last = self._last, take_samples(found, at=self._monotonic())
        return daemons, rows(found, before=before, after=self._last, now=self._clock())


def _json(daemons: Sequence[Daemon], found: Sequence[Row], *, indent: int | None) -> str:
    return json.dumps(report(daemons, found), indent=indent) + "\n"


def report(daemons: Sequence[Daemon], found: Sequence[Row]) -> dict[str, Any]:
    """The JSON form; documented in docs/operating.md."""
    return {
        "daemons": [
            {
                "name": daemon.name,
                "pool": daemon.pool,
                "running": daemon.pid is not None,
                "pid": daemon.pid,
                "state_directory": str(daemon.state.path),
                "problem": daemon.problem,
            }
            for daemon in daemons
        ],
        "runs": [_run_report(row) for row in found],
    }


def _run_report(row: Row) -> dict[str, Any]:
    entry, used = row.attempt.entry, row.sample.usage
    return {
        "flow_run_id": str(entry.flow_run_id),
        "name": entry.name,
        "flow": entry.flow,
        "deployment": entry.deployment,
        "pool": row.attempt.daemon.pool,
        "worker": row.attempt.daemon.name,
        "phase": row.phase.value,
        "pid": row.sample.pid,
        "processes": used.processes,
        "age_seconds": round(row.age, 1),
        "cpu_percent": None if row.cpu_percent is None else round(row.cpu_percent, 1),
        "cpu_seconds": round(used.cpu_seconds, 2),
        "memory_bytes": used.memory if used.processes else None,
        "memory_kind": used.kind.value if used.kind else None,
    }


def _table(daemons: Sequence[Daemon], found: Sequence[Row]) -> str:
    lines = (
        aligned([_HEADER, *(_cells(row) for row in found)], right=frozenset({6, 7, 8, 9})) if found else []
    )
    lines += notes(daemons)
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    entry, used = row.attempt.entry, row.sample.usage
    return (
        str(entry.flow_run_id)[:8],
        one_line(entry.name),
        one_line(entry.flow or "-"),
        one_line(entry.deployment or "-"),
        one_line(row.attempt.daemon.pool or "-"),
        row.phase.value,
        "-" if row.sample.pid is None else str(row.sample.pid),
        duration(row.age),
        "-" if row.cpu_percent is None else f"{row.cpu_percent:.0f}%",
        describe_bytes(used.memory) if used.processes else "-",
    )


def notes(daemons: Sequence[Daemon]) -> list[str]:
    """What there is to say below the table: one line per daemon."""
    if not daemons:
        return ["no daemon has been started here with this state directory"]
    return [note for daemon in daemons for note in _notes(daemon)]


def _notes(daemon: Daemon) -> list[str]:
    who = f"{daemon.name} (pool {daemon.pool or 'unknown'})"
    count = len(daemon.entries)
    runs = f"{count} {'run' if count == 1 else 'runs'}"
    if daemon.pid is not None:
        said = [f"{who}: daemon running, pid {daemon.pid}, {runs} in flight"]
    elif count:
        said = [f"{who}: daemon not running, {runs} left: start it again, and it settles them"]
    else:
        said = [f"{who}: daemon not running, nothing left"]
    return said + ([f"{who}: {daemon.problem}"] if daemon.problem else [])


def _fitting(text: str) -> str:
    """Cut to the terminal, so that the next drawing covers all of it."""
    size = shutil.get_terminal_size()
    lines = text.splitlines()[: max(1, size.lines - 1)]
    return "\n".join(line[: size.columns] for line in lines) + "\n"
