"""Everything said to the Prefect server over REST, one small method per call.

Owns the client as the daemon uses it, and the calls about its work pool: the pool, its queues, this worker
(PROTOCOL 2.1, 2.2). The other calls are in one base class per noun: `run_endpoints.py`,
`definition_endpoints.py`, `record_endpoints.py`. How a call gets there, and again, is `transport.py`; what
an answer means is `errors.py`; nothing here decides what to do about a run.

Errors, all from `errors.py`:

    ApiError
    ├── NotFound            404: gone, or never there: settle without it
    │   └── MissingEndpoint the server is too old for this call: do without
    ├── Conflict            409: exists already: read it
    ├── Unauthorized        401, 403: at start fatal
    ├── InvalidRequest      other 4xx: trying again changes nothing
    ├── ServerFault         500: did not go away within a few tries
    ├── NotAnApi            a web page or redirect answered: at start fatal
    ├── Unreachable         only with a bound on tries or time: still no answer
    └── Misconfigured       no call can succeed with these settings: fatal

Without a bound a call waits out transient trouble for ever (server down, time-outs, 408, 429, 502,
503, 504, maintenance). Every method takes `max_tries` and `deadline` (`transport.Patience`) for those
who would rather do without. Cancelling the caller ends any wait at once.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, Unpack, cast

import anyio
import httpx
import structlog
from structlog.typing import FilteringBoundLogger

from worker.api.connection import path
from worker.api.definition_endpoints import DefinitionEndpoints
from worker.api.errors import InvalidRequest, MissingEndpoint, NotAnApi, NotFound
from worker.api.models import WorkPool, WorkQueue
from worker.api.record_endpoints import RecordEndpoints
from worker.api.run_endpoints import RunEndpoints
from worker.api.transport import Patience, Transport
from worker.settings import ApiSettings

# A Prefect server of 3.8.8 has about 550,000 container objects; this is 60 kB of JSON.
_MANY_LISTS = 20_000
# A block type that a server makes when it starts, unless told not to; and with a character escaped that need not be.
_BLOCK_TYPE = "Secret"
_ESCAPED = r"Sec\ret"


class PrefectClient(RunEndpoints, DefinitionEndpoints, RecordEndpoints):
    """The daemon's one client. Entered once in `daemon.py`; safe to use from any number of tasks."""

    def __init__(
        self,
        *,
        settings: ApiSettings,
        worker_name: str | None,
        random: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = anyio.current_time,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        logger: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        super().__init__(
            transport=Transport(
                settings=settings,
                random=random,
                transport=transport,
                sleep=sleep,
                now=now,
                monotonic=monotonic,
                log=logger,
                headers={"X-Prefect-Worker-Name": worker_name} if worker_name is not None else {},
            ),
            log=logger,
        )
        self._asks_for_worker_id = settings.is_cloud

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    @property
    def last_success(self) -> float | None:
        """When the server last gave a sound answer, on the `monotonic` clock; None before the first."""
        return self.transport.outage.last_success

    # work pools, queues and workers

    async def read_work_pool(self, name: str, **patience: Unpack[Patience]) -> WorkPool:
        """The work pool; `NotFound` if there is none, `NotAnApi` if the URL leads elsewhere."""
        operation = f"read work pool {name!r}"
        try:
            answer = await self._get(path("work_pools", name), operation, patience)
        except MissingEndpoint as error:  # every Prefect server has work pools
            reason = f"{self.url} has no work pools; check PREFECT_API_URL: does it end with /api?"
            raise NotAnApi(operation, reason, status=error.status) from error
        return self._read(WorkPool, answer, operation)

    async def work_pool_names(self, **patience: Unpack[Patience]) -> list[str]:
        """The names of the pools on the first page of all; enough to guess what was meant."""
        operation = "list work pools"
        answer = await self._post(path("work_pools", "filter"), operation, {}, patience)
        return [pool.name for pool in self._read_each(WorkPool, self._list(answer, operation), operation)]

    async def create_work_pool(
        self,
        name: str,
        type: str,  # noqa: A002 - the word of the API, as in its JSON
        base_job_template: Mapping[str, Any],
        **patience: Unpack[Patience],
    ) -> WorkPool:
        """Create a pool; `Conflict` if it exists, `Unauthorized` also for reserved names (`prefect…`)."""
        operation = f"create work pool {name!r}"
        body = {"name": name, "type": type, "base_job_template": dict(base_job_template)}
        answer = await self.transport.request(
            "POST",
            path("work_pools", ""),
            operation=operation,
            body=body,
            forbidden_is_final=True,
            patience=patience,
        )
        return self._read(WorkPool, answer, operation)

    async def update_work_pool(
        self, name: str, *, base_job_template: Mapping[str, Any], **patience: Unpack[Patience]
    ) -> None:
        """Replace the pool's template."""
        await self.transport.request(
            "PATCH",
            path("work_pools", name),
            operation=f"update work pool {name!r}",
            body={"base_job_template": dict(base_job_template)},
            forbidden_is_final=True,
            patience=patience,
        )

    async def send_heartbeat(
        self, pool: str, worker_name: str, interval_seconds: int, **patience: Unpack[Patience]
    ) -> str | None:
        """Say that the worker is alive; its id where the server tells one (Cloud, PROTOCOL 2.2)."""
        operation = f"send a heartbeat to work pool {pool!r}"
        where = path("work_pools", pool, "workers", "heartbeat")
        body: dict[str, Any] = {"name": worker_name, "heartbeat_interval_seconds": interval_seconds}
        if not self._asks_for_worker_id:
            await self._post(where, operation, body, patience)
            return None
        try:
            answer = await self._post(where, operation, {**body, "return_id": True}, patience)
        except InvalidRequest as error:
            if error.status != 422:  # noqa: PLR2004 - the code for an unknown field
                raise
            self._asks_for_worker_id = False
            await self._post(where, operation, body, patience)
            return None
        if not isinstance(answer, str):
            return None
        self.transport.attribute("X-Prefect-Worker-Id", answer)
        return answer

    async def delete_worker(self, pool: str, worker_name: str, **patience: Unpack[Patience]) -> None:
        """Sign the worker off; one that is not there is fine."""
        try:
            await self.transport.request(
                "DELETE",
                path("work_pools", pool, "workers", worker_name),
                operation=f"sign off worker {worker_name!r}",
                patience=patience,
            )
        except NotFound:
            return

    async def filter_work_queues(
        self, pool: str, names: Collection[str] = (), **patience: Unpack[Patience]
    ) -> list[WorkQueue]:
        """The pool's queues among `names`, all of them if that is empty."""
        operation = f"read work queues of work pool {pool!r}"
        where = path("work_pools", pool, "queues", "filter")
        return await self._pages(WorkQueue, where, operation, _named(names), patience)

    async def first_work_queues(
        self, pool: str, names: Collection[str] = (), **patience: Unpack[Patience]
    ) -> list[WorkQueue]:
        """The same, in one question: as many of them as the server gives at once (200 unless configured)."""
        operation = f"read work queues of work pool {pool!r}"
        where = path("work_pools", pool, "queues", "filter")
        answer = await self._post(where, operation, _named(names), patience)
        return self._read_each(WorkQueue, self._list(answer, operation), operation)

    # the server itself

    async def collect_garbage(self, **patience: Unpack[Patience]) -> None:
        """Bring the server's Python nearer to collecting its garbage in full; a question that changes nothing.

        The body has a field that the server does not know, and ignores: empty lists. A full collection takes place once
        so many container objects were made, and were not gone at once, that they are a quarter of those there are (`gc`
        in Python's documentation): some eight calls after the last one. Many small calls, because what is made in the
        rest of the call that it takes place in counts towards the next one.
        """
        no_lists: list[str] = []
        body: dict[str, Any] = {"flow_runs": {"id": {"any_": no_lists}}, "ignored": [no_lists] * _MANY_LISTS}
        await self._post(path("flow_runs", "count"), "have the server collect its garbage", body, patience)

    async def has_many_writers(self, **patience: Unpack[Patience]) -> bool | None:
        """Whether the server's database lets several transactions write at once, as PostgreSQL does; None: not known.

        A server does not tell its database, so it is asked a question whose answer depends on it: PostgreSQL's LIKE takes
        a backslash as an escape ("Pattern Matching" in its manual), SQLite's as itself ("The LIKE operator").
        """
        if await self._finds_block_type(_ESCAPED, patience):
            return True
        return False if await self._finds_block_type(_BLOCK_TYPE, patience) else None

    async def _finds_block_type(self, pattern: str, patience: Patience) -> bool:
        operation = "find out about the server's database"
        body = {"block_types": {"name": {"like_": pattern}}}
        answer = await self._post(path("block_types", "filter"), operation, body, patience)
        found = [
            cast("dict[str, Any]", one) for one in self._list(answer, operation) if isinstance(one, dict)
        ]
        return any(one.get("name") == _BLOCK_TYPE for one in found)

    async def read_server_version(self, **patience: Unpack[Patience]) -> str | None:
        """The server's release, such as "3.8.8"; None where it does not say (Cloud)."""
        try:
            answer = await self._get(path("admin", "version"), "read the server's version", patience)
        except NotFound:
            return None
        return answer if isinstance(answer, str) else None


def _named(names: Collection[str]) -> dict[str, Any]:
    return {"work_queues": {"name": {"any_": sorted(names)}}} if names else {}
