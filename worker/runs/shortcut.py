"""The short way to a run that was heard of: it is read, instead of asking for all that may be claimed.

The question for runs makes a server write three times, just when the run is claimed and begins (PROTOCOL 2.3). Of one
run in a pool that holds nothing back, reading the run, the queues and the pool tells as much, and writes nothing.

Owns what was heard of since the last answer, and the judgement whether the short way will do. Does not own hearing
(`worker.api.events`), the words to the server (`questions`), and starting the run (`serving`).
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import anyio
import structlog

from worker.api.models import FlowRun, StateType, WorkPool, WorkQueue
from worker.runs.questions import Questions

# How long reading may take, in seconds; after that the question is put as ever.
LONGEST = 1.0
# For how long it is not tried again where something is held back, in seconds.
PAUSE = 30.0


def held_back(pool: WorkPool, queues: Sequence[WorkQueue]) -> str | None:
    """What keeps runs of this pool, or of these queues of it, from being handed out; None when nothing does.

    A limit counts other workers' runs, too, and a run that waits for it goes before others.
    """
    for kind, one in [("pool", pool), *(("queue", queue) for queue in queues)]:
        if one.is_paused:
            return f"the {kind} {one.name!r} is paused"
        if one.concurrency_limit is not None:
            return f"the {kind} {one.name!r} has a limit"
    return None


def must_ask(flow_run: FlowRun, pool: WorkPool | None, queues: Sequence[WorkQueue]) -> str | None:
    """Why only the server can say whether this run is handed out; None when what was read says that it is.

    `queues` are those that are served, and hold nothing back, and neither does the pool.
    """
    if flow_run.state_type is not StateType.SCHEDULED:
        return f"its state is {flow_run.state_name}"
    if pool is None:
        return "its deployment and pool have not been read"
    if flow_run.work_pool_id != pool.id or all(flow_run.work_queue_id != queue.id for queue in queues):
        return "it is in another pool or queue"
    return None


def as_listed(flow_run: FlowRun, pool: WorkPool) -> FlowRun:
    """A run that was read, in the form in which the question lists it: what is templated from it is the same."""
    raw = {**flow_run.raw, "state": None}
    for name in ("work_pool_id", "work_pool_name"):
        raw.pop(name, None)
    if flow_run.work_queue_id == pool.default_queue_id:
        raw["work_queue_name"] = None
    return FlowRun.read(raw)


class Shortcut:
    """What was heard of since the last answer; one for the daemon's life.

    `enabled`: the server is one of which the above is known. `pool` is the pool as it was last read, `pool_of` as it has
    been read ahead for a run; `settled` waits until nothing is being read ahead. `monotonic` is a clock in seconds.
    """

    def __init__(
        self,
        *,
        questions: Questions,
        enabled: bool,
        pool: Callable[[], WorkPool | None],
        pool_of: Callable[[UUID], WorkPool | None],
        settled: Callable[[], Awaitable[None]],
        monotonic: Callable[[], float],
    ) -> None:
        self._questions = questions
        self._enabled = enabled
        self._pool = pool
        self._pool_of = pool_of
        self._settled = settled
        self._monotonic = monotonic
        # The one run that was heard of, and whether there may be others.
        self._told: UUID | None = None
        self._others = False
        # Whether no run was left waiting by the last answer.
        self._clear = False
        self._not_before = float("-inf")
        self._log = structlog.get_logger()

    def heard(self, flow_run_id: UUID | None) -> None:
        """A run may have become claimable, and is being read ahead of; None: any may have."""
        self._others = self._others or flow_run_id is None or self._told not in {None, flow_run_id}
        self._told = self._told or flow_run_id

    def asked(self) -> None:
        """All that has been heard of is in the answer to the question that is put now."""
        self._told, self._others, self._clear = None, False, False

    def answered(self, *, clear: bool) -> None:
        """The answer has been served. `clear`: no run that could be claimed was left waiting."""
        self._clear = clear

    def taken(self) -> None:
        """The run that was found is about to be claimed."""
        self._told = None

    async def find(self) -> FlowRun | None:
        """The one run that has been heard of, if nothing else waits and it would be handed out; None: ask."""
        flow_run_id, pool = self._told, self._pool()
        if not (self._enabled and self._clear) or self._others or flow_run_id is None or pool is None:
            return None
        if self._monotonic() < self._not_before or held_back(pool, ()) is not None:
            return None
        found = None
        with anyio.move_on_after(LONGEST) as limit:
            found = await self._questions.look_at(flow_run_id)
            await self._settled()
        if found is None or limit.cancelled_caught or self._others:
            return None
        flow_run, queues = found
        pool = self._pool_of(flow_run_id)
        reason = held_back(pool, queues) if pool is not None else None
        if reason is not None:
            self._not_before = self._monotonic() + PAUSE
        reason = reason or must_ask(flow_run, pool, queues)
        if pool is None or reason is not None:
            self._log.debug("poll.must_ask", flow_run_id=str(flow_run_id), reason=reason)
            return None
        return as_listed(flow_run, pool)
