"""Whether this machine can take another run at all: a claim that cannot be kept is better left to another worker."""

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from worker.runs.journal import Journal

# Room for the journal, and for the first output of the runs already claimed.
LEAST_FREE_BYTES = 32 * 1024**2
# How long nothing is claimed after a process could not be started for want of something, in seconds.
SHORTAGE_PAUSE = 10.0


class ClaimGate:
    """Asked before each poll's claims; one for the daemon's life. `free_bytes` looks at the disk the runs are on.

    `free_memory` is how many bytes of memory are left, None when that cannot be told; with fewer than
    `min_free_memory` nothing is claimed, 0 being for no such bound. `monotonic` is the clock of pauses, in seconds.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        free_bytes: Callable[[], int],
        free_memory: Callable[[], int | None],
        min_free_memory: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._monotonic = monotonic
        self._short_until = 0.0
        self._shortage = ""
        self._free_bytes = free_bytes
        self._free_memory = free_memory
        self._min_free_memory = min_free_memory
        self._low = False
        self._memory_low = False
        self._log = structlog.get_logger()

    def shortage(self, reason: str) -> None:
        """The machine could not start a process just now: take no more runs for a while, and then try one again."""
        if not self._shortage:
            self._log.warning(
                "claims.paused",
                reason=f"the worker {reason}",
                retry_seconds=SHORTAGE_PAUSE,
                hint="what was claimed is given back; it claims again from time to time until one can be started",
            )
        self._shortage = reason
        self._short_until = self._monotonic() + SHORTAGE_PAUSE

    def started(self) -> None:
        """A process was started: if there was a shortage, it is over."""
        if self._shortage:
            self._log.info("claims.resumed")
        self._shortage = ""
        self._short_until = 0.0

    def closed(self) -> str | None:
        """Why nothing may be claimed now; None when it may."""
        if self._journal.trouble is not None:
            return f"the journal cannot be written: {self._journal.trouble}"
        if self._monotonic() < self._short_until:
            return self._shortage
        if self._disk_is_low():
            return "the disk is nearly full"
        return "memory is nearly used up" if self._memory_is_low() else None

    def _disk_is_low(self) -> bool:
        free = self._free_bytes()
        low = free < LEAST_FREE_BYTES
        if low and not self._low:
            self._log.warning(
                "disk.low",
                free_bytes=free,
                least_free_bytes=LEAST_FREE_BYTES,
                hint="no run is claimed until there is room on the disk of the state directory",
            )
        elif self._low and not low:
            self._log.info("disk.freed", free_bytes=free)
        self._low = low
        return low

    def _memory_is_low(self) -> bool:
        free = self._free_memory() if self._min_free_memory else None
        low = free is not None and free < self._min_free_memory
        if low and not self._memory_low:
            self._log.warning(
                "memory.low",
                free_bytes=free,
                min_free_bytes=self._min_free_memory,
                hint="no run is claimed until more memory is free; --min-free-memory is the bound",
            )
        elif self._memory_low and not low:
            self._log.info("memory.freed", free_bytes=free)
        self._memory_low = low
        return low


def free_bytes(directory: Path) -> int:
    """Free space for us on the disk of this directory; 0 when it cannot be looked at."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
