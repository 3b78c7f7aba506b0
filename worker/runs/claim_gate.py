"""Whether this machine can take another run at all: a claim that cannot be kept is better left to another worker."""

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from worker.runs.journal import Journal

# Room for the journal, and for the first output of the runs already claimed.
LEAST_FREE_BYTES = 32 * 1024**2


class ClaimGate:
    """Asked before each poll's claims; one for the daemon's life. `free_bytes` looks at the disk the runs are on."""

    def __init__(self, *, journal: Journal, free_bytes: Callable[[], int]) -> None:
        self._journal = journal
        self._free_bytes = free_bytes
        self._low = False
        self._log = structlog.get_logger()

    def closed(self) -> str | None:
        """Why nothing may be claimed now; None when it may."""
        if self._journal.trouble is not None:
            return f"the journal cannot be written: {self._journal.trouble}"
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
