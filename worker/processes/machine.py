"""What there is for another process: free memory, of the machine or in the daemon's control groups, and processors.

Owns reading it. What is enough is decided elsewhere.
"""

import os
import sys
from pathlib import Path

from worker.processes.evidence import CgroupMemory, read_counter, read_memory_evidence, read_number

_KIB = 1024


def available_memory(*, root: Path = Path("/")) -> int | None:
    """Bytes that could be had without swapping; None when that cannot be told. `root` is where /proc and /sys are.

    The kernel's own estimate (proc(5), `MemAvailable`), or less where a control group around the daemon allows less.
    """
    groups = [_left(cgroup) for cgroup in read_memory_evidence(root=root).cgroups]
    return min((left for left in (_machine(root), *groups) if left is not None), default=None)


def _left(cgroup: CgroupMemory) -> int | None:
    """What the group's limit leaves: it counts cached files as used, but gives up those not in use before it kills.

    Sources: the kernel's cgroup-v2 and cgroup-v1/memory documents; v1 sums up the groups below under `total_…`.
    """
    if cgroup.limit is None or cgroup.directory is None:
        return None
    stat = cgroup.directory / "memory.stat"
    used = read_number(cgroup.directory / "memory.current")
    cached = read_counter(stat, "inactive_file")
    if used is None:
        used = read_number(cgroup.directory / "memory.usage_in_bytes")
        cached = read_counter(stat, "total_inactive_file")
    return None if used is None else max(0, cgroup.limit - max(0, used - (cached or 0)))


def _machine(root: Path) -> int | None:
    if sys.platform != "linux":
        import psutil  # noqa: PLC0415 - Linux does without psutil

        return psutil.virtual_memory().available
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        match line.split():
            case ["MemAvailable:", value, "kB"] if value.isdecimal():
                return int(value) * _KIB
            case _:
                pass
    return None


def processors() -> int:
    """How many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
