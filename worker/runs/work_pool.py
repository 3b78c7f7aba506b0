"""The work pool on the server: found or created, repaired when empty, kept alive by heartbeats.

Owns the latest pool as the server described it. Which runs to take from it is `serving`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Conflict, InvalidRequest, NotFound, Unauthorized
from worker.api.models import WorkPool
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE

PROCESS = "process"


class PoolRefused(Exception):
    """The daemon cannot serve this pool; the message says why and what to do. Ends the daemon."""


class PoolMissing(Exception):
    """The pool does not exist and may not be created; it may still appear."""


class WorkPoolKeeper:
    """Keeps one pool; lives as long as the daemon.

    `current` is the pool as last read. `ensure` is called at start, `beat_once` by the daemon's loop every
    `heartbeat_interval` seconds (PROTOCOL 2.2), `read` for each run, or each few that start in a row
    (`readings`), so that a changed template holds from the next ones on.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        name: str,
        worker_name: str,
        work_queues: Sequence[str],
        create: bool,
        base_job_template: Mapping[str, Any] | None,
        heartbeat_interval: float,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._name = name
        self._worker_name = worker_name
        self._work_queues = tuple(work_queues)
        self._create = create
        self._base_job_template = base_job_template
        self.heartbeat_interval = heartbeat_interval
        self._log = structlog.get_logger()
        self._paused: bool | None = None
        self._paused_queues: frozenset[str] = frozenset()
        self._now = now
        self._read_just_now = False
        self.last_beat: datetime | None = None
        self.worker_id: str | None = None
        self.current: WorkPool | None = None

    async def ensure(self) -> WorkPool:
        """Find the pool, or create it, and give it a template if it has none.

        Raises PoolRefused when it is of another type or the server does not allow it, PoolMissing when it
        does not exist and `create` is off.
        """
        try:
            pool = await self._find_or_create()
            pool = await self._with_template(pool)
        except InvalidRequest as error:
            raise self._refused(error) from error
        if pool.type != PROCESS:
            msg = (
                f"the work pool {self._name!r} is of type {pool.type!r}, and headrace runs 'process' pools only;"
                " choose another pool with --pool, or start the worker made for that type"
            )
            raise PoolRefused(msg)
        self._remember(pool)
        self._read_just_now = True
        return pool

    async def read(self) -> WorkPool:
        """The pool as it is now, else as it was last seen if it is gone meanwhile."""
        try:
            self._remember(await self._client.read_work_pool(self._name))
        except NotFound:
            if self.current is None:
                raise
        return self.known

    @property
    def known(self) -> WorkPool:
        """The pool as last read; only once `ensure` has been through."""
        if self.current is None:
            msg = f"the work pool {self._name!r} has not been read yet"
            raise RuntimeError(msg)
        return self.current

    async def beat_once(self) -> float:
        """Send one heartbeat and read the pool, unless `ensure` has just done so; returns the seconds until the next."""
        try:
            await self._beat()
        except NotFound:
            # Somebody deleted the pool while we run: put it back, as at start.
            self._log.warning("work_pool.missing", work_pool=self._name, will_create=self._create)
            if self._create:
                await self.ensure()
                await self._beat()
        return self.heartbeat_interval

    def _refused(self, error: ApiError) -> PoolRefused:
        return PoolRefused(f"the server refused the work pool {self._name!r}: {error}")

    async def _beat(self) -> None:
        worker_id = await self._client.send_heartbeat(
            self._name, self._worker_name, max(1, int(self.heartbeat_interval))
        )
        self.worker_id = worker_id or self.worker_id
        self.last_beat = self._now()
        if not self._read_just_now:
            self._remember(await self._client.read_work_pool(self._name))
        self._read_just_now = False
        await self._look_at_queues()

    async def _find_or_create(self) -> WorkPool:
        try:
            pool = await self._client.read_work_pool(self._name)
        except NotFound:
            if not self._create:
                msg = f"the work pool {self._name!r} does not exist, and --no-create-pool-if-not-found is set"
                raise PoolMissing(msg) from None
            return await self._create_pool()
        if self._base_job_template is not None:
            self._log.warning(
                "work_pool.template_ignored",
                work_pool=self._name,
                reason="--base-job-template is used only when the pool is created, and it exists already",
            )
        return pool

    async def _create_pool(self) -> WorkPool:
        template = self._base_job_template or DEFAULT_BASE_JOB_TEMPLATE
        try:
            pool = await self._client.create_work_pool(self._name, PROCESS, template)
        except Conflict:
            # Another worker was faster (PROTOCOL 2.1).
            return await self._client.read_work_pool(self._name)
        except Unauthorized as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            # Not our credentials: names that begin with "prefect" are the server's own (PROTOCOL 2.1).
            raise self._refused(error) from error
        self._log.info("work_pool.created", work_pool=self._name)
        return pool

    async def _with_template(self, pool: WorkPool) -> WorkPool:
        """The server leaves a pool that was created without a template empty (PROTOCOL 2.1)."""
        if pool.base_job_template or pool.type != PROCESS:
            return pool
        try:
            await self._client.update_work_pool(pool.name, base_job_template=DEFAULT_BASE_JOB_TEMPLATE)
        except Unauthorized:
            raise
        except ApiError as error:
            # The resolver falls back to the same default, so runs are not affected.
            self._log.warning("work_pool.template_not_saved", work_pool=pool.name, reason=str(error))
            return pool
        self._log.info("work_pool.template_repaired", work_pool=pool.name)
        return await self._client.read_work_pool(pool.name)

    def _remember(self, pool: WorkPool) -> None:
        self.current = pool
        if pool.is_paused != self._paused:
            if pool.is_paused:
                self._log.warning(
                    "work_pool.paused", work_pool=pool.name, hint="no run starts until it is resumed"
                )
            elif self._paused:
                self._log.info("work_pool.resumed", work_pool=pool.name)
            self._paused = pool.is_paused

    async def _look_at_queues(self) -> None:
        """Say once that a queue we serve is paused, and once that it is not any more."""
        if not self._work_queues:
            return
        queues = await self._client.filter_work_queues(self._name, self._work_queues)
        paused = frozenset(queue.name for queue in queues if queue.is_paused)
        for name in sorted(paused - self._paused_queues):
            self._log.warning("work_queue.paused", work_queue=name, hint="its runs wait until it is resumed")
        for name in sorted(self._paused_queues - paused):
            self._log.info("work_queue.resumed", work_queue=name)
        self._paused_queues = paused
