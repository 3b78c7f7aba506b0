"""Everything said to the Prefect server over REST, one small method per call.

Owns the endpoints: their paths, bodies and answers (PROTOCOL 2). How a call gets there, and again,
is `transport.py`; what an answer means is `errors.py`; nothing here decides what to do about a run.

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

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast
from uuid import UUID, uuid4

import anyio
import httpx
import structlog
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from worker.api.errors import InvalidRequest, MissingEndpoint, NotAnApi, NotFound
from worker.api.models import (
    Deployment,
    Flow,
    FlowRun,
    LogRecord,
    ServerEvent,
    ServerModel,
    SetStateAnswer,
    StateType,
    WorkerEvent,
    WorkPool,
    WorkQueue,
    read_each,
)
from worker.api.transport import Patience, Transport, path
from worker.settings import ApiSettings

M = TypeVar("M", bound=ServerModel)
Answered = TypeVar("Answered")

_MOST_IDS = 200
"""Ids in one filter; also the most objects a server with default settings returns at once."""

LabelValue = str | int | float | bool


class PrefectClient:
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
        self._log: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        self._asks_for_worker_id = settings.is_cloud
        self.transport = Transport(
            settings=settings,
            random=random,
            transport=transport,
            sleep=sleep,
            now=now,
            monotonic=monotonic,
            log=self._log,
            headers={"X-Prefect-Worker-Name": worker_name} if worker_name is not None else {},
        )

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    @property
    def url(self) -> str:
        """The API's base URL, without credentials."""
        return self.transport.url

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

    async def read_work_queue(self, pool: str, name: str, **patience: Unpack[Patience]) -> WorkQueue:
        """One queue of a pool; `NotFound` if there is none."""
        operation = f"read work queue {name!r} of work pool {pool!r}"
        return self._read(
            WorkQueue,
            await self._get(path("work_pools", pool, "queues", name), operation, patience),
            operation,
        )

    async def filter_work_queues(
        self, pool: str, names: Collection[str] = (), **patience: Unpack[Patience]
    ) -> list[WorkQueue]:
        """The pool's queues among `names`, all of them if that is empty."""
        operation = f"read work queues of work pool {pool!r}"
        body: dict[str, Any] = {"work_queues": {"name": {"any_": sorted(names)}}} if names else {}
        return await self._pages(
            WorkQueue, path("work_pools", pool, "queues", "filter"), operation, body, patience
        )

    # flow runs

    async def get_scheduled_flow_runs(
        self,
        pool: str,
        work_queue_names: Sequence[str],
        scheduled_before: datetime,
        limit: int | None = None,
        *,
        scheduled_after: datetime | None = None,
        **patience: Unpack[Patience],
    ) -> list[FlowRun]:
        """Runs waiting in the pool and due by `scheduled_before`, in the server's order (PROTOCOL 2.3).

        No queue names mean all queues; one unknown name makes the call `NotFound`. No limit means the
        server's own (200), which is also the most it accepts. A run that cannot be read is left out.
        """
        operation = f"get scheduled flow runs of work pool {pool!r}"
        body: dict[str, Any] = {"scheduled_before": scheduled_before.isoformat()}
        if work_queue_names:
            body["work_queue_names"] = list(work_queue_names)
        if scheduled_after is not None:
            body["scheduled_after"] = scheduled_after.isoformat()
        if limit is not None:
            body["limit"] = limit
        answer = await self._post(
            path("work_pools", pool, "get_scheduled_flow_runs"), operation, body, patience
        )
        items = [
            cast("dict[str, Any]", item).get("flow_run") if isinstance(item, dict) else item
            for item in self._list(answer, operation)
        ]
        return self._read_each(FlowRun, items, operation)

    async def read_flow_run(self, flow_run_id: UUID, **patience: Unpack[Patience]) -> FlowRun:
        """One run with its state; `NotFound` if it was deleted."""
        operation = f"read flow run {flow_run_id}"
        return self._read(
            FlowRun, await self._get(path("flow_runs", str(flow_run_id)), operation, patience), operation
        )

    async def cancelling_flow_runs(
        self, ids: Collection[UUID], **patience: Unpack[Patience]
    ) -> list[FlowRun]:
        """Those of `ids` somebody wants cancelled: of type CANCELLING, or CANCELLED with the name "Cancelling"."""
        found: list[FlowRun] = []
        ordered = sorted(ids)
        for start in range(0, len(ordered), _MOST_IDS):
            body = {
                "flow_runs": {
                    "id": {"any_": [str(run_id) for run_id in ordered[start : start + _MOST_IDS]]},
                    "state": {"type": {"any_": ["CANCELLING", "CANCELLED"]}},
                }
            }
            found += await self._pages(
                FlowRun, path("flow_runs", "filter"), "look for runs to cancel", body, patience
            )
        return [
            run
            for run in found
            if run.state_type is StateType.CANCELLING
            or (run.state_type is StateType.CANCELLED and run.state_name == "Cancelling")
        ]

    async def flow_runs_in_pool(
        self,
        pool: str,
        state_types: Collection[StateType],
        queues: Collection[str] = (),
        **patience: Unpack[Patience],
    ) -> list[FlowRun]:
        """The pool's runs in one of these states, of all queues if none is named (PROTOCOL 2.5).

        Read page by page while runs come and go: a run that is there throughout can be missed once.
        """
        body: dict[str, Any] = {
            "flow_runs": {"state": {"type": {"any_": sorted(state_types)}}},
            "work_pools": {"name": {"any_": [pool]}},
            "sort": "ID_DESC",
        }
        if queues:
            body["work_pool_queues"] = {"name": {"any_": sorted(queues)}}
        operation = f"read flow runs of work pool {pool!r}"
        return await self._pages(FlowRun, path("flow_runs", "filter"), operation, body, patience)

    async def set_state(
        self,
        flow_run_id: UUID,
        *,
        type: StateType,  # noqa: A002 - the word of the API, as in its JSON
        name: str | None = None,
        message: str | None = None,
        transition_id: UUID | None = None,
        scheduled_time: datetime | None = None,
        force: bool = False,
        **patience: Unpack[Patience],
    ) -> SetStateAnswer:
        """Propose a state; look at `accepted` and `state` of every answer (PROTOCOL 2.6).

        The proposal carries `transition_id`, or a fresh one, so that a repeated try is recognised.
        """
        operation = f"set flow run {flow_run_id} to {name or type.capitalize()}"
        transition_id = transition_id if transition_id is not None else uuid4()
        details: dict[str, Any] = {"transition_id": str(transition_id)}
        if scheduled_time is not None:
            details["scheduled_time"] = scheduled_time.isoformat()
        state: dict[str, Any] = {"type": type.value, "state_details": details}
        if name is not None:
            state["name"] = name
        if message is not None:
            state["message"] = message.replace("\x00", "")
        body = {"state": state, "force": force}
        answer = await self._post(path("flow_runs", str(flow_run_id), "set_state"), operation, body, patience)
        return self._checked(lambda: SetStateAnswer.from_answer(answer, transition_id), operation)

    async def update_flow_run(
        self, flow_run_id: UUID, *, infrastructure_pid: str | None, **patience: Unpack[Patience]
    ) -> None:
        """Note where the run's process is; None clears it."""
        await self._patch(
            path("flow_runs", str(flow_run_id)),
            f"update flow run {flow_run_id}",
            {"infrastructure_pid": infrastructure_pid},
            patience,
        )

    async def update_flow_run_labels(
        self, flow_run_id: UUID, labels: Mapping[str, LabelValue], **patience: Unpack[Patience]
    ) -> bool:
        """Merge labels into the run's; False if this server has none (before 3.1.6).

        Raises `InvalidRequest` for a value that is not flat, before sending it: the server would store
        it and from then on fail every answer that includes the run (PROTOCOL 2.8).
        """
        operation = f"label flow run {flow_run_id}"
        for key, value in cast("Mapping[str, Any]", labels).items():
            if not isinstance(value, str | int | float | bool):
                raise InvalidRequest(operation, f"label {key!r} is neither text, number nor boolean")
        try:
            await self._patch(
                path("flow_runs", str(flow_run_id), "labels"), operation, dict(labels), patience
            )
        except MissingEndpoint:
            return False
        return True

    # what a run is made of

    async def read_deployment(self, deployment_id: UUID, **patience: Unpack[Patience]) -> Deployment:
        """One deployment; `NotFound` if it was deleted."""
        operation = f"read deployment {deployment_id}"
        return self._read(
            Deployment,
            await self._get(path("deployments", str(deployment_id)), operation, patience),
            operation,
        )

    async def read_flow(self, flow_id: UUID, **patience: Unpack[Patience]) -> Flow:
        """One flow."""
        operation = f"read flow {flow_id}"
        return self._read(Flow, await self._get(path("flows", str(flow_id)), operation, patience), operation)

    async def read_block_document(
        self, block_document_id: UUID, **patience: Unpack[Patience]
    ) -> dict[str, Any]:
        """One block document as the server gives it, secrets in the clear."""
        operation = f"read block document {block_document_id}"
        return self._object(
            await self._get(path("block_documents", str(block_document_id)), operation, patience, _SECRETS),
            operation,
        )

    async def read_block_document_by_name(
        self, type_slug: str, name: str, **patience: Unpack[Patience]
    ) -> dict[str, Any]:
        """One block document by type and name, secrets in the clear; `NotFound` if either is wrong."""
        operation = f"read block document {type_slug}/{name}"
        where = path("block_types", "slug", type_slug, "block_documents", "name", name)
        return self._object(await self._get(where, operation, patience, _SECRETS), operation)

    async def read_variable(self, name: str, **patience: Unpack[Patience]) -> Any:
        """The value of a variable, any JSON; `NotFound` if there is none of that name."""
        operation = f"read variable {name!r}"
        variable = self._object(
            await self._get(path("variables", "name", name), operation, patience), operation
        )
        return variable.get("value")

    async def read_object(self, *segments: str, **patience: Unpack[Patience]) -> dict[str, Any]:
        """Any one object as the server gives it, by the segments of its path; `NotFound` if there is none."""
        operation = f"read {'/'.join(segments)}"
        return self._object(await self._get(path(*segments), operation, patience), operation)

    # logs, events, the server itself

    async def create_logs(self, records: Sequence[LogRecord], **patience: Unpack[Patience]) -> None:
        """Append to the logs of runs, all in one call; a few hundred at a time (PROTOCOL 2.9)."""
        if records:
            body = [record.to_json() for record in records]
            await self._post(path("logs", ""), f"send {len(body)} log records", body, patience)

    async def create_events(self, events: Sequence[WorkerEvent], **patience: Unpack[Patience]) -> None:
        """Emit events."""
        if events:
            body = [event.to_json() for event in events]
            await self._post(path("events"), f"send {len(body)} events", body, patience)

    async def filter_events(
        self, criteria: Mapping[str, Any], limit: int = 50, **patience: Unpack[Patience]
    ) -> list[ServerEvent]:
        """Persisted events that match the filter `criteria`, at most `limit`; up to 5 s behind (PROTOCOL 2.10)."""
        operation = "look for events"
        answer = await self._post(
            path("events", "filter"), operation, {"filter": dict(criteria), "limit": limit}, patience
        )
        return self._read_each(
            ServerEvent, self._list(self._object(answer, operation).get("events"), operation), operation
        )

    async def read_server_version(self, **patience: Unpack[Patience]) -> str | None:
        """The server's release, such as "3.8.8"; None where it does not say (Cloud)."""
        try:
            answer = await self._get(path("admin", "version"), "read the server's version", patience)
        except NotFound:
            return None
        return answer if isinstance(answer, str) else None

    # helpers

    async def _get(
        self, where: str, operation: str, patience: Patience, params: Mapping[str, str] | None = None
    ) -> Any:
        return await self.transport.request(
            "GET", where, operation=operation, params=params, patience=patience
        )

    async def _post(self, where: str, operation: str, body: Any, patience: Patience) -> Any:
        return await self.transport.request("POST", where, operation=operation, body=body, patience=patience)

    async def _patch(self, where: str, operation: str, body: Any, patience: Patience) -> None:
        await self.transport.request("PATCH", where, operation=operation, body=body, patience=patience)

    async def _pages(
        self, model: type[M], where: str, operation: str, body: Mapping[str, Any], patience: Patience
    ) -> list[M]:
        """All pages; their size is the server's own limit, which only it knows."""
        items: dict[Any, Any] = {}
        offset = 0
        while True:
            answer = await self._post(where, operation, {**body, "offset": offset}, patience)
            page = self._list(answer, operation)
            if not page:
                return self._read_each(model, list(items.values()), operation)
            items |= {_identity(item, offset + n): item for n, item in enumerate(page)}
            offset += len(page)

    def _read(self, model: type[M], data: Any, operation: str) -> M:
        return self._checked(lambda: model.read(data), operation)

    def _checked(self, read: Callable[[], Answered], operation: str) -> Answered:
        try:
            return read()
        except ValidationError as error:
            raise NotAnApi(operation, f"{self.url} answers in an unknown form: {error}") from None

    def _read_each(self, model: type[M], items: Sequence[Any], operation: str) -> list[M]:
        def skipped(identity: str, error: ValidationError) -> None:
            self._log.warning("api.item_unreadable", operation=operation, id=identity, reason=str(error))

        return read_each(model, items, skipped)

    def _list(self, answer: Any, operation: str) -> list[Any]:
        if isinstance(answer, list):
            return cast("list[Any]", answer)
        raise NotAnApi(operation, f"{self.url} answers in an unknown form: not a list")

    def _object(self, answer: Any, operation: str) -> dict[str, Any]:
        if isinstance(answer, dict):
            return cast("dict[str, Any]", answer)
        raise NotAnApi(operation, f"{self.url} answers in an unknown form: not an object")


_SECRETS = {"include_secrets": "true"}


def _identity(item: Any, position: int) -> Any:
    """What makes an item one of a page; one without an id is its position."""
    return cast("dict[str, Any]", item).get("id", position) if isinstance(item, dict) else position
