"""Finds due runs and starts an execution for each that can start now.

Claims happen one after the other, in the server's order, right after the answer they come from: an old
answer could re-run a finished run (PROTOCOL 2.6). Runs are never held back in a queue here; what cannot
start now stays Scheduled, for this daemon later or for another one now. Runs that are not worth running any
more are skipped; which these are is `lateness`' judgement. When to ask, and how early a run is claimed, is
`lookahead`'s.
"""

from collections.abc import Awaitable, Callable, Sequence
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
from worker.runs.lookahead import PAUSE_BEFORE_QUESTION, Agenda, Leads, later, unclaimable
from worker.runs.questions import Questions
from worker.runs.wake import Wake

# A poll answer older than this says nothing any more.
LONGEST_AGE = timedelta(seconds=5)
# How much of that, and how many runs, may go into skipping before the others are started. Skips come first: a
# skipped run holds its slots, here and of its deployment, only for a moment, a started one for as long as its flow
# takes, and while the deployment's are taken the server refuses every claim.
SKIPPING_AGE = timedelta(seconds=2)
MOST_SKIPS = 50
# How many more runs are asked for than there is room for: some claims are lost to other workers. A server refuses a
# limit above its own (200 unless configured), so a large one is left to it.
SPARE = 8
MOST_LIMITED = 50
# How long a poll that is to be the only one waits while nothing may be claimed, before it looks again, in seconds.
RUN_ONCE_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class _Served:
    """What became of an answer: runs started, and whether it grew too old first, or room ran out.

    `skipped`: some were that had not been tried before, so that others may have come into sight.
    """

    started: int
    cut_off: bool = False
    left: bool = False
    skipped: bool = False


class Poller:
    """Asks, and hands each claimable run to `start`, waiting until its claim is decided.

    `agenda` says when to ask, `leads` how long before its due time a run is claimed. `max_late` (seconds, None
    for never) and `latest` (None: all are run) say which runs of schedules are skipped instead. With `run_once` one step serves
    all that is found. `wake` is for the loop that calls `poll_once`: rung when the next question cannot wait.

    `skip` starts an execution that claims the run and reports it Cancelled with this message; its claim is
    decided when it is over, and its slots (here and of its deployment) are free again. `may_claim` is asked
    before each question: None, or why nothing is to be claimed now. `pause`: for how many seconds the server is to be
    left alone. `marking` is told which runs wait.
    """

    def __init__(
        self,
        *,
        questions: Questions,
        agenda: Agenda,
        leads: Leads,
        in_flight: InFlight,
        wake: Wake,
        start: Callable[[FlowRun], Execution],
        now: Callable[[], datetime],
        max_late: float | None,
        latest: LatestRuns | None,
        skip: Callable[[FlowRun, str], Execution],
        may_claim: Callable[[], str | None],
        marking: LateMarking,
        pause: Callable[[], float],
        run_once: bool = False,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._questions = questions
        self._agenda = agenda
        self._leads = leads
        self._in_flight = in_flight
        self._wake = wake
        self._start = start
        self._now = now
        self._max_late = None if max_late is None else timedelta(seconds=max_late)
        self._latest = latest
        self._judged = max_late is not None or latest is not None
        self._skip = skip
        self._may_claim = may_claim
        self._marking = marking
        self._pause = pause
        self._sleep = sleep
        self._run_once = run_once
        self._log = structlog.get_logger()
        self._tried: frozenset[UUID] = frozenset()
        # The last answer had grown too old before a run could be started: the next one is for starting only.
        self._starved = False
        # What there was no room for in the last answer, and when that came.
        self._rest: Sequence[FlowRun] = ()
        self._answered = now()
        # Whether the question was due by the interval, for the log.
        self._ahead = True
        self._idle = False

    def hint(self, _flow_run_id: UUID | None = None) -> None:
        """Somebody heard that a run of our pool may have become claimable, or may have missed hearing it."""
        self._idle = False
        if self._agenda.hint():
            self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether no run was to be claimed by the last answer, and none has been heard of since."""
        return self._idle

    @property
    def last_polled(self) -> datetime | None:
        """When the server last answered the question; None when it has not yet."""
        return self._questions.last_answered

    def expect_scheduler(self, _flow_run_id: UUID | None = None) -> None:
        """A deployment has changed: runs may be claimable now, and others when the server's scheduler made them."""
        self._agenda.expect()
        self.hint()

    async def poll_once(self) -> float:
        """Ask, skip what has become too late, claim what can start; returns the seconds until the next question.

        Without room for another run, or when nothing may be claimed, a question that is due is still put, for no
        runs at all: it keeps the queues READY (PROTOCOL 2.2).
        """
        while pause := self._pause():
            self._in_flight.want(wanted=True)
            if not self._run_once:
                return pause
            await self._sleep(pause)
        withheld = self._may_claim()
        if withheld is None and await self._start_rest():
            return self._pause() or self._agenda.delay(now=self._now())
        if self._agenda.hinted:
            await self._sleep(PAUSE_BEFORE_QUESTION)
            if not self._run_once and (pause := self._pause()):
                return pause
        self._agenda.begin(now=self._now())
        if withheld is not None or self._in_flight.room == 0:
            await self._ask_for_nothing(withheld)
            return self._agenda.delay(now=self._now())
        self._in_flight.want(wanted=False)
        self._ahead = self._agenda.look_is_due
        answer, limit = await self._ask_for_startable()
        served = await self._serve(answer)
        cut_short = served.cut_off or served.skipped or served.left
        if not cut_short and limit is not None and len(answer) >= limit and self._in_flight.room:
            # Nearly nothing of it could be claimed; there may be more behind it.
            served = await self._serve(await self._questions.ask(lead=self._leads.longest, limit=None))
        if self._run_once:
            await self._serve_rest(served)
        if served.cut_off or served.skipped:
            return 0.0
        return self._pause() or self._agenda.delay(now=self._now())

    async def _start_rest(self) -> bool:
        """Start runs of the last answer that there was no room for; True when there is no room again.

        Only while there is no news, and each is looked at again: that is kinder to the server than a question, which
        makes it write (PROTOCOL 2.3).
        """
        rest, self._rest = self._rest, ()
        if (
            not rest
            or self._judged
            or self._agenda.hinted
            or self._agenda.look_is_due
            or self._in_flight.room == 0
        ):
            return False
        served = await self._start_all(rest, self._answered)
        self._agenda.found(served.started)
        self._log.debug("poll.continued", started=served.started, rest=len(self._rest))
        return served.left

    async def _serve_rest(self, served: _Served) -> None:
        """Go on until everything that was found is served, or the slots are used up: there is no other poll."""
        while (served.left or served.cut_off) and self._in_flight.free != 0:
            pause = self._pause() or (RUN_ONCE_PAUSE if self._may_claim() is not None else 0.0)
            if pause:
                await self._sleep(pause)
            elif not self._in_flight.room:
                await self._in_flight.wait_for_change()
            else:
                served = await self._serve(await self._questions.ask(lead=self._leads.longest, limit=None))

    async def _ask_for_nothing(self, withheld: str | None) -> None:
        self._in_flight.want(wanted=True)
        self._agenda.rest()
        if self._agenda.question_is_due:
            await self._questions.ask(lead=self._leads.longest, limit=0)
            self._agenda.asked_for_nothing()
            self._log.debug("poll.done", found=0, in_flight=len(self._in_flight), withheld=withheld)

    async def _ask_for_startable(self) -> tuple[list[FlowRun], int | None]:
        """The runs that may be claimed now, asking no more of the server than is needed; and the limit set to them.

        The server puts priority before time and cuts the answer off, so runs that are not due yet can push out runs
        that are: an answer with any of those is no answer to what can start (PROTOCOL 2.3).
        """
        if self._agenda.look_is_due:
            runs = await self._questions.ask(lead=self._leads.longest + self._agenda.reach, limit=None)
            self._agenda.looked()
            ahead = later(runs, now=self._now(), leads=self._leads)
            self._agenda.note(ahead)
            if not ahead:
                return runs, None
        enough = self._in_flight.room + SPARE
        limit = None if self._judged or self._run_once or enough > MOST_LIMITED else enough
        return await self._questions.ask(lead=self._leads.longest, limit=limit), limit

    async def _serve(self, runs: Sequence[FlowRun]) -> _Served:
        """Skip and start what is to be, on an answer that has just come."""
        answered = self._now()
        await self._marking.look(runs, now=answered)
        latest, stand_in = None, True
        if self._latest is not None:
            latest = await self._latest.of(runs)
            if self._older(answered, SKIPPING_AGE):
                # What has been learnt about the series still holds, what the runs' states were does not.
                runs, stand_in = await self._questions.ask(lead=self._leads.longest, limit=None), False
                answered = self._now()
        ahead = later(runs, now=self._now(), leads=self._leads)
        self._agenda.note(ahead)
        self._idle = len(runs) == len(ahead)
        todo = plan(runs, now=self._now(), max_late=self._max_late, latest=latest, stand_in=stand_in)
        progress = await self._skip_some(() if self._starved else todo.skips, answered)
        served = await self._start_all(todo.starts, answered)
        self._starved = served.cut_off and not served.started
        self._agenda.found(served.started)
        self._log.debug(
            "poll.done",
            ahead=self._ahead,
            found=len(runs),
            started=served.started,
            in_flight=len(self._in_flight),
            starting=self._in_flight.starting,
            skipped=len(self._tried),
            cut_off=served.cut_off,
        )
        return replace(served, skipped=progress)

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

    async def _start_all(self, flow_runs: Sequence[FlowRun], answered: datetime) -> _Served:
        """Start what can be started on an answer."""
        started = 0
        for position, flow_run in enumerate(flow_runs):
            if not self._is_claimable(flow_run):
                continue
            if self._is_full():
                self._rest, self._answered = flow_runs[position:], answered
                return _Served(started, left=True)
            if self._older(answered, LONGEST_AGE):
                return _Served(started, cut_off=True)
            if not await self._still_waits(flow_run):
                continue
            await self._start(flow_run).claim_decided()
            started += 1
        return _Served(started)

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
