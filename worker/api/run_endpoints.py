"""Flow runs: finding them, reading one, proposing states, noting where they run (PROTOCOL 2.3 to 2.8).

Owns paths, bodies and answers. What a state means for a run, and what is done about an answer, is decided
in `worker.runs`.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack, cast
from uuid import UUID, uuid4

from worker.api.connection import path
from worker.api.endpoints import Endpoints
from worker.api.errors import InvalidRequest, MissingEndpoint
from worker.api.models import FlowRun, SetStateAnswer, State, StateType
from worker.api.transport import Patience

_ENDING = ["CANCELLING", "CANCELLED", "COMPLETED", "CRASHED", "FAILED"]
_MOST_IDS = 200
"""Ids in one filter; also the most objects a server with default settings returns at once."""

LabelValue = str | int | float | bool


class RunEndpoints(Endpoints):
    """The calls about flow runs."""

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

    async def read_flow_run_states(self, flow_run_id: UUID, **patience: Unpack[Patience]) -> list[State]:
        """All states the run has had, in no promised order; empty for an unknown run."""
        operation = f"read the states of flow run {flow_run_id}"
        answer = await self._get(
            path("flow_run_states", ""), operation, patience, {"flow_run_id": str(flow_run_id)}
        )
        return self._read_each(State, self._list(answer, operation), operation)

    async def flow_runs_ending(self, ids: Collection[UUID], **patience: Unpack[Patience]) -> list[FlowRun]:
        """Those of `ids` that are being cancelled or have ended."""
        found: list[FlowRun] = []
        ordered = sorted(ids)
        for start in range(0, len(ordered), _MOST_IDS):
            asked = [str(run_id) for run_id in ordered[start : start + _MOST_IDS]]
            body = {"flow_runs": {"id": {"any_": asked}, "state": {"type": {"any_": _ENDING}}}}
            operation = "look for runs that are ending"
            found += await self._pages(
                FlowRun, path("flow_runs", "filter"), operation, body, patience, most=len(asked)
            )
        return found

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

    async def flow_runs_due(
        self,
        deployment_ids: Collection[UUID],
        state_types: Collection[StateType],
        due_by: datetime,
        offset: int = 0,
        **patience: Unpack[Patience],
    ) -> list[FlowRun]:
        """One page of these deployments' runs in such states that were made for `due_by` or before, the latest first.

        No page is longer than the server's limit, and the one after the last is empty. The time a run was made
        for (`expected_start_time`) stays the same when the run is moved or begun.
        """
        body = {
            "flow_runs": {
                "deployment_id": {"any_": [str(one) for one in sorted(deployment_ids)]},
                "state": {"type": {"any_": sorted(state_types)}},
                "expected_start_time": {"before_": due_by.isoformat()},
            },
            "sort": "EXPECTED_START_TIME_DESC",
            "offset": offset,
        }
        operation = "look for later runs of schedules"
        answer = await self._post(path("flow_runs", "filter"), operation, body, patience)
        return self._read_each(FlowRun, self._list(answer, operation), operation)

    async def count_unmarked(self, due_by: datetime, **patience: Unpack[Patience]) -> int:
        """How many runs of the whole server were due by then, have not begun, and are not marked as Late."""
        body = {
            "flow_runs": {
                "state": {"name": {"any_": ["Scheduled"]}},
                "next_scheduled_start_time": {"before_": due_by.isoformat()},
            }
        }
        operation = "count overdue runs"
        answer = await self._post(path("flow_runs", "count"), operation, body, patience)
        return self._checked(lambda: int(answer), operation)

    async def flow_runs_named(self, name: str, **patience: Unpack[Patience]) -> list[FlowRun]:
        """The runs of this name, anywhere on the server, the one due last first: one page, as names may be used daily."""
        body = {"flow_runs": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_DESC"}
        operation = f"look for flow run {name!r}"
        answer = await self._post(path("flow_runs", "filter"), operation, body, patience)
        return self._read_each(FlowRun, self._list(answer, operation), operation)

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
