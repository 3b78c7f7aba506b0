"""Reading the process table where there is no /proc: macOS and the BSDs, through psutil.

The same questions as in `process_table`, which alone asks them. Start times are of another kind there (seconds since the
epoch): never mix the two. Imported only where it is needed, as psutil costs every start some 20 ms.
"""

from __future__ import annotations

import os

import psutil

from worker.processes.process_table import Marker, ProcessInfo


def read_process(pid: int) -> ProcessInfo | None:
    """The process with this pid now, or None."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return ProcessInfo(
                pid=pid,
                ppid=process.ppid(),
                session=os.getsid(pid),
                start_time=process.create_time(),
                dead=process.status() == psutil.STATUS_ZOMBIE,
            )
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    except (psutil.AccessDenied, PermissionError):
        return None  # another user's process on a system that hides them: none of ours


def pids() -> list[int]:
    """All pids."""
    return psutil.pids()


def carries(pid: int, marker: Marker) -> bool:
    """Whether the process was started with this variable in its environment; False where that cannot be read."""
    try:
        return psutil.Process(pid).environ().get(marker.name) == marker.value
    except (psutil.Error, OSError):
        return False


def initial_value(pid: int, name: str) -> str | None:
    """The value of this variable in the environment the process was started with; None if it has none, or is not ours."""
    try:
        return psutil.Process(pid).environ().get(name)
    except (psutil.Error, OSError):
        return None
