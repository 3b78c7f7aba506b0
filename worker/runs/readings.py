"""What a run is prepared from as the server has it: its deployment, its flow and its pool.

Owns reading them, reading them ahead, and reading them once for runs that are started in a row. Reading ahead is from the
moment the server tells of a new run, before it is asked for the runs that may be claimed, and so no sooner than the run was
made; it is for that run alone and for a moment. What is read for a run of one answer serves the others of that answer, for a
moment, too: they were there before. Does not own what follows from it (`preparation`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from uuid import UUID

import anyio
import structlog

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import Deployment, Flow, FlowRun, WorkPool
from worker.runs.together import together

# How long after it was asked for something that was read ahead still counts, in seconds.
LONGEST_AHEAD = 1.0
# So many runs at once, at most.
MOST_AHEAD = 8
# How old the question for one run may be when another run needs the same, in seconds.
LONGEST_SHARED = 2.0
# How many flows are remembered; the oldest is read again.
MOST_FLOWS = 1_000


class DeploymentGone(Exception):
    """The run's deployment was deleted between claim and launch."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What belongs to one run; `deployment` and `flow` are None for a run without, or whose flow was deleted."""

    deployment: Deployment | None
    flow: Flow | None
    pool: WorkPool


class PoolSource(Protocol):
    """The pool that a run is in, as it is now."""

    @property
    def worker_id(self) -> str | None:
        """The id of this worker, where the server tells one."""
        ...

    async def read(self) -> WorkPool:
        """Read the pool."""
        ...


@dataclass(slots=True, eq=False)
class _Known:
    """What is being read, since when, after how many changes of deployments, and what came of it."""

    since: float
    changes: int
    deployment: Deployment | None = None
    pool: WorkPool | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


class Readings:
    """Reads; one for the daemon's life. `monotonic` is a clock in seconds."""

    def __init__(
        self,
        *,
        client: PrefectClient,
        pool: PoolSource,
        monotonic: Callable[[], float],
    ) -> None:
        self._client = client
        self._pool = pool
        self._monotonic = monotonic
        self._flows: dict[UUID, Flow] = {}
        self._ahead: dict[UUID, _Known] = {}
        # By deployment: what was read for runs of the latest answer.
        self._shared: dict[UUID, _Known] = {}
        self._changes = 0
        self._log = structlog.get_logger()

    @property
    def worker_id(self) -> str | None:
        """The id of this worker, where the server tells one."""
        return self._pool.worker_id

    async def read_ahead(self, flow_run_id: UUID, deployment_id: UUID) -> None:
        """The server has just told of this run, which may soon be prepared here.

        What cannot be read now is read when it is needed, and its trouble told then.
        """
        now = self._monotonic()
        self._ahead = {run: known for run, known in self._ahead.items() if now - known.since <= LONGEST_AHEAD}
        # Told again, it is another time that it may be started: what was read for the one before counts no more.
        if self._ahead.pop(flow_run_id, None) is None and len(self._ahead) >= MOST_AHEAD:
            return
        known = self._ahead[flow_run_id] = _Known(now, self._changes)
        deployment = partial(self._client.read_deployment, deployment_id, max_tries=1)
        try:
            with anyio.move_on_after(LONGEST_AHEAD):
                known.deployment, known.pool = await together(deployment, self._pool.read)
        except Exception as error:  # noqa: BLE001 - whatever it is, `of` meets it again where it is the run's alone
            self._log.debug(
                "flow_run.not_read_ahead",
                flow_run_id=str(flow_run_id),
                reason=str(error) or type(error).__name__,
            )
        finally:
            known.done.set()

    async def settled(self) -> None:
        """Wait until nothing is being read ahead: a second at most."""
        for known in tuple(self._ahead.values()):
            await known.done.wait()

    def pool_ahead(self, flow_run_id: UUID) -> WorkPool | None:
        """The pool as it was just read for this run, together with its deployment; None when either is not, or is too old."""
        known = self._ahead.get(flow_run_id)
        if known is None or known.deployment is None or not self._fresh(known, LONGEST_AHEAD):
            return None
        return known.pool

    def answered(self) -> None:
        """The server has just listed runs: what is read for them from now on is younger than all of these."""
        self._shared = {}

    def forget(self) -> None:
        """A deployment has been changed: what was read before counts for no run that is claimed from now on."""
        self._changes += 1
        self._ahead, self._shared = {}, {}

    async def of(self, flow_run: FlowRun) -> Reading:
        """What belongs to this run, now or a moment ago. Raises DeploymentGone, and ApiError."""
        ahead = self._ahead.pop(flow_run.id, None)
        if ahead is not None and (reading := await self._reuse(ahead, flow_run, LONGEST_AHEAD)) is not None:
            return reading
        if flow_run.deployment_id is None:
            return await self._read(flow_run)
        # Whoever finds nothing that can be shared reads for the others, too; if that fails, one of these does.
        while (shared := self._shared.get(flow_run.deployment_id)) is not None and self._young(shared):
            if (reading := await self._reuse(shared, flow_run)) is not None:
                return reading
            if self._shared.get(flow_run.deployment_id) is shared:
                break
        shared = self._shared[flow_run.deployment_id] = _Known(self._monotonic(), self._changes)
        try:
            reading = await self._read(flow_run)
            shared.deployment, shared.pool = reading.deployment, reading.pool
        finally:
            shared.done.set()
        return reading

    def _young(self, known: _Known) -> bool:
        return self._monotonic() - known.since <= LONGEST_SHARED

    def _fresh(self, known: _Known, longest: float) -> bool:
        return self._monotonic() - known.since <= longest and known.changes == self._changes

    async def _read(self, flow_run: FlowRun) -> Reading:
        return Reading(
            *await together(
                partial(self._deployment, flow_run), partial(self._flow, flow_run), self._pool.read
            )
        )

    async def _reuse(self, known: _Known, flow_run: FlowRun, longest: float = float("inf")) -> Reading | None:
        """The run's reading from what is known; None when that failed, is too old by then, or another deployment's."""
        await known.done.wait()
        its_own = known.deployment is not None and known.deployment.id == flow_run.deployment_id
        if not (self._fresh(known, longest) and its_own and known.pool is not None):
            return None
        return Reading(known.deployment, await self._flow(flow_run), known.pool)

    async def _deployment(self, flow_run: FlowRun) -> Deployment | None:
        if flow_run.deployment_id is None:
            return None
        try:
            return await self._client.read_deployment(flow_run.deployment_id)
        except NotFound:
            raise DeploymentGone(str(flow_run.deployment_id)) from None

    async def _flow(self, flow_run: FlowRun) -> Flow | None:
        """A flow's name and tags; they do not change once it is registered, so they are read once."""
        flow_id = flow_run.flow_id
        if flow_id is None:
            return None
        if (known := self._flows.get(flow_id)) is not None:
            return known
        try:
            flow = self._flows[flow_id] = await self._client.read_flow(flow_id)
        except NotFound:
            return None
        if len(self._flows) > MOST_FLOWS:
            del self._flows[next(iter(self._flows))]
        return flow
