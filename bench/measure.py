"""Memory and CPU time of trees of processes, from /proc (proc(5)).

Memory is PSS, the proportional set size: pages shared by several processes count for each in proportion, so that sums
over a tree mean something. How it grows is told from what a process has to itself: its share of common libraries changes
whenever another process that uses them begins or ends. CPU time of a tree is that of its living processes and, for each, of the children it has
waited for: complete as long as every process that ended was waited for by a member of the tree.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_KIB = 1024
_MEGABYTE = 1_000_000
_TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the command's name: utime, stime, cutime, cstime.
_TIMES = slice(11, 15)


@dataclass(frozen=True, slots=True)
class Memory:
    """In MB (10^6 bytes): of the worker's own process, of the fork server if there is one, of the whole tree."""

    worker: float
    fork_server: float
    tree: float


def pss(processes: Iterable[psutil.Process]) -> float:
    """PSS of these processes together, in MB (10^6 bytes); those that have ended count nothing."""
    return _megabytes(processes, "Pss:")


def private(processes: Iterable[psutil.Process]) -> float:
    """What each of these processes has to itself, together, in MB (10^6 bytes); those that have ended count nothing."""
    return _megabytes(processes, "Private_Clean:", "Private_Dirty:")


def memory(
    tree: Sequence[psutil.Process], measure: Callable[[Iterable[psutil.Process]], float] = pss
) -> Memory:
    """Memory of an idle worker; `tree` begins with the worker's own process."""
    fork_servers = filter(_is_fork_server, tree[1:])
    return Memory(worker=measure(tree[:1]), fork_server=measure(fork_servers), tree=measure(tree))


def cpu_seconds(tree: Iterable[psutil.Process]) -> float:
    """CPU time of the tree so far, of processes that have ended and were waited for included."""
    return sum(_cpu_ticks(process.pid) for process in tree) / _TICKS


def _megabytes(processes: Iterable[psutil.Process], *fields: str) -> float:
    return sum(_kib(process.pid, fields) for process in processes) * _KIB / _MEGABYTE


def _kib(pid: int, fields: tuple[str, ...]) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(fields))


def _cpu_ticks(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(field) for field in text.rpartition(")")[2].split()[_TIMES])


def _is_fork_server(process: psutil.Process) -> bool:
    try:
        return any("forkserver_main" in part for part in process.cmdline())
    except psutil.Error:
        return False
