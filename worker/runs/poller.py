"""Finds due runs and starts an execution for each that can start now.

Claims happen one after the other, in the server's order, right after the answer they come from: an old
answer could re-run a finished run (PROTOCOL 2.6). Runs are never held back in a queue here; what cannot
start now stays Scheduled, for this daemon later or for another one now. Runs that are not worth running any
more are skipped; which these are is `lateness`' judgement. When to ask, and how early a run is claimed, is
`lookahead`'s.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotFound
from worker.api.models import FlowRun, StateType
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight
from worker.runs.lateness import Skip, plan
from worker.runs.latest_runs import LatestRuns
from worker.runs.lookahead import PAUSE_BEFORE_QUESTION, Agenda, Leads, later, unclaimable
from worker.runs.wake import Wake

# A poll answer older than this says nothing any more.
LONGEST_AGE = timedelta(seconds=5)
# Nor does one whose question was put longer ago than this say that a run is still to be run: another worker may have run
# it meanwhile, from beginning to end, and the server lets even a finished run be claimed (PROTOCOL 2.6).
FRESH = timedelta(seconds=0.15)
# How much of that, and how many runs, may go into skipping before the others are started. Skips come first: a
# skipped run holds its slots, here and of its deployment, only for a moment, a started one for as long as its flow
# takes, and while the deployment's are taken the server refuses every claim.
SKIPPING_AGE = timedelta(seconds=2)
MOST_SKIPS = 50
# How many more runs are asked for than there is room for: some claims are lost to other workers. A server refuses a
# limit above its own (200 unless configured), so a large one is left to it.
SPARE = 2
MOST_LIMITED = 50


@dataclass(frozen=True, slots=True)
class _Served:
    """What became of an answer: runs started, whether it grew too old first, and whether room ran out first."""

    started: int
    cut_off: bool = False
    left: bool = False


class Poller:
    """Asks, and hands each claimable run to `start`, waiting until its claim is decided.

    `agenda` says when to ask, `leads` how long before its due time a run is claimed. `max_late` (seconds, None
    for never) and `only_latest` say which runs of schedules are skipped instead. With `run_once` one step serves
    all that is found. `wake` is for the loop that calls `poll_once`: rung when the next question cannot wait.

    `skip` starts an execution that claims the run and reports it Cancelled with this message; its claim is
    decided when it is over, and its slots (here and of its deployment) are free again. `may_claim` is asked
    before each question: None, or why nothing is to be claimed now.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        pool: str,
        work_queues: Sequence[str],
        agenda: Agenda,
        leads: Leads,
        in_flight: InFlight,
        wake: Wake,
        start: Callable[[FlowRun], Execution],
        now: Callable[[], datetime],
        max_late: float | None,
        only_latest: bool,
        skip: Callable[[FlowRun, str], Execution],
        may_claim: Callable[[], str | None],
        run_once: bool = False,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._client = client
        self._pool = pool
        self._work_queues = tuple(work_queues)
        self._agenda = agenda
        self._leads = leads
        self._in_flight = in_flight
        self._wake = wake
        self._start = start
        self._now = now
        self._max_late = None if max_late is None else timedelta(seconds=max_late)
        self._latest = LatestRuns(client=client, now=now) if only_latest else None
        self._skip = skip
        self._may_claim = may_claim
        self._sleep = sleep
        self._run_once = run_once
        self._log = structlog.get_logger()
        self._refused: str | None = None
        self._tried: frozenset[UUID] = frozenset()
        # The last answer had grown too old before a run could be started: the next one is for starting only.
        self._starved = False
        # Whether the question was due by the interval, for the log.
        self._ahead = True
        self._asked = now()
        self.last_polled: datetime | None = None

    def hint(self) -> None:
        """Somebody heard that a run of our pool may have become claimable, or may have missed hearing it."""
        if self._agenda.hint():
            self._wake.set()

    def expect_scheduler(self) -> None:
        """A deployment has changed: runs may be claimable now, and others when the server's scheduler made them."""
        self._agenda.expect()
        self.hint()

    async def poll_once(self) -> float:
        """Ask, skip what has become too late, claim what can start; returns the seconds until the next question.

        Without room for another run, or when nothing may be claimed, a question that is due is still put, for no
        runs at all: it keeps the queues READY (PROTOCOL 2.2).
        """
        if self._agenda.hinted:
            await self._sleep(PAUSE_BEFORE_QUESTION)
        self._agenda.begin(now=self._now())
        withheld = self._may_claim()
        if withheld is not None or self._in_flight.room == 0:
            await self._ask_for_nothing(withheld)
            return self._agenda.delay(now=self._now())
        self._in_flight.want(wanted=False)
        self._ahead = self._agenda.look_is_due
        answer, limit = await self._ask_for_startable()
        served = await self._serve(answer)
        if not served.cut_off and limit is not None and len(answer) >= limit and self._in_flight.room:
            # Nearly nothing of it could be claimed; there may be more behind it.
            served = await self._serve(await self._ask(lead=self._leads.longest, limit=None))
        while self._run_once and served.left and self._in_flight.free != 0:
            if not self._in_flight.room:
                await self._in_flight.wait_for_change()
                continue
            served = await self._serve(await self._ask(lead=self._leads.longest, limit=None))
        return 0.0 if served.cut_off else self._agenda.delay(now=self._now())

    async def _ask_for_nothing(self, withheld: str | None) -> None:
        self._in_flight.want(wanted=True)
        self._agenda.rest()
        if self._agenda.look_is_due:
            await self._ask(lead=self._leads.longest, limit=0)
            self._agenda.looked()
            self._log.debug("poll.done", found=0, in_flight=len(self._in_flight), withheld=withheld)

    async def _ask_for_startable(self) -> tuple[list[FlowRun], int | None]:
        """The runs that may be claimed now, asking no more of the server than is needed; and the limit set to them.

        The server puts priority before time and cuts the answer off, so runs that are not due yet can push out runs
        that are: an answer with any of those is no answer to what can start (PROTOCOL 2.3).
        """
        if self._agenda.look_is_due:
            runs = await self._ask(lead=self._leads.longest + self._agenda.reach, limit=None)
            self._agenda.looked()
            ahead = later(runs, now=self._now(), leads=self._leads)
            self._agenda.note(ahead)
            if not ahead:
                return runs, None
        judged = self._max_late is not None or self._latest is not None
        enough = self._in_flight.room + SPARE
        limit = None if judged or self._run_once or enough > MOST_LIMITED else enough
        return await self._ask(lead=self._leads.longest, limit=limit), limit

    async def _serve(self, runs: Sequence[FlowRun]) -> _Served:
        """Skip and start what is to be, on an answer that has just come."""
        answered = self._now()
        latest, stand_in = None, True
        if self._latest is not None:
            latest = await self._latest.of(runs)
            if self._older(answered, SKIPPING_AGE):
                # What has been learnt about the series still holds, what the runs' states were does not.
                runs, stand_in = await self._ask(lead=self._leads.longest, limit=None), False
                answered = self._now()
        self._agenda.note(later(runs, now=self._now(), leads=self._leads))
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
        return _Served(served.started, cut_off=served.cut_off or progress, left=served.left)

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
            if self._is_claimable(one.flow_run) and await self._is_unchanged(one.flow_run):
                await self._skip(one.flow_run, one.message).claim_decided()
                tried.add(one.flow_run.id)
        progress = not tried <= self._tried
        self._tried = frozenset(tried)
        return progress

    async def _start_all(self, flow_runs: Sequence[FlowRun], answered: datetime) -> _Served:
        """Start what can be started on an answer."""
        started = 0
        for flow_run in flow_runs:
            if not self._is_claimable(flow_run):
                continue
            if self._is_full():
                return _Served(started, left=True)
            if self._older(answered, LONGEST_AGE):
                return _Served(started, cut_off=True)
            if not await self._is_unchanged(flow_run):
                continue
            await self._start(flow_run).claim_decided()
            started += 1
        return _Served(started)

    def _is_full(self) -> bool:
        """There is no room for a run that could use it."""
        full = self._in_flight.room == 0
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

    async def _is_unchanged(self, flow_run: FlowRun) -> bool:
        """Whether the run is still as the answer has it, which is not asked while the answer is fresh."""
        if self._now() - self._asked <= FRESH:
            return True
        try:
            current = await self._client.read_flow_run(flow_run.id)
        except ApiError as error:
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=str(error))
            return False
        same = (current.state_type, current.state_id) == (StateType.SCHEDULED, flow_run.state_id)
        if not same:
            reason = f"it is {current.state_name} by now"
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=reason)
        # Recovery may have adopted its process while we asked.
        return same and flow_run.id not in self._in_flight

    async def _ask(self, *, lead: timedelta, limit: int | None) -> list[FlowRun]:
        """The runs of ours that are due by now and this much later, in the server's order."""
        self._asked = self._now()
        try:
            runs = await self._client.get_scheduled_flow_runs(
                self._pool, self._work_queues, self._now() + lead, limit=limit
            )
        except NotFound as error:
            # The pool, or one of the queues, does not exist. The server names it, and refuses the whole
            # question for one unknown queue (PROTOCOL 2.3).
            if self._refused != str(error):
                self._log.warning(
                    "poll.refused",
                    reason=str(error),
                    work_queues=list(self._work_queues),
                    hint="no run can be found until the pool and every --work-queue exist;"
                    " check their spelling or create them",
                )
            self._refused = str(error)
            runs = []
        else:
            if self._refused is not None:
                self._log.info("poll.accepted")
                self._refused = None
        self.last_polled = self._now()
        return runs
