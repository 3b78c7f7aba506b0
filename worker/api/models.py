"""The server's objects, as far as this program uses them.

Owns the reading of JSON into typed, frozen values. It is tolerant by design: fields that are absent or
null on older servers (PROTOCOL 9) take their default, unknown fields are ignored, and `raw` keeps the
object as received for those who template over it. It does not know how objects are fetched; logs and
events are `records.py`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar, cast
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


Timestamp = Annotated[datetime, AfterValidator(_aware)]
"""A point in time; one without an offset is UTC, as the server means it."""


class StateType(StrEnum):
    """The closed set of state types; names (Late, AwaitingRetry, …) are free text beside it."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"

    @property
    def is_final(self) -> bool:
        """No further transition without force or a retry."""
        return self in {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}


class ServerModel(BaseModel):
    """A JSON object of the server; null means absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    raw: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=True)
    """The object as received; may hold secrets, hence never in `repr`."""

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        received = cast("dict[str, Any]", data)
        return {**{key: value for key, value in received.items() if value is not None}, "raw": received}

    @classmethod
    def read(cls, data: Any) -> Self:
        """Validate one decoded JSON value; raises `pydantic.ValidationError`, which quotes no input."""
        return cls.model_validate(data)


class StateDetails(ServerModel):
    """The part of a state that is not its name."""

    transition_id: UUID | None = None
    scheduled_time: Timestamp | None = None
    flow_run_id: UUID | None = None
    deployment_concurrency_lease_id: UUID | None = None


class State(ServerModel):
    """One state of a flow run."""

    id: UUID | None = None
    type: StateType
    name: str = ""
    message: str | None = None
    timestamp: Timestamp | None = None
    state_details: StateDetails = Field(default_factory=StateDetails)


class CreatedBy(ServerModel):
    """Who made a run; `type` is SCHEDULE, DEPLOYMENT, AUTOMATION, …."""

    type: str | None = None
    id: UUID | None = None
    display_value: str | None = None


class EmpiricalPolicy(ServerModel):
    """The retry policy a run really has."""

    retry_type: str | None = None


class FlowRun(ServerModel):
    """A flow run. From `get_scheduled_flow_runs` its `state` is always None (PROTOCOL 2.3)."""

    id: UUID
    name: str = ""
    flow_id: UUID | None = None
    deployment_id: UUID | None = None
    state_type: StateType | None = None
    state_name: str | None = None
    state_id: UUID | None = None
    state: State | None = None
    job_variables: Any = Field(default=None, repr=False)
    """As stored; the server does not check every way in, so this can be any JSON value."""
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)
    run_count: int = 0
    infrastructure_pid: str | None = None
    next_scheduled_start_time: Timestamp | None = None
    expected_start_time: Timestamp | None = None
    auto_scheduled: bool = False
    work_queue_id: UUID | None = None
    work_queue_name: str | None = None
    work_pool_id: UUID | None = None
    work_pool_name: str | None = None
    empirical_policy: EmpiricalPolicy = Field(default_factory=EmpiricalPolicy)
    created_by: CreatedBy | None = None
    idempotency_key: str | None = None
    parent_task_run_id: UUID | None = None

    @property
    def retry_type(self) -> str | None:
        """`in_process`: a live process retries by itself; `reschedule`: whoever polls it may start it."""
        return self.empirical_policy.retry_type


class Deployment(ServerModel):
    """A deployment."""

    id: UUID
    name: str = ""
    flow_id: UUID | None = None
    job_variables: Any = Field(default=None, repr=False)
    updated: Timestamp | None = None
    entrypoint: str | None = None
    path: str | None = None
    pull_steps: Any = Field(default=None, repr=False)
    storage_document_id: UUID | None = None
    tags: list[str] = Field(default_factory=list)
    version: str | None = None
    work_pool_name: str | None = None
    work_queue_name: str | None = None
    paused: bool = False


class Flow(ServerModel):
    """A flow."""

    id: UUID
    name: str = ""
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)


class WorkPool(ServerModel):
    """A work pool; an empty `base_job_template` is one nobody has filled in yet (PROTOCOL 2.1)."""

    id: UUID
    name: str
    type: str = ""
    base_job_template: dict[str, Any] = Field(default_factory=dict, repr=False)
    is_paused: bool = False
    concurrency_limit: int | None = None
    status: str | None = None
    default_queue_id: UUID | None = None


class WorkQueue(ServerModel):
    """A queue of a work pool; priority 1 is served first."""

    id: UUID
    name: str
    priority: int | None = None
    is_paused: bool = False
    concurrency_limit: int | None = None
    status: str | None = None


class SetStateStatus(StrEnum):
    """What the server did with a proposed state."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    WAIT = "WAIT"
    ABORT = "ABORT"


class SetStateAnswer(ServerModel):
    """The answer to a proposed state; `state` is the current one with every status (PROTOCOL 2.6)."""

    status: SetStateStatus
    state: State | None = None
    reason: str | None = None
    delay_seconds: float | None = None
    transition_id: UUID | None = None
    """The id this proposal carried, whoever chose it."""

    @property
    def accepted(self) -> bool:
        """Whether the state is ours: accepted now, or by an earlier try whose answer was lost."""
        if self.status is SetStateStatus.ACCEPT:
            return True
        current = self.state.state_details.transition_id if self.state is not None else None
        return current is not None and current == self.transition_id

    @classmethod
    def from_answer(cls, data: Any, transition_id: UUID) -> Self:
        """Read the body of `set_state`, whose `details` differ by status."""
        answer = _SetStateBody.read(data)
        return cls(
            status=answer.status,
            state=answer.state,
            reason=answer.details.reason,
            delay_seconds=answer.details.delay_seconds,
            transition_id=transition_id,
        )


class _SetStateDetails(ServerModel):
    reason: str | None = None
    delay_seconds: float | None = None


class _SetStateBody(ServerModel):
    status: SetStateStatus
    state: State | None = None
    details: _SetStateDetails = Field(default_factory=_SetStateDetails)


M = TypeVar("M", bound=ServerModel)


def read_each(
    model: type[M], items: Sequence[Any], skipped: Callable[[str, ValidationError], None]
) -> list[M]:
    """Read a list so that one unreadable item costs only itself.

    `skipped` is called with the item's id, as far as it has one, and the error (which quotes no input).
    """
    readable: list[M] = []
    for item in items:
        try:
            readable.append(model.read(item))
        except ValidationError as error:
            identity = cast("dict[str, Any]", item).get("id") if isinstance(item, dict) else None
            skipped(str(identity), error)
    return readable
