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

    `monotonic` is the clock of pauses, in seconds.
    """

    def __init__(
        self, *, journal: Journal, free_bytes: Callable[[], int], monotonic: Callable[[], float]
    ) -> None:
        self._journal = journal
        self._monotonic = monotonic
        self._short_until = 0.0
        self._shortage = ""
        self._free_bytes = free_bytes
        self._low = False
        self._log = structlog.get_logger()

    def shortage(self, reason: str) -> None:
        """The machine could not start a process just now: take no more runs for a while."""
        if self._monotonic() >= self._short_until:
            self._log.warning("worker.shortage", reason=reason, pause=SHORTAGE_PAUSE)
        self._shortage = reason
        self._short_until = self._monotonic() + SHORTAGE_PAUSE

    def closed(self) -> str | None:
        """Why nothing may be claimed now; None when it may."""
        if self._journal.trouble is not None:
            return f"the journal cannot be written: {self._journal.trouble}"
        if self._monotonic() < self._short_until:
            return self._shortage
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
        return "the disk is nearly full" if low else None


def free_bytes(directory: Path) -> int:
    """Free space for us on the disk of this directory; 0 when it cannot be looked at."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
