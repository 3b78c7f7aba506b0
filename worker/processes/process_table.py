"""Reading the process table: who runs, whose child, in which session, since when, with which marker.

Owns: /proc on Linux (proc(5)), and asking `process_table_psutil` elsewhere. Does not own: which processes belong
together, and signalling them (`tree`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """What tells a process from a later one with the same pid: the pid and when it started.

    `start_time` is in seconds since boot on Linux, to the clock tick (10 ms), and in seconds since the epoch elsewhere.
    It is compared for equality only, within one boot of one machine.
    """

    pid: int
    start_time: float


class Marker(NamedTuple):
    """The environment variable that every process of a run inherits: name and value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One row of the process table. `dead` means a zombie: it has ended and waits for its parent to collect it."""

    pid: int
    ppid: int
    session: int
    start_time: float
    dead: bool

    @property
    def identity(self) -> Identity:
        """Pid and start time."""
        return Identity(self.pid, self.start_time)


def read_process(pid: int) -> ProcessInfo | None:
    """The process with this pid now, or None."""
    if sys.platform != "linux":
        from worker.processes import process_table_psutil  # noqa: PLC0415 - Linux does without psutil

        return process_table_psutil.read_process(pid)
    try:
        stat = _content(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _parse_stat(pid, stat)


def _content(path: str) -> bytes:
    """All of a file. Without a `Path`, which interns each part: the whole table is read at the end of each run."""
    with FileIO(path) as file:
        return file.readall()


def _parse_stat(pid: int, stat: bytes) -> ProcessInfo:
    # The command name may itself hold blanks and parentheses: count fields from the last one (proc_pid_stat(5)).
    fields = stat[stat.rindex(b")") + 2 :].split()
    return ProcessInfo(
        pid=pid,
        ppid=int(fields[1]),
        session=int(fields[3]),
        start_time=int(fields[19]) / os.sysconf("SC_CLK_TCK"),
        # A process whose first thread has ended while others run is shown as a zombie, and is not one.
        dead=fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1,
    )


def snapshot() -> dict[int, ProcessInfo]:
    """The process table, by pid. Processes that end while it is read may be missing."""
    if sys.platform == "linux":
        with os.scandir("/proc") as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    else:
        from worker.processes import process_table_psutil  # noqa: PLC0415 - same

        pids = process_table_psutil.pids()
    return {pid: info for pid in pids if (info := read_process(pid)) is not None}


def find_leader(marker: Marker) -> Identity | None:
    """The living process that leads the session of the processes with this marker; the oldest, if several lead one."""
    leaders = [
        process
        for process in snapshot().values()
        if process.session == process.pid and not process.dead and carries(process.pid, marker)
    ]
    oldest = min(leaders, key=lambda process: process.start_time, default=None)
    return oldest and oldest.identity


@cache
def boot_id() -> str:
    """What tells this boot of the machine from others (random(4)); empty where start times tell it as well."""
    if sys.platform != "linux":
        return ""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def carries(pid: int, marker: Marker) -> bool:
    """Whether the process was started with this variable in its environment; False where that cannot be read."""
    if sys.platform != "linux":
        from worker.processes import process_table_psutil  # noqa: PLC0415 - same

        return process_table_psutil.carries(pid, marker)
    try:
        environ = _content(f"/proc/{pid}/environ")
    except OSError:
        return False
    return b"\0" + os.fsencode(f"{marker.name}={marker.value}") + b"\0" in b"\0" + environ + b"\0"


def marks(name: str, pids: Iterable[int]) -> dict[int, str]:
    """The value of this variable in the initial environment of each of these processes that has it."""
    found = ((pid, _initial_value(pid, name)) for pid in pids)
    return {pid: value for pid, value in found if value is not None}


def _initial_value(pid: int, name: str) -> str | None:
    if sys.platform != "linux":
        from worker.processes import process_table_psutil  # noqa: PLC0415 - same

        return process_table_psutil.initial_value(pid, name)
    try:
        environ = _content(f"/proc/{pid}/environ")
    except OSError:
        return None
    beginning = os.fsencode(f"{name}=")
    return next(
        (
            os.fsdecode(entry[len(beginning) :])
            for entry in environ.split(b"\0")
            if entry.startswith(beginning)
        ),
        None,
    )
