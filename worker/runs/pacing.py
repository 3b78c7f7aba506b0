"""How many runs may start at once, from how quickly the server answers.

Starts are the server's heaviest load from a daemon, and one that answers slowly gets slower with each of them: eight
at once can keep an SQLite server busy until requests time out. Owns the number. Does not own the requests
(`worker.api.transport` reports them) and the counting of starts (`starts`).

Additive increase, multiplicative decrease, as TCP's congestion control does it (RFC 5681).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

# An answer is slow that takes longer than this, in seconds, and many times as long as usual.
SLOW_SECONDS = 1.0
SLOW_FACTOR = 5.0
# A slow answer speaks of the starts that went on when its request was sent: one step down is given time to be felt.
FALL_PAUSE = 2.0
# One more start for each such time without a slow answer, in seconds.
RISE_PAUSE = 10.0
# The share of the newest answer in what is usual.
_NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known at one moment: how many may start, and what is usual, in seconds. `since`: the last change."""

    allowed: int
    most: int
    usual: float | None = None
    since: float = 0.0


def judge(pace: Pace, *, seconds: float, failed: bool, starting: int, now: float) -> Pace:
    """The pace after one more answer, which took so many seconds, or `failed` because the server was overloaded.

    A failure that came at once counts, too: two writes had met (PROTOCOL 1.5), and the next two may keep the server
    standing still for a minute. With no run `starting`, it is not the starts that keep the server busy.
    """
    slow = failed or seconds > max(SLOW_SECONDS, SLOW_FACTOR * (pace.usual or 0.0))
    if slow:
        if not starting or (now - pace.since < FALL_PAUSE and pace.allowed < pace.most):
            return pace
        return replace(pace, allowed=max(1, min(pace.allowed, starting) // 2), since=now)
    usual = seconds if pace.usual is None else pace.usual + _NEWEST * (seconds - pace.usual)
    steps = int((now - pace.since) / RISE_PAUSE)
    if pace.allowed >= pace.most or steps < 1:
        return replace(pace, usual=usual)
    return replace(pace, usual=usual, allowed=min(pace.most, pace.allowed + steps), since=now)


class Pacing:
    """The current pace; one for the daemon's life.

    At most `most` starts at once; `starting` is asked how many there are, `monotonic` is a clock in seconds.
    """

    def __init__(self, *, most: int, starting: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._pace = Pace(allowed=most, most=most, since=monotonic())
        self._starting = starting
        self._monotonic = monotonic
        self._log = structlog.get_logger()

    @property
    def allowed(self) -> int:
        """How many runs may be starting at once, at least 1."""
        return self._pace.allowed

    def observe(self, seconds: float, failed: bool) -> None:
        """Take note of one request: how long its answer took, and whether it failed for too much work."""
        before = self._pace
        starting = self._starting()
        self._pace = after = judge(
            before, seconds=seconds, failed=failed, starting=starting, now=self._monotonic()
        )
        if after.allowed == before.allowed:
            return
        self._log.debug("pace.changed", allowed=after.allowed, seconds=round(seconds, 3), failed=failed)
        if before.allowed == before.most:
            self._log.info(
                "pace.reduced",
                seconds=round(seconds, 3),
                failed=failed,
                max_starting=after.most,
                hint="the server answers slowly, so fewer runs are started at once; none is lost",
            )
        elif after.allowed == after.most:
            self._log.info("pace.recovered", max_starting=after.most)
