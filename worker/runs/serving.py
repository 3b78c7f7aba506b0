"""What becomes of the runs of a poll answer: skipped, started, or left for later.

Claims happen one after the other, in the server's order, right after the answer they come from: an old
answer could re-run a finished run (PROTOCOL 2.6). Runs are never held back in a queue here; what cannot
start now stays Scheduled, for this daemon later or for another one now. Runs that are not worth running any
more are skipped; which these are is `lateness`' judgement. Does not own when to ask, and for what (`poller`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker.api.models import FlowRun
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight
from worker.runs.late_marking import LateMarking
from worker.runs.lateness import Skip, plan
from worker.runs.latest_runs import LatestRuns
from worker.runs.lookahead import Leads, later, unclaimable
from worker.runs.questions import Questions
from worker.runs.tidying import Tidying

# A poll answer older than this says nothing any more.
LONGEST_AGE = timedelta(seconds=5)
# How much of that, and how many runs, may go into skipping before the others are started. Skips come first: a
# skipped run holds its slots, here and of its deployment, only for a moment, a started one for as long as its flow
# takes, and while the deployment's are taken the server refuses every claim.
SKIPPING_AGE = timedelta(seconds=2)
MOST_SKIPS = 50


@dataclass(frozen=True, slots=True)
class Served:
    """What became of an answer: runs started, and whether it grew too old first (`cut_off`), or room ran out (`left`).

    `skipped`: some were that had not been tried before, so that others may have come into sight. `ahead`: when those
    are to be claimed that are not to be claimed yet; `idle`: there were no others.
    """

    started: int
    cut_off: bool = False
    left: bool = False
    skipped: bool = False
    ahead: Sequence[datetime] = ()
    idle: bool = False


class Serving:
    """Hands each run that can start now to `start`, waiting until its claim is decided.

    `leads` says how long before its due time a run is claimed. `max_late` (seconds, None for never) and `latest`
    (None: all are run) say which runs of schedules are skipped instead. `skip` starts an execution that claims the
    run and reports it Cancelled with this message; its claim is decided when it is over, and its slots (here and of
    its deployment) are free again. `pause`: for how many seconds the server is to be left alone. `marking` and
    `tidying` are told which runs wait; the latter, if there is one, sees to the server before some are begun.
    """

    def __init__(
        self,
        *,
        questions: Questions,
        leads: Leads,
        in_flight: InFlight,
        start: Callable[[FlowRun], Execution],
        skip: Callable[[FlowRun, str], Execution],
        max_late: float | None,
        latest: LatestRuns | None,
        marking: LateMarking,
        tidying: Tidying | None,
        pause: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._questions = questions
        self._leads = leads
        self._in_flight = in_flight
        self._start = start
        self._skip = skip
        self._max_late = None if max_late is None else timedelta(seconds=max_late)
        self._latest = latest
        self._marking = marking
        self._tidying = tidying
        self._pause = pause
        self._now = now
        self._log = structlog.get_logger()
        self._tried: frozenset[UUID] = frozenset()
        # The last answer had grown too old before a run could be started: the next one is for starting only.
        self._starved = False
        # What there was no room for in the last answer, and when that came.
        self._rest: Sequence[FlowRun] = ()
        self._answered = now()

    @property
    def judges(self) -> bool:
        """Whether some runs may be skipped, so that all that wait have to be seen."""
        return self._max_late is not None or self._latest is not None

    def forget_rest(self) -> Sequence[FlowRun]:
        """The runs that there was no room for in the last answer; they are the caller's now."""
        rest, self._rest = self._rest, ()
        return rest

    async def start_rest(self, rest: Sequence[FlowRun]) -> Served:
        """Start runs of the last answer that there was no room for; each is looked at again."""
        served = await self._start_all(rest, self._answered)
        self._log.debug("poll.continued", started=served.started, rest=len(self._rest))
        return served

    async def serve(self, runs: Sequence[FlowRun], *, looked: bool, asked: bool = True) -> Served:
        """Skip and start what is to be, on an answer that has just come.

        `looked`, for the log: to a look ahead; `asked`: to the question for runs.
        """
        answered = self._now()
        await self._look(runs, now=answered)
        latest, stand_in = None, True
        if self._latest is not None:
            latest = await self._latest.of(runs)
            if self._older(answered, SKIPPING_AGE):
                # What has been learnt about the series still holds, what the runs' states were does not.
                runs, stand_in = await self._questions.ask(lead=self._leads.longest, limit=None), False
                answered = self._now()
        ahead = later(runs, now=self._now(), leads=self._leads)
        todo = plan(runs, now=self._now(), max_late=self._max_late, latest=latest, stand_in=stand_in)
        progress = await self._skip_some(() if self._starved else todo.skips, answered)
        served = await self._start_all(todo.starts, answered)
        self._starved = served.cut_off and not served.started
        self._log.debug(
            "poll.done",
            ahead=looked,
            asked=asked,
            found=len(runs),
            started=served.started,
            in_flight=len(self._in_flight),
            starting=self._in_flight.starting,
            skipped=len(self._tried),
            cut_off=served.cut_off,
        )
        return replace(served, skipped=progress, ahead=ahead, idle=len(ahead) == len(runs))

    async def _look(self, runs: Sequence[FlowRun], *, now: datetime) -> None:
        await self._marking.look(runs, now=now)
        if self._tidying is not None:
            self._tidying.look(runs, now=now)

    def _older(self, answered: datetime, age: timedelta) -> bool:
        return self._now() - answered > age

    async def _skip_some(self, skips: Sequence[Skip], answered: datetime) -> bool:
        """Skip runs for a limited time, the limit of one poll; True when more is to be done at once.

        A run whose skipping was tried at the last poll, too, comes last: the server may refuse its claim for ever.
        """
        tried: set[UUID] = set()
        for one in sorted(skips, key=lambda one: one.flow_run.id in self._tried):
            if len(tried) == MOST_SKIPS or self._older(answered, SKIPPING_AGE) or self._is_full():
                break
            if self._is_claimable(one.flow_run) and await self._still_waits(one.flow_run):
                await self._skip(one.flow_run, one.message).claim_decided()
                tried.add(one.flow_run.id)
        progress = not tried <= self._tried
        self._tried = frozenset(tried)
        return progress

    async def _start_all(self, flow_runs: Sequence[FlowRun], answered: datetime) -> Served:
        """Start what can be started on an answer."""
        started = 0
        for position, flow_run in enumerate(flow_runs):
            if not self._is_claimable(flow_run):
                continue
            if self._is_full():
                self._rest, self._answered = flow_runs[position:], answered
                return Served(started, left=True)
            if self._older(answered, LONGEST_AGE):
                return Served(started, cut_off=True)
            if self._tidying is not None and not self._marking.harmless:
                await self._tidying.tidy()
            if not await self._still_waits(flow_run):
                continue
            await self._start(flow_run).claim_decided()
            started += 1
        return Served(started)

    def _is_full(self) -> bool:
        """There is no room for a run that could use it."""
        full = self._in_flight.room == 0 or self._pause() > 0
        if full:
            self._in_flight.want(wanted=True)
        return full

    def _is_claimable(self, flow_run: FlowRun) -> bool:
        in_flight = flow_run.id in self._in_flight
        reason = unclaimable(flow_run, now=self._now(), in_flight=in_flight, leads=self._leads)
        if reason is not None:
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=reason)
            if in_flight:
                self._in_flight.want(wanted=True)
        return reason is None

    async def _still_waits(self, flow_run: FlowRun) -> bool:
        # Recovery may have adopted its process while we asked.
        return await self._questions.still_waits(flow_run) and flow_run.id not in self._in_flight
