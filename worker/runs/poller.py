"""Finds due runs and starts an execution for each that can start now.

Claims happen one after the other, in the server's order, right after the answer they come from: an old
answer could re-run a finished run (PROTOCOL 2.6). Runs are never held back in a queue here; what cannot
start now stays Scheduled, for this daemon later or for another one now. Runs that are not worth running any
more are skipped; which these are is `lateness`' judgement.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import anyio
import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotFound
from worker.api.models import FlowRun, StateType
from worker.runs.conclusion import IN_PROCESS_RETRY
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight
from worker.runs.lateness import AWAITING_SLOT, STANDING, Due, Series, Skip, all_due, latest_of_each, plan

# A poll answer older than this says nothing any more: a run on it may have been run meanwhile.
LONGEST_AGE = timedelta(seconds=5)
# How much of that, and how many runs, may go into skipping before the others are started. Skips come first: a
# skipped run holds its slots, here and of its deployment, only for a moment, a started one for as long as its flow
# takes, and while the deployment's are taken the server refuses every claim.
SKIPPING_AGE = timedelta(seconds=2)
MOST_SKIPS = 50
# How many seconds the server is asked for the latest runs of schedules: other runs are waiting.
LOOKUP_LIMIT = 20.0


class Poller:
    """Asks, and hands each claimable run to `start`, waiting until its claim is decided.

    `interval` is PREFECT_WORKER_QUERY_SECONDS, spread by 30 % either way so that daemons do not ask in
    step (PROTOCOL 8); `prefetch` seconds is how far ahead of its due time a run may be started. `max_late`
    (seconds, None for never) and `only_latest` say which runs of schedules are skipped instead.

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
        prefetch: float,
        interval: float,
        in_flight: InFlight,
        start: Callable[[FlowRun], Execution],
        now: Callable[[], datetime],
        random: Callable[[], float],
        max_late: float | None,
        only_latest: bool,
        skip: Callable[[FlowRun, str], Execution],
        may_claim: Callable[[], str | None],
    ) -> None:
        self._client = client
        self._pool = pool
        self._work_queues = tuple(work_queues)
        self._prefetch = timedelta(seconds=prefetch)
        self._interval = interval
        self._in_flight = in_flight
        self._start = start
        self._now = now
        self._random = random
        self._max_late = None if max_late is None else timedelta(seconds=max_late)
        self._only_latest = only_latest
        self._skip = skip
        self._may_claim = may_claim
        self._log = structlog.get_logger()
        self._refused: str | None = None
        self._latest_unknown = False
        self._tried: frozenset[UUID] = frozenset()
        # The last answer had grown too old before a run could be started: the next one is for starting only.
        self._starved = False
        self.last_polled: datetime | None = None

    async def poll_once(self) -> float:
        """Ask once, skip what has become too late, claim what can start; returns the seconds until the next question.

        Without a free slot, or when nothing may be claimed, the question is still put, for no runs at all: it
        keeps the queues READY (PROTOCOL 2.2).
        """
        withheld = self._may_claim()
        full = self._in_flight.free == 0
        self._in_flight.want(wanted=full)
        runs = await self._ask(limit=0 if full or withheld is not None else None)
        self.last_polled = answered = self._now()
        latest, stand_in = None, True
        if self._only_latest:
            latest = await self._latest(runs)
            if self._older(answered, SKIPPING_AGE):
                # What has been learnt about the series still holds, what the runs' states were does not.
                runs, stand_in = await self._ask(limit=None), False
                answered = self._now()
        todo = plan(runs, now=self._now(), max_late=self._max_late, latest=latest, stand_in=stand_in)
        progress = await self._skip_some(() if self._starved else todo.skips, answered)
        started, cut_off = await self._start_all(todo.starts, answered)
        self._starved = cut_off and not started
        self._log.debug(
            "poll.done",
            found=len(runs),
            started=started,
            in_flight=len(self._in_flight),
            skipped=len(self._tried),
            cut_off=cut_off,
            withheld=withheld,
        )
        if progress or cut_off:
            return 0.0
        return self._interval * (0.7 + 0.6 * self._random())

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
            if self._is_claimable(one.flow_run):
                await self._skip(one.flow_run, one.message).claim_decided()
                tried.add(one.flow_run.id)
        progress = not tried <= self._tried
        self._tried = frozenset(tried)
        return progress

    async def _start_all(self, flow_runs: Sequence[FlowRun], answered: datetime) -> tuple[int, bool]:
        """Start what can be started on an answer; how many that were, and whether the answer has grown too old."""
        started = 0
        for flow_run in flow_runs:
            if self._is_full():
                break
            if self._older(answered, LONGEST_AGE):
                return started, True
            if self._is_claimable(flow_run):
                await self._start(flow_run).claim_decided()
                started += 1
        return started, False

    def _is_full(self) -> bool:
        """No slot is free for a run that could use it."""
        full = self._in_flight.free == 0
        if full:
            self._in_flight.want(wanted=True)
        return full

    def _is_claimable(self, flow_run: FlowRun) -> bool:
        in_flight = flow_run.id in self._in_flight
        reason = unclaimable(flow_run, now=self._now(), in_flight=in_flight)
        if reason is not None:
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=reason)
            if in_flight:
                self._in_flight.want(wanted=True)
        return reason is None

    async def _latest(self, flow_runs: Sequence[FlowRun]) -> dict[Series, Due]:
        """The latest run of each series with a missed one in this answer, begun already or not.

        When the server cannot tell, nothing is judged at first; when it still cannot, the answer's own latest are
        taken: better a run too many than none.
        """
        now = self._now()
        deadline = anyio.current_time() + LOOKUP_LIMIT
        latest = latest_of_each(one for one in all_due(flow_runs, now=now) if one.missed)
        sought, offset = set(latest), 0
        try:
            while sought:
                deployments = {series.deployment_id for series in sought}
                page = await self._client.flow_runs_due(deployments, STANDING, now, offset, deadline=deadline)
                if not page:
                    break
                found = {
                    series: one
                    for series, one in latest_of_each(all_due(page, now=now)).items()
                    if series in sought
                }
                latest = latest_of_each([*latest.values(), *found.values()])
                sought -= found.keys()
                narrowed = deployments != {series.deployment_id for series in sought}
                offset = 0 if narrowed else offset + len(page)
        except ApiError as error:
            if self._latest_unknown:
                return latest
            self._latest_unknown = True
            self._log.warning("poll.latest_unknown", reason=str(error))
            return {}
        self._latest_unknown = False
        return latest

    async def _ask(self, *, limit: int | None) -> list[FlowRun]:
        try:
            runs = await self._client.get_scheduled_flow_runs(
                self._pool, self._work_queues, self._now() + self._prefetch, limit=limit
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
            return []
        if self._refused is not None:
            self._log.info("poll.accepted")
            self._refused = None
        return runs


def unclaimable(flow_run: FlowRun, *, now: datetime, in_flight: bool) -> str | None:
    """Why a run that was handed out must not be claimed now; None when it may be.

    A run that waits for a deployment's concurrency slot is claimed only once due, else every poll would
    ask in vain (PROTOCOL 2.6). Servers before 3.1.3 hand out runs whose live process waits to retry
    (PROTOCOL 9).
    """
    if in_flight:
        return "its previous attempt is still ending here"
    if flow_run.state_type is not StateType.SCHEDULED:
        return f"its state is {flow_run.state_name}"
    if flow_run.retry_type == IN_PROCESS_RETRY:
        return "its own process will retry it"
    due = flow_run.next_scheduled_start_time
    if flow_run.state_name == AWAITING_SLOT and due is not None and due > now:
        return "it waits for a concurrency slot of its deployment"
    return None
