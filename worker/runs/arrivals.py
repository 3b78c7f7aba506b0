"""When to leave a server alone because somebody is making many runs at this moment.

Making a run is a transaction that reads before it writes. On SQLite it fails, and is tried again by the server's
client, when another write comes in between, and what such failures leave behind may bring the whole server to a
stand-still of a minute (docs/performance.md). Whoever makes a hundred runs in a row is done in a few seconds, unless
the first of these runs already write their states meanwhile.

Owns the judgement whether a stream of new runs goes on. Does not own hearing of them (`worker.api.events`), and what
is held back meanwhile (`poller`, `serving`, `outbox`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import structlog

# Runs made within so many seconds of each other belong together, and the more of them there are, the longer the next
# one is waited for: who makes two is hardly noticed, who makes a hundred is let finish, although his client has to try
# again now and then (Prefect's waits for two seconds before that). Two or three are waited for only when they come
# close together: who waits for each run before making the next one is not to wait for us.
WINDOW = 4.0
CLOSE = 0.8
MANY = 4
CALM_EACH = 0.3
LONGEST_CALM = 1.2
# How much waiting there may be: so many seconds at first, and of those that were used so many are earned in a second.
# Who makes runs all day has to get along.
BUDGET = 10.0
EARNED = 0.1

_REMEMBERED = 1 + int(LONGEST_CALM / CALM_EACH)


@dataclass(frozen=True, slots=True)
class Stream:
    """The latest runs heard of: their times, until when nothing is begun, and how many seconds may still be waited."""

    times: tuple[float, ...] = ()
    until: float = float("-inf")
    budget: float = BUDGET


def heard(stream: Stream, *, now: float) -> Stream:
    """A run was made just now."""
    earned = EARNED * (now - stream.times[-1]) if stream.times else 0.0
    budget = min(BUDGET, stream.budget + earned)
    times = (*(time for time in stream.times if now - time <= WINDOW), now)[-_REMEMBERED:]
    if len(times) < MANY and now - times[-2:][0] > CLOSE:
        return Stream(times, stream.until, budget)
    until = now + CALM_EACH * (len(times) - 1)
    more = max(0.0, until - max(now, stream.until))
    if more > budget:
        return Stream(times, stream.until, budget)
    return Stream(times, max(until, stream.until), budget - more)


def hold(stream: Stream, *, now: float) -> float:
    """For how many seconds nothing should be begun, as far as is known; 0 when no stream goes on."""
    return max(0.0, stream.until - now)


class Arrivals:
    """The stream of new runs of one pool; one for the daemon's life. `monotonic` is a clock in seconds."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._stream = Stream()
        self._log = structlog.get_logger()

    def heard(self, flow_run_id: UUID | None) -> None:
        """A run was made just now; None: it may have been."""
        if flow_run_id is None:
            return
        now = self._monotonic()
        before, self._stream = self._stream, heard(self._stream, now=now)
        if hold(self._stream, now=now) and not hold(before, now=now):
            self._log.debug("arrivals.held", budget=round(self._stream.budget, 1))

    def pause(self) -> float:
        """For how many seconds nothing should be begun that makes the server write; 0 when there is no reason."""
        return hold(self._stream, now=self._monotonic())
