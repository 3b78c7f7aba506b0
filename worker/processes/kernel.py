"""What this system offers and allows: pidfds, subreapers, limits on processes and descriptors. Owns asking, no judgement."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from worker.processes.evidence import read_memory_evidence, read_number

_PR_GET_CHILD_SUBREAPER = 37  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Limits:
    """Of this user and this control group; None: no limit. `processes` counts threads (setrlimit(2)).

    `group_processes` is `pids.max` of the closest group that has one, `group_memory` the lowest limit in bytes.
    """

    open_files: int | None
    processes: int | None
    group_processes: int | None
    group_memory: int | None


def read_limits(*, root: Path = Path("/")) -> Limits:
    """The limits of this process, which a daemon started the same way would have, too."""
    groups = read_memory_evidence(root=root).cgroups
    counts = [read_number(group.directory / "pids.max") for group in groups if group.directory is not None]
    return Limits(
        open_files=_soft(resource.RLIMIT_NOFILE),
        processes=_soft(resource.RLIMIT_NPROC) if os.geteuid() != 0 else None,  # root is exempt
        group_processes=min((count for count in counts if count is not None), default=None),
        group_memory=min((group.limit for group in groups if group.limit is not None), default=None),
    )


def has_pidfd() -> bool:
    """Whether the end of a process can be waited for without polling (pidfd_open(2), Linux 5.3)."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def has_subreaper() -> bool:
    """Whether orphaned processes can be re-parented to a daemon (prctl(2), Linux 3.4)."""
    if sys.platform != "linux":
        return False
    found = ctypes.c_int()
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0


def _soft(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft
