"""The poll's question: which runs of ours may be claimed, and is this one still as the answer had it.

Owns the words to the server, what is said when it refuses the question, and how old an answer is. Does not own when to
ask (`poller`), and what becomes of the runs (`serving`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotFound
from worker.api.models import FlowRun, StateType, WorkQueue
from worker.runs.together import together

# An answer whose question was put longer ago than this does not say that a run is still to be run: another worker may
# have run it meanwhile, from beginning to end, and the server lets even a finished run be claimed (PROTOCOL 2.6).
FRESH = timedelta(seconds=0.15)


class Questions:
    """Asks for the scheduled runs of a pool, or of some of its queues; one for the daemon's life.

    `answered` is told when runs have been listed, or one was read: they were there before whatever is read from then on.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        pool: str,
        work_queues: Sequence[str],
        answered: Callable[[], None],
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._pool = pool
        self._work_queues = tuple(work_queues)
        self._answered = answered
        self._now = now
        self._refused: str | None = None
        self._asked = now()
        self._log = structlog.get_logger()
        self.last_answered: datetime | None = None

    async def ask(self, *, lead: timedelta, limit: int | None) -> list[FlowRun]:
        """The runs of ours that are due by now and this much later, in the server's order; at most `limit`."""
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
        self.last_answered = self._now()
        self._answered()
        return runs

    @property
    def refused(self) -> bool:
        """Whether the last question was not answered but refused: the pool, or a queue, does not exist."""
        return self._refused is not None

    async def look_at(self, flow_run_id: UUID) -> tuple[FlowRun, list[WorkQueue]] | None:
        """One run, and our queues, as they are now; None when they cannot be read, or not any more, or not yet."""
        asked = self._now()
        try:
            found = await together(
                partial(self._client.read_flow_run, flow_run_id, max_tries=1),
                partial(self._client.first_work_queues, self._pool, self._work_queues, max_tries=1),
            )
        except ApiError as error:
            self._log.debug("poll.must_ask", flow_run_id=str(flow_run_id), reason=str(error))
            return None
        self._asked = asked
        self._answered()
        return found

    async def still_waits(self, flow_run: FlowRun) -> bool:
        """Whether the run is still as the last answer has it, which is not asked while that answer is fresh."""
        if self._now() - self._asked <= FRESH:
            return True
        try:
            current = await self._client.read_flow_run(flow_run.id)
        except ApiError as error:
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=str(error))
            return False
        reason = changed(flow_run, current)
        if reason is not None:
            self._log.debug("flow_run.left", flow_run_id=str(flow_run.id), reason=reason)
        return reason is None


def changed(polled: FlowRun, current: FlowRun) -> str | None:
    """What has become of a run since it was handed out; None when it still waits as it did, marked as Late or not."""
    if current.state_type is not StateType.SCHEDULED:
        return f"it is {current.state_name} by now"
    if current.state_id != polled.state_id and (
        current.next_scheduled_start_time != polled.next_scheduled_start_time
    ):
        return "it is scheduled for another time by now"
    return None
