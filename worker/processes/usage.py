"""What processes use of the machine: processor time and memory, added up.

Owns asking psutil. Which processes belong together is `tree`'s. Imported by commands only, never by the daemon.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import psutil


class MemoryKind(StrEnum):
    """How memory was counted.

    `PSS`: pages shared by several processes are counted once, divided among them, as forked flows share most of
    theirs. `RSS`: shared pages are counted in full for each.
    """

    PSS = "pss"
    RSS = "rss"


@dataclass(frozen=True, slots=True)
class Usage:
    """What some processes use. `cpu_seconds` counts their ended and collected children, too; `memory` is in bytes."""

    processes: int = 0
    cpu_seconds: float = 0.0
    memory: int = 0
    kind: MemoryKind | None = None


def usage(pids: Iterable[int]) -> Usage:
    """Added up over the processes that are there; RSS for all of them if the PSS of one cannot be read."""
    cpu, kinds = 0.0, MemoryKind.PSS
    proportional, resident = 0, 0
    count = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                size = process.memory_info().rss
            share = _pss(process)
        except psutil.Error:
            continue  # ended meanwhile, or another user's
        count += 1
        cpu += times.user + times.system + times.children_user + times.children_system
        resident += size
        if share is None:
            kinds = MemoryKind.RSS
        else:
            proportional += share
    if count == 0:
        return Usage()
    memory = proportional if kinds is MemoryKind.PSS else resident
    return Usage(processes=count, cpu_seconds=cpu, memory=memory, kind=kinds)


def _pss(process: psutil.Process) -> int | None:
    try:
        return getattr(process.memory_full_info(), "pss", None)
    except psutil.AccessDenied:
        return None
