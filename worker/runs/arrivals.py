"""When to leave a server alone because somebody is making many runs at this moment.

Making a run is a transaction that reads before it writes. On SQLite it fails, and is tried again by the server's
client, when another write comes in between, and what such failures leave behind may bring the whole server to a
stand-still of a minute (docs/performance.md). Whoever makes a hundred runs in a row is done in a few seconds, unless
the first of these runs already write their states meanwhile.

Owns the judgement whether a stream of new runs goes on. Does not own hearing of them (`worker.api.events`), and what
is held back meanwhile (`poller`, `serving`, `outbox`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from uuid import UUID

import structlog

# Runs made within so many seconds of each other belong together, and the more of them there are, the longer the next
# one is waited for: who makes two is hardly noticed, who makes a hundred is let finish, although his client has to try
# again now and then (Prefect's waits for two seconds before that). Who makes one now and then is not waited for, and a
# run that has ended counts no more: who waits for each run before making the next one is not to wait for us.
WINDOW = 4.0
CLOSE = 0.8
MANY = 4
MANY_CLOSE = 2
CALM_EACH = 0.3
LONGEST_CALM = 1.2
# How much waiting there may be: so many seconds at first, and of those that were used so many are earned in a second.
# Who makes runs all day has to get along.
BUDGET = 10.0
EARNED = 0.1

_REMEMBERED = 1 + int(LONGEST_CALM / CALM_EACH)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A run, and when it was heard of."""

    flow_run_id: UUID
    time: float


@dataclass(frozen=True, slots=True)
class Stream:
    """The latest runs heard of that have not ended, until when nothing is begun, and how many seconds may still be waited.

    `last` is when the last run was heard of.
    """

    runs: tuple[Arrival, ...] = ()
    last: float | None = None
    until: float = float("-inf")
    budget: float = BUDGET


def heard(stream: Stream, flow_run_id: UUID, *, now: float) -> Stream:
    """A run was made just now."""
    earned = 0.0 if stream.last is None else EARNED * (now - stream.last)
    budget = min(BUDGET, stream.budget + earned)
    recent = (run for run in stream.runs if now - run.time <= WINDOW and run.flow_run_id != flow_run_id)
    runs = (*recent, Arrival(flow_run_id, now))[-_REMEMBERED:]
    until = now + CALM_EACH * (len(runs) - 1)
    more = max(0.0, until - max(now, stream.until))
    if not _belong_together(runs) or more > budget:
        return Stream(runs, now, stream.until, budget)
    return Stream(runs, now, max(until, stream.until), budget - more)


def _belong_together(runs: Sequence[Arrival]) -> bool:
    """Whether the last of the runs was made by somebody who makes several in a row."""
    close = [later.time - earlier.time <= CLOSE for earlier, later in pairwise(runs)]
    return any(close[-1:]) or (len(runs) >= MANY and sum(close) >= MANY_CLOSE)


def ended(stream: Stream, flow_run_id: UUID) -> Stream:
    """A run has ended."""
    return replace(stream, runs=tuple(run for run in stream.runs if run.flow_run_id != flow_run_id))


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
        before, self._stream = self._stream, heard(self._stream, flow_run_id, now=now)
        if hold(self._stream, now=now) and not hold(before, now=now):
            self._log.debug("arrivals.held", budget=round(self._stream.budget, 1))

    def ended(self, flow_run_id: UUID | None) -> None:
        """A run has ended, here or elsewhere; None: one may have."""
        if flow_run_id is not None:
            self._stream = ended(self._stream, flow_run_id)

    def pause(self) -> float:
        """For how many seconds nothing should be begun that makes the server write; 0 when there is no reason."""
        return hold(self._stream, now=self._monotonic())
