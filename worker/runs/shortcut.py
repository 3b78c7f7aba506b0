"""The short way to a run that was heard of: it is read, instead of asking for all that may be claimed.

The question for runs makes a server write three times, just when the run is claimed and begins (PROTOCOL 2.3). Of one
run in a pool and a queue that hold nothing back, reading the run, its queue and the pool tells as much, and writes
nothing.

Owns what was heard of since the last answer, and the judgement whether the short way will do. Does not own hearing
(`worker.api.events`), the words to the server (`questions`), and starting the run (`serving`).
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from uuid import UUID

import anyio
import structlog

from worker.api.models import FlowRun, StateType, WorkPool, WorkQueue
from worker.runs.questions import Questions

# How long reading may take, in seconds; after that the question is put as ever.
LONGEST = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """A run that was heard of, and the queue it was said to be in; None for what was not told."""

    flow_run_id: UUID | None
    work_queue_id: UUID | None


def must_ask(
    flow_run: FlowRun, queue: WorkQueue, pool: WorkPool | None, *, work_queues: Collection[str]
) -> str | None:
    """Why only the server can say whether this run is handed out; None when what was read says that it is.

    `work_queues` are the names of those that are served, all of the pool if there are none. A limit of the pool or the
    queue counts runs of other workers, too.
    """
    if flow_run.state_type is not StateType.SCHEDULED:
        return f"its state is {flow_run.state_name}"
    if pool is None:
        return "its deployment and pool have not been read"
    if flow_run.work_pool_id != pool.id or flow_run.work_queue_id != queue.id:
        return "it is in another pool or queue"
    if work_queues and queue.name not in work_queues:
        return "its queue is not served here"
    if pool.is_paused or queue.is_paused:
        return "its pool or its queue is paused"
    if pool.concurrency_limit is not None or queue.concurrency_limit is not None:
        return "its pool or its queue has a limit"
    return None


class Shortcut:
    """What was heard of since the last answer; one for the daemon's life.

    `pool_of` gives the pool as it has been read ahead for a run, `settled` waits until nothing is being read ahead.
    """

    def __init__(
        self,
        *,
        questions: Questions,
        work_queues: Collection[str],
        pool_of: Callable[[UUID], WorkPool | None],
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._questions = questions
        self._work_queues = frozenset(work_queues)
        self._pool_of = pool_of
        self._settled = settled
        self._told: frozenset[Told] = frozenset()
        # Whether no run was left waiting by the last answer.
        self._clear = False
        self._log = structlog.get_logger()

    def heard(self, flow_run_id: UUID | None, work_queue_id: UUID | None) -> None:
        """A run may have become claimable; None: any may have."""
        self._told |= {Told(flow_run_id, work_queue_id)}

    def asked(self) -> None:
        """All that has been heard of is in the answer to the question that is put now."""
        self._told, self._clear = frozenset(), False

    def answered(self, *, clear: bool) -> None:
        """The answer has been served. `clear`: no run that could be claimed was left waiting."""
        self._clear = clear

    def taken(self) -> None:
        """The run that was found is about to be claimed."""
        self._told = frozenset()

    async def find(self) -> FlowRun | None:
        """The one run that has been heard of, if nothing else waits and it may be claimed; None: ask."""
        if not self._clear or len(self._told) != 1:
            return None
        told = self._told
        (one,) = told
        if one.flow_run_id is None or one.work_queue_id is None:
            return None
        found = None
        with anyio.move_on_after(LONGEST):
            found = await self._questions.look_at(one.flow_run_id, one.work_queue_id)
            await self._settled()
        if found is None or self._told != told:
            return None
        reason = must_ask(*found, self._pool_of(one.flow_run_id), work_queues=self._work_queues)
        if reason is not None:
            self._log.debug("poll.must_ask", flow_run_id=str(one.flow_run_id), reason=reason)
            return None
        return found[0]
