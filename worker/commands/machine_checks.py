"""What `headrace doctor` looks at on this machine: interpreter, fork server, state directory, limits.

Owns the judgements, pure functions of what was found. What is tried out is tried in a temporary directory and ended again;
nothing of a daemon's is touched.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from worker.commands.checks import Check, fail, ok, skipped, warn
from worker.commands.server_findings import numbers
from worker.processes.evidence import describe_bytes
from worker.processes.file_locks import lock_holder
from worker.processes.forkserver import ForkServer, ForkServerError
from worker.processes.interpreter import Interpreter, InterpreterError, inspect_interpreter
from worker.processes.kernel import Limits, has_subreaper
from worker.processes.launcher import Launcher
from worker.runs.claim_gate import LEAST_FREE_BYTES
from worker.runs.journal_reader import JournalUnreadable, read_journal
from worker.runs.start_method import StartMethod, forkserver_environment, why_never_warm
from worker.settings import Settings
from worker.state_directory import StateDirectory

FORK_SERVER_LIMIT: Final = 90.0
_PLENTY_OF_DISK: Final = 1024**3
_FEW_FILES: Final = 1024
_FEW_PROCESSES: Final = 1024


async def examine_interpreter(python: str, *, server_version: str | None) -> tuple[Check, Interpreter | None]:
    """Whether flows can run in the interpreter, and what it is."""
    try:
        found = await inspect_interpreter(python)
    except InterpreterError as error:
        text, _, fix = str(error).rpartition(": ")
        return fail("interpreter", text, fix or "Give another with --python"), None
    return judge_interpreter(found, server_version), found


def judge_interpreter(found: Interpreter, server_version: str | None) -> Check:
    """Whether its Prefect goes with the server."""
    text = f"Python {found.python_version} with Prefect {found.prefect_version} ({found.executable})"
    if server_version is not None and numbers(found.prefect_version) > numbers(server_version):
        return warn(
            "interpreter",
            f"{text}, later than the server's {server_version}",
            "Upgrade the server first: a newer engine may ask for what an older server does not have",
        )
    return ok("interpreter", text)


async def examine_fork_server(python: str, settings: Settings, environ: Mapping[str, str]) -> Check:
    """Whether a fork server can be started: one is, in a directory of its own, and ended when it is ready."""
    never = why_never_warm(StartMethod(settings.headrace.start_method), subreaper=has_subreaper())
    if never is not None:
        return ok("fork server", f"not used: {never}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
        server = ForkServer(
            python=python,
            environment=forkserver_environment(
                worker_environment=environ, settings=settings.child_environment
            ),
            preload=settings.headrace.preload,
            log=Path(directory, "forkserver.log"),
            launcher=Launcher(),
            wake=lambda: None,
        )
        absence = await _try(server)
    return judge_fork_server(absence, seconds=time.monotonic() - began, preload=settings.headrace.preload)


async def _try(server: ForkServer) -> str | None:
    try:
        with anyio.fail_after(FORK_SERVER_LIMIT):
            await server.keep_once()
    except TimeoutError:
        return f"it was not ready after {FORK_SERVER_LIMIT:g} s"
    except ForkServerError as error:
        return str(error)
    else:
        return server.absence
    finally:
        with anyio.CancelScope(shield=True):
            await server.close()


def judge_fork_server(absence: str | None, *, seconds: float, preload: tuple[str, ...]) -> Check:
    """Whether runs would be started warm; without, they are started cold, which takes seconds longer each."""
    if absence is None:
        also = f" and {', '.join(preload)}" if preload else ""
        return ok("fork server", f"ready after {seconds:.1f} s, with Prefect{also} imported")
    return warn(
        "fork server",
        absence,
        "Runs are started cold until that is mended; correct --preload or --python, or say --start-method cold",
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The state directory as it is: `existing` is it, or the closest directory above it that is there.

    `trouble` is why nothing can be written in that. `holder` is the pid of the daemon that has it, `open_entries` how many
    attempts it has on record, `unreadable` why they cannot be told.
    """

    path: Path
    existing: Path
    trouble: str | None
    free: int | None
    holder: int | None = None
    open_entries: int = 0
    unreadable: str | None = None


def look_at(path: Path) -> Place:
    """Look at a worker's state directory, or where it would be made; nothing is left there."""
    existing = path
    while not _there(existing) and existing != existing.parent:
        existing = existing.parent
    trouble = _unwritable(existing)
    try:
        free = shutil.disk_usage(existing).free
    except OSError:
        free = None  # `trouble` says why
    if existing != path or trouble is not None:
        return Place(path=path, existing=existing, trouble=trouble, free=free)
    state = StateDirectory(path)
    entries, unreadable, holder = 0, None, None
    try:
        holder = lock_holder(state.lock)
        contents = read_journal(state.journal)
        entries = len(contents.entries)
        if contents.unreadable:
            unreadable = f"{contents.unreadable} entries of the journal {state.journal} cannot be read"
    except (JournalUnreadable, OSError) as error:
        unreadable = str(error)
    return Place(
        path=path,
        existing=existing,
        trouble=None,
        free=free,
        holder=holder,
        open_entries=entries,
        unreadable=unreadable,
    )


def _there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # something is there that does not let us look
    return True


def _unwritable(directory: Path) -> str | None:
    """Why nothing can be written there; None if it can. What is written to find out has no name (open(2), O_TMPFILE)."""
    unnamed: int | None = getattr(os, "O_TMPFILE", None)  # Linux only
    if unnamed is None:
        return None if os.access(directory, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    try:
        descriptor = os.open(directory, unnamed | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            return error.strerror or str(error)
        return None if os.access(directory, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    os.close(descriptor)
    return None


def judge_place(place: Place, *, worker_known: bool) -> list[Check]:
    """Whether the daemon could keep its journal there; `worker_known`: it is one worker's, not all workers' directory."""
    what = "state directory"
    if place.trouble is not None:
        return [
            fail(
                what,
                f"{place.existing} cannot be written to: {place.trouble}",
                "Make it writable for this user, or choose another with --state-dir or HEADRACE_STATE_DIR",
            ),
            skipped("disk", "the state directory has to be writable first"),
        ]
    return [_judge_use(what, place, worker_known=worker_known), judge_disk(place.existing, place.free)]


def _judge_use(what: str, place: Place, *, worker_known: bool) -> Check:
    if place.unreadable is not None:
        return fail(
            what, place.unreadable, "Use the version that wrote it, or choose another with --state-dir"
        )
    if place.existing != place.path:
        return ok(what, f"{place.path} can be made")
    if not worker_known:
        return ok(what, f"{place.path} can be written to")
    if place.holder is not None:
        return ok(
            what,
            f"{place.path}, in use by the daemon with pid {place.holder}, {place.open_entries} in flight",
        )
    if place.open_entries:
        return warn(
            what,
            f"{place.path} has {place.open_entries} runs of a daemon that does not run any more",
            "Start it again with the same pool, name and state directory: it settles them",
        )
    return ok(what, f"{place.path} can be written to")


def judge_disk(where: Path, free: int | None) -> Check:
    """Whether there is room for the journal and the runs' output."""
    if free is None:
        return skipped("disk", f"the free space of {where} is not told")
    text = f"{describe_bytes(free)} free at {where}"
    if free < LEAST_FREE_BYTES:
        return fail(
            "disk", text, f"Free some: with less than {describe_bytes(LEAST_FREE_BYTES)} nothing is claimed"
        )
    if free < _PLENTY_OF_DISK:
        return warn(
            "disk", text, "Free some, or lower --output-limit: each run's output is kept there while it runs"
        )
    return ok("disk", text)


def judge_memory(available: int | None, *, least: int, limits: Limits) -> Check:
    """Whether another run would be claimed."""
    if available is None:
        return skipped("memory", "this system does not tell what is free")
    bound = (
        ""
        if limits.group_memory is None
        else f", limited to {describe_bytes(limits.group_memory)} by a control group"
    )
    text = f"{describe_bytes(available)} free{bound}"
    if available < least:
        return fail(
            "memory",
            text,
            f"Free some, or lower --min-free-memory ({describe_bytes(least)}): nothing is claimed",
        )
    return ok("memory", text)


def judge_limits(limits: Limits) -> Check:
    """Whether many runs can be in flight at once."""
    few: list[str] = []
    advice: list[str] = []
    if limits.open_files is not None and limits.open_files < _FEW_FILES:
        few.append(f"{limits.open_files} open files")
        advice.append("`ulimit -n`, LimitNOFILE= of a unit")
    processes = [count for count in (limits.processes, limits.group_processes) if count is not None]
    if processes and min(processes) < _FEW_PROCESSES:
        few.append(f"{min(processes)} processes and threads")
        advice.append("`ulimit -u`, TasksMax= of a unit, --pids-limit of a container")
    if few:
        return warn(
            "limits", f"only {' and '.join(few)}", f"Raise them for many runs at once: {'; '.join(advice)}"
        )
    shown = (f"{_or_any(limits.open_files)} open files", f"{_or_any(min(processes, default=None))} processes")
    return ok("limits", ", ".join(shown))


def _or_any(count: int | None) -> str:
    return "any number of" if count is None else str(count)


def judge_kernel(*, pidfd: bool, subreaper: bool) -> Check:
    """Whether runs can be started warm, and their ends be waited for."""
    if pidfd and subreaper:
        return ok("kernel", "pidfds and subreapers, all there is use for")
    missing = " and ".join(
        name for name, there in (("pidfds", pidfd), ("subreapers", subreaper)) if not there
    )
    return warn(
        "kernel",
        f"no {missing} here",
        "Use Linux 5.3 or newer, and a sandbox that allows them: without, runs are started cold and ends are polled for",
    )
