"""What the daemon counts of itself: plain numbers, fed where things become known, read when somebody asks.

Owns the numbers that nothing else keeps. Does not own what others know anyway (slots, outages, requests: those are
read where they are), and no format: what is served, and under which name, is `exposition`'s. Counting costs an
addition, whether anybody ever asks or not. Written on the event loop; read from any thread, which at worst misses what is
being counted at that moment.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

STARTUP_BOUNDS: Final = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
LATENESS_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
MEMORY_BOUNDS: Final = tuple(
    float(mebibytes << 20) for mebibytes in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
)


GIVEN_BACK: Final = "given_back"
"""A report that is no verdict: the run goes back to whoever wants it."""


class ClaimResult(StrEnum):
    """What became of a claim that was answered, or given up."""

    WON = "won"
    LOST = "lost"
    """Another worker has the run, or it is over, or not to be had now."""
    ORPHANED = "orphaned"
    """Nobody can have it: its deployment is gone."""
    UNANSWERED = "unanswered"


class ExitCause(StrEnum):
    """Why a run's process ended, as far as its end and its last word tell."""

    COMPLETED = "completed"
    """Its engine said that the run is Completed."""
    FAILED = "failed"
    """Its engine said that the run is Failed."""
    FINISHED = "finished"
    """Exit code 0 without such a word: a run that is suspended or will be retried, a command that is no engine."""
    ERROR = "error"
    """Another exit code."""
    KILLED = "killed"
    """A signal that the daemon did not send."""
    OUT_OF_MEMORY = "out_of_memory"
    """SIGKILL, and the kernel's counters say that memory had run out."""
    CANCELLED = "cancelled"
    """Ended by the daemon: its run was cancelled."""
    STOPPED = "stopped"
    """Ended by the daemon, which had to end itself."""
    UNKNOWN = "unknown"
    """Adopted from an earlier daemon, so that nobody could learn how it ended."""


class Histogram:
    """Counts of observed values by upper bound; `bounds` ascend, and everything above the last is counted, too."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value, of 0 or more."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """For each bound how many values were not above it, and last how many there were."""
        counts, sums = self._counts.copy(), list[int]()
        for count in counts:
            sums.append(count + (sums[-1] if sums else 0))
        return sums


@dataclass(slots=True)
class Metrics:
    """What has happened since the daemon started; one for its life.

    `reports` counts outcomes by what the server was told, `startup` and `lateness` are in seconds, `peak_memory` in
    bytes.
    """

    claims: Counter[str] = field(default_factory=Counter[str])
    starts: Counter[str] = field(default_factory=Counter[str])
    exits: Counter[str] = field(default_factory=Counter[str])
    reports: Counter[str] = field(default_factory=Counter[str])
    adoptions: int = 0
    startup: Histogram = field(default_factory=lambda: Histogram(STARTUP_BOUNDS))
    lateness: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS))
    peak_memory: Histogram = field(default_factory=lambda: Histogram(MEMORY_BOUNDS))

    def began(self, *, startup: float, due: datetime | None, now: datetime) -> None:
        """An engine has connected, `startup` seconds after its run was about to be claimed; the run was `due`.

        One that begins ahead of its time is not late.
        """
        self.startup.observe(max(0.0, startup))
        if due is not None:
            self.lateness.observe(max(0.0, (now - due).total_seconds()))

    def exited(self, cause: ExitCause, *, peak_memory: int | None) -> None:
        """A run's process has ended; `peak_memory` in bytes, None if unknown."""
        self.exits[cause] += 1
        if peak_memory is not None:
            self.peak_memory.observe(peak_memory)
