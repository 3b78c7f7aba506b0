"""When to leave a server alone because it is marking overdue runs as Late.

Every five seconds a server looks for runs that have waited for more than fifteen, and marks each in a transaction of
its own, ten at a time. On SQLite these make each other fail, so a hundred waiting runs keep it busy for seconds, round
after round; and somebody else's write that comes in between may bring the whole server to a stand-still of a minute
(docs/performance.md). Left alone, a round is over sooner and marks more. What it leaves behind is `tidying`'s.

Owns the judgement when a round goes on or is about to begin. Does not own hearing of marked runs
(`worker.api.events`), and what is held back meanwhile (`poller`, `serving`, `outbox`).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker.api.errors import ApiError
from worker.api.models import FlowRun

# The server's settings for this, unless somebody has changed them (PREFECT_SERVER_SERVICES_LATE_RUNS_*), in seconds.
PERIOD = 5.0
OVERDUE = 15.0
# How many runs that are about to be marked make a round that matters.
MANY = 8
# A round is over when no run has been marked for so long, in seconds; but it is never waited for longer than `LONGEST`,
# so that something is begun between two rounds, however long these are.
CALM = 0.7
LONGEST = 2.5
# Two rounds are never closer than this. A server that is busy begins them later and later: what goes by since the latest
# one is believed to be the period up to so much.
CLOSEST = PERIOD - 0.5
LONGEST_PERIOD = PERIOD + 1.5
# A server that marks so many runs within this time has no need to be left alone: its database has many writers.
MARKED = 8
SWIFT = 0.5
# How long before a round nothing is begun, so that what goes on is over by then, and how late a round may come.
DRAIN = 1.2
PATIENCE = 1.0
# After so many rounds in which nothing was heard, nobody knows when the next one comes.
MEMORY = 3
# How long the number of waiting runs is believed, in seconds.
COUNTED = 2.0

FIRST = DRAIN + PERIOD + PATIENCE
"""How long the first round is awaited, in seconds."""

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Rounds:
    """What is known at one moment, in seconds of one clock.

    `began` and `last`: the first and the last marked run of the latest round that was heard of. `waiting_since`: since
    when there have been many runs that are about to be marked; None while there are not. `marks` counts the runs of the
    round, `harmless` says that a round did no harm. `deaf`: an awaited round was not heard of. `period`: from one
    round to the next.
    """

    began: float = NEVER
    last: float = NEVER
    waiting_since: float | None = None
    marks: int = 0
    harmless: bool = False
    deaf: bool = False
    period: float = PERIOD


def heard(rounds: Rounds, *, now: float) -> Rounds:
    """A run was marked just now."""
    since = now - rounds.began
    fresh = since >= CLOSEST
    period = max(PERIOD, since) if fresh and since <= LONGEST_PERIOD else rounds.period
    began, marks = (now, 1) if fresh else (rounds.began, rounds.marks + 1)
    swift = marks >= MARKED and now - began <= SWIFT
    harmless = rounds.harmless or swift
    return replace(rounds, began=began, last=now, marks=marks, harmless=harmless, deaf=False, period=period)


def waits(rounds: Rounds, *, many: bool, now: float) -> Rounds:
    """Many runs are about to be marked, or not, as of now."""
    since = rounds.waiting_since
    if many and since is None:
        return replace(rounds, waiting_since=now)
    if many or since is None:
        return rounds
    deaf = rounds.deaf or (rounds.last < since and now - since >= FIRST)
    return replace(rounds, waiting_since=None, deaf=deaf)


def hold(rounds: Rounds, *, now: float) -> float:
    """For how many seconds nothing should be begun; 0 when no round goes on, nor is expected."""
    if rounds.waiting_since is None or rounds.harmless:
        return 0.0
    going_on = min(rounds.last + CALM, rounds.began + LONGEST) - now
    if going_on > 0:
        return going_on
    since_round = now - rounds.began
    period = rounds.period
    if since_round > MEMORY * period + PATIENCE:
        # The first one: it comes within a period, or they are not heard of at all.
        return 0.0 if rounds.deaf else max(0.0, rounds.waiting_since + FIRST - now)
    phase = since_round % period
    if phase >= period - DRAIN:
        return period - phase + PATIENCE
    return PATIENCE - phase if phase < PATIENCE and since_round >= period else 0.0


class LateMarking:
    """The rounds of one server; one for the daemon's life.

    `count` asks the server how many unmarked runs were due by a time, `monotonic` is a clock in seconds.
    """

    def __init__(
        self, *, count: Callable[[datetime], Awaitable[int]], monotonic: Callable[[], float]
    ) -> None:
        self._count = count
        self._monotonic = monotonic
        self._rounds = Rounds()
        self._counted = NEVER
        self._log = structlog.get_logger()

    def heard(self, flow_run_id: UUID | None) -> None:
        """A run of our pool was marked as Late just now; None: it may have been."""
        if flow_run_id is None:
            return
        before, self._rounds = self._rounds, heard(self._rounds, now=self._monotonic())
        if self.harmless and not before.harmless:
            self._log.debug("late_marking.harmless")

    @property
    def goes_on(self) -> bool:
        """Whether many runs are about to be marked, as far as is known."""
        return self._rounds.waiting_since is not None

    @property
    def harmless(self) -> bool:
        """Whether the server is known to have many writers."""
        return self._rounds.harmless

    def rule_out_harm(self) -> None:
        """The server is known to have many writers."""
        self._rounds = replace(self._rounds, harmless=True)

    def pause(self) -> float:
        """For how many seconds nothing should be begun that makes the server write; 0 when there is no reason."""
        return hold(self._rounds, now=self._monotonic())

    async def look(self, flow_runs: Sequence[FlowRun], *, now: datetime) -> None:
        """These runs of ours wait now: if some have waited for long, find out how many there are on the whole server."""
        if self.harmless:
            return
        limit = now - timedelta(seconds=OVERDUE - DRAIN)
        overdue = [one for one in flow_runs if (due := one.next_scheduled_start_time) and due <= limit]
        waiting = len(overdue) > 1
        if waiting and self._monotonic() - self._counted < COUNTED:
            return
        if waiting:
            try:
                waiting = await self._count(limit) >= MANY
            except ApiError as error:
                self._log.debug("late_marking.unknown", reason=str(error))
                return
            self._counted = self._monotonic()
        before = self._rounds
        self._rounds = waits(before, many=waiting, now=self._monotonic())
        if self._rounds.waiting_since != before.waiting_since:
            self._log.debug("late_marking.expected", expected=waiting)
