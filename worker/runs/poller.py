"""Finds due runs and starts an execution for each that can start now.

Claims happen one after the other, in the server's order, right after the answer they come from: an old
answer could re-run a finished run (PROTOCOL 2.6). Runs are never held back in a queue here; what cannot
start now stays Scheduled, for this daemon later or for another one now.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import FlowRun, StateType
from worker.runs.conclusion import IN_PROCESS_RETRY
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight

# A poll answer older than this says nothing any more: a run on it may have been run meanwhile.
LONGEST_AGE = timedelta(seconds=5)
AWAITING_SLOT = "AwaitingConcurrencySlot"


class Poller:
    """Asks, and hands each claimable run to `start`, waiting until its claim is decided.

    `interval` is PREFECT_WORKER_QUERY_SECONDS, spread by 30 % either way so that daemons do not ask in
    step (PROTOCOL 8); `prefetch` seconds is how far ahead of its due time a run may be started.
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
        self._log = structlog.get_logger()
        self._refused: str | None = None
        self.last_polled: datetime | None = None

    async def poll_once(self) -> float:
        """Ask once and claim what can start; returns the seconds until the next question.

        Without a free slot the question is still put, for no runs at all: it keeps the queues READY
        (PROTOCOL 2.2).
        """
        full = self._in_flight.free == 0
        self._in_flight.want(wanted=full)
        runs = await self._ask(limit=0 if full else None)
        self.last_polled = answered = self._now()
        started = 0
        for flow_run in runs:
            if self._in_flight.free == 0:
                self._in_flight.want(wanted=True)
                break
            if self._now() - answered > LONGEST_AGE:
                self._log.debug("poll.outdated", found=len(runs), started=started)
                return 0.0
            reason = unclaimable(flow_run, now=self._now(), in_flight=flow_run.id in self._in_flight)
            if reason is not None:
                self._log.debug("flow_run.skipped", flow_run_id=str(flow_run.id), reason=reason)
                if flow_run.id in self._in_flight:
                    self._in_flight.want(wanted=True)
                continue
            execution = self._start(flow_run)
            await execution.claim_decided()
            started += 1
        self._log.debug("poll.done", found=len(runs), started=started, in_flight=len(self._in_flight))
        return self._interval * (0.7 + 0.6 * self._random())

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
