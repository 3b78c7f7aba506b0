"""When to leave a server alone because somebody is making many runs at this moment.

Making a run is a transaction that reads before it writes. On SQLite it fails, and is tried again by the server's
client, when another write comes in between, and what such failures leave behind may bring the whole server to a
stand-still of a minute (docs/performance.md). Whoever makes a hundred runs in a row is done in a few seconds, unless
the first of these runs already write their states meanwhile.

Owns the judgement whether a stream of new runs goes on. Does not own hearing of them (`worker.api.events`), and what
is held back meanwhile (`poller`, `serving`, `outbox`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

import structlog

# Runs made within so many seconds of each other belong together, and the more of them there are, the longer the next
# one is waited for: who makes two is hardly noticed, who makes a hundred is let finish. Who waits for each run before
# making the next one, or makes one now and then, is not to wait for us.
WINDOW = 6.0
CLOSE = 0.8
MANY = 4
MANY_JOINED = 2
CALM_EACH = 0.3
LONGEST_CALM = 1.2
# Whose run could not be made tries again after two seconds (Prefect's client). Once that seems to have happened, the next
# time is waited for, too, for so many seconds; otherwise what is begun meanwhile keeps the next run from being made.
RETRIED = 1.5
LONGEST_WITH_RETRIES = 2.7
RETRIES_GO_ON = 10.0
# How much waiting there may be: so many seconds at first, and of those that were used so many are earned in a second.
# Who makes runs all day has to get along.
BUDGET = 15.0
EARNED = 0.1

_REMEMBERED = 1 + int(LONGEST_WITH_RETRIES / CALM_EACH)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A run, when it was heard of, and whether that was soon after another one that had not ended."""

    flow_run_id: UUID
    time: float
    joined: bool
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """The latest runs heard of, until when nothing is begun, and how many seconds may still be waited.

    `retried` is when a run seemed to have been made at a second try.
    """

    runs: tuple[Arrival, ...] = ()
    retried: float = float("-inf")
    until: float = float("-inf")
    budget: float = BUDGET


def heard(stream: Stream, flow_run_id: UUID, *, now: float) -> Stream:
    """A run was made just now."""
    before = tuple(run for run in stream.runs if run.flow_run_id != flow_run_id)
    since = now - before[-1].time if before else float("inf")
    budget = min(BUDGET, stream.budget + EARNED * since) if before else stream.budget
    row = tuple(run for run in before if now - run.time <= WINDOW)[1 - _REMEMBERED :]
    joined = since <= CLOSE and any(not run.ended for run in row)
    row = (*row, Arrival(flow_run_id, now, joined))
    many = len(row) >= MANY and sum(run.joined for run in row) >= MANY_JOINED
    retried = now if many and since >= RETRIED else stream.retried
    longest = LONGEST_WITH_RETRIES if now - retried <= RETRIES_GO_ON else LONGEST_CALM
    until = max(stream.until, now + min(longest, CALM_EACH * (len(row) - 1)))
    more = max(0.0, until - max(now, stream.until))
    if not (joined or many) or more > budget:
        return Stream(row, retried, stream.until, budget)
    return Stream(row, retried, until, budget - more)


def ended(stream: Stream, flow_run_id: UUID) -> Stream:
    """A run has ended."""
    runs = (replace(run, ended=run.ended or run.flow_run_id == flow_run_id) for run in stream.runs)
    return replace(stream, runs=tuple(runs))


def hold(stream: Stream, *, now: float) -> float:
    """For how many seconds nothing should be begun, as far as is known; 0 when no stream goes on."""
    return max(0.0, stream.until - now)


class Arrivals:
    """The stream of new runs of one pool; one for the daemon's life.

    `retried` is told that a run seems to have been made at a second try. `monotonic` is a clock in seconds.
    """

    def __init__(self, *, retried: Callable[[], None], monotonic: Callable[[], float]) -> None:
        self._retried = retried
        self._monotonic = monotonic
        self._stream = Stream()
        self._log = structlog.get_logger()

    def heard(self, flow_run_id: UUID | None) -> None:
        """A run was made just now; None: it may have been."""
        if flow_run_id is None:
            return
        now = self._monotonic()
        before, self._stream = self._stream, heard(self._stream, flow_run_id, now=now)
        if self._stream.retried > before.retried:
            self._retried()
        if hold(self._stream, now=now) and not hold(before, now=now):
            self._log.debug("arrivals.held", budget=round(self._stream.budget, 1))

    def ended(self, flow_run_id: UUID | None) -> None:
        """A run has ended, here or elsewhere; None: one may have."""
        if flow_run_id is not None:
            self._stream = ended(self._stream, flow_run_id)

    def pause(self) -> float:
        """For how many seconds nothing should be begun that makes the server write; 0 when there is no reason."""
        return hold(self._stream, now=self._monotonic())
