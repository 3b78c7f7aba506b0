"""What the templates of an automation's run look at: the context, as far as it can be had truthfully.

Owns which objects of the server a context name stands for and the type of their fields (PROTOCOL 5.5; compared
with Prefect's models in the parity tests). A name it leaves out is one that cannot be known afterwards. Does not
find events (`automations.py`) and does not render (`automation_templates.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, cast
from uuid import UUID

from worker.api.models import FlowRun
from worker.api.records import ServerEvent
from worker.runs.automation_errors import AutomationTemplateError
from worker.runs.automation_objects import EnumText, Json, Labels, Record, event_object, moment
from worker.runs.automation_templates import OBJECT_NAMES, VARIABLES_NAME

_RUN_DEPLOYMENT = "run-deployment"
_EVENT_ID_PREFIX = "prefect.event."
_TRIGGERING = "triggering-event"
_STATE_CHANGE = "automation-triggered-event"

_ROUTES: Mapping[str, tuple[str, ...]] = {
    "concurrency_limit": ("v2", "concurrency_limits"),
    "deployment": ("deployments",),
    "flow": ("flows",),
    "flow_run": ("flow_runs",),
    "task_run": ("task_runs",),
    "work_pool": ("work_pools",),
    "work_queue": ("work_queues",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One triggering of the automation's action, from its `prefect.automation.action.triggered` event.

    `triggering_event` is None for an automation that fired because no event came; `state_change` is the event
    that carries the labels of the firing, None on servers that do not link it.
    """

    automation_id: str
    trigger_type: str | None
    triggering_event: UUID | None
    state_change: UUID | None


def action_of(flow_run: FlowRun, events: Sequence[ServerEvent]) -> Action | None:
    """The action that created `flow_run`, among events that involve it; None if it is not among them.

    Other automations' actions may have acted on the same run, so the run's idempotency key decides, which
    ends in "invocation <id>" (PROTOCOL 5.5).
    """
    invocation = (flow_run.idempotency_key or "").rpartition("invocation ")[2]
    for event in events:
        if (
            event.payload.get("action_type") == _RUN_DEPLOYMENT
            and event.payload.get("invocation") == invocation
        ):
            state_change = _linked_event(event, _STATE_CHANGE)
            return Action(
                automation_id=str(event.resource.get("prefect.resource.id", "")).rpartition(".")[2],
                trigger_type=event.resource.get("prefect.trigger-type"),
                triggering_event=_linked_event(event, _TRIGGERING) or event.follows,
                state_change=state_change,
            )
    return None


def _linked_event(event: ServerEvent, role: str) -> UUID | None:
    for resource in event.related:
        if resource.get("prefect.resource.role") == role:
            return _uuid(str(resource.get("prefect.resource.id", "")).removeprefix(_EVENT_ID_PREFIX))
    return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


class ContextReader(Protocol):
    """Reads what a context consists of; raises AutomationTemplateError for what is not there (any more)."""

    async def event(self, event_id: UUID, what: str, /) -> ServerEvent:
        """The event with that id, waited for if need be."""
        ...

    async def object(self, kind: str, /, *segments: str) -> Json:
        """The JSON of `GET /<segments joined by slashes>`; `kind` is its name in templates."""
        ...


async def template_context(names: frozenset[str], action: Action, reader: ContextReader) -> dict[str, Any]:
    """The context names among `names` with their objects; each is read only if named."""
    context: dict[str, Any] = {}
    change: ServerEvent | None = None
    event: Json | None = None
    if action.state_change is not None and names - {"automation", VARIABLES_NAME}:
        change = await reader.event(action.state_change, "the automation's own event")
    if action.triggering_event is not None and names & {"event", *OBJECT_NAMES}:
        event = await _triggering_event(action.triggering_event, change, reader)
    # A server that links neither event does not say whether there was one (PROTOCOL 9).
    if event is not None or change is not None:
        if "event" in names:
            context["event"] = event_object(event) if event is not None else None
        for name in sorted(names & OBJECT_NAMES):
            context[name] = await _involved_object(name, event, reader)
    if names & {"automation", "firing", "firings"}:
        automation = await reader.object("automation", "automations", action.automation_id)
        context["automation"] = api_object("automation", automation)
    if change is not None:
        context |= _firing_context(change, context.get("automation"), action.trigger_type)
    return context


async def _triggering_event(event_id: UUID, change: ServerEvent | None, reader: ContextReader) -> Json:
    """The triggering event as the server had it: kept events are in UTC, the copy in the state change is not."""
    if change is not None:
        for candidate in (change.raw, change.payload.get("triggering_event")):
            if candidate is not None and candidate.get("id") == str(event_id):
                return candidate
    return (await reader.event(event_id, "the triggering event")).raw


async def _involved_object(
    name: str, event: Mapping[str, Any] | None, reader: ContextReader
) -> Record | None:
    """The first object of that kind the event involves; None if it involves none (as on the server)."""
    prefix = f"prefect.{name.replace('_', '-')}."
    for resource in [event["resource"], *event["related"]] if event is not None else []:
        resource_id: str = resource["prefect.resource.id"]
        if not resource_id.startswith(prefix):
            continue
        found = _uuid(resource_id.removeprefix(prefix))
        return api_object(name, await _read_involved(name, found, resource, reader)) if found else None
    return None


async def _read_involved(
    name: str, identity: UUID, resource: Mapping[str, Any], reader: ContextReader
) -> Mapping[str, Any]:
    route = _ROUTES[name]
    match name:
        case "work_pool":
            # The API knows pools by name only; a new pool may have taken over the name of the event's.
            pool_name = str(resource.get("prefect.resource.name", ""))
            pool = await reader.object(name, *route, pool_name)
            if pool.get("id") != str(identity):
                raise AutomationTemplateError(
                    f"the job variables name work_pool, but the work pool {pool_name!r} of the triggering event "
                    "was deleted and another one has its name now"
                )
            return pool
        case "work_queue":
            queue = await reader.object(name, *route, str(identity))
            return {**queue, **await reader.object(name, *route, str(identity), "status")}
        case "flow_run" | "task_run":
            return with_state_of(resource, await reader.object(name, *route, str(identity)))
        case _:
            return await reader.object(name, *route, str(identity))


def _firing_context(
    change: ServerEvent, automation: Record | None, trigger_type: str | None
) -> dict[str, Any]:
    """The firing as far as the server tells of it, in the payload of its state change event.

    Composite triggers consist of firings of which no trace is left; `firings` and `events` are theirs too, so
    they stay unknown.
    """
    labels: dict[str, str] = change.payload.get("triggering_labels") or {}
    raw_event: Mapping[str, Any] | None = change.payload.get("triggering_event")
    event = event_object(raw_event) if raw_event is not None else None
    context: dict[str, Any] = {"labels": Labels(labels)}
    simple = trigger_type == "event"
    fields: dict[str, Any] = {
        "triggered": moment(change.raw["occurred"]),
        "triggering_labels": labels,
        "triggering_event": event,
        "triggering_value": None,
    }
    if automation is not None:
        fields["trigger"] = automation.trigger
    if simple:
        fields["triggering_firings"] = []
    context["firing"] = Record("firing", fields, withheld=("id", "trigger_states", "triggering_firings"))
    if simple:
        context["firings"] = [context["firing"]]
        context["events"] = [event] if event is not None else []
    return context


def api_object(kind: str, raw: Json) -> Record:
    """An object of the REST API from its JSON; `kind` is its name in templates, such as `flow_run`."""
    unlike = _UNLIKE.get(kind, ())
    fields = {name: _field(kind, name, value) for name, value in raw.items() if name not in unlike}
    return Record(kind, fields, json=dict(raw), withheld=(*unlike, *_ABSENT.get(kind, ())))


def with_state_of(resource: Json, raw: Json) -> Json:
    """A run's JSON with the state its event speaks of: it may have moved on since (as the server does it)."""
    labels = ("message", "name", "timestamp", "type")
    if not all(f"prefect.state-{label}" in resource for label in labels):
        return raw
    state = {label: resource[f"prefect.state-{label}"] for label in labels}
    return {**raw, "state": {**state, "data": None}}


# A field's name means the same in all of the server's models. Free-form objects (parameters, payload, job
# variables, labels, …) are never looked into.
_TIMES = frozenset(
    {
        "anchor_date", "cache_expiration", "created", "end_time", "expected_start_time", "last_polled",
        "next_scheduled_start_time", "pause_timeout", "scheduled_time", "start_time", "timestamp", "updated",
    }
)  # fmt: skip
_DURATIONS = frozenset(
    {
        "estimated_run_time",
        "estimated_start_time_delta",
        "interval",
        "schedule_after",
        "total_run_time",
        "within",
    }
)
_SETS = {
    "empirical_policy": ("pause_keys",),
    "trigger": ("after", "expect", "for_each"),
    "triggers": ("after", "expect", "for_each"),
}
_MODELS = frozenset(
    {
        "actions", "actions_on_resolve", "actions_on_trigger", "concurrency_options", "created_by", "empirical_policy", "filter", "global_concurrency_limit",
        "health_check_policy", "schedule", "schedules", "state", "state_details", "storage_configuration", "trigger",
        "triggers", "updated_by",
    }
)  # fmt: skip
_ENUMS = {
    ("concurrency_options", "collision_strategy"): "ConcurrencyLimitStrategy",
    ("deployment", "status"): "DeploymentStatus",
    ("flow_run", "state_type"): "StateType",
    ("state", "type"): "StateType",
    ("task_run", "state_type"): "StateType",
    ("trigger", "posture"): "Posture",
    ("triggers", "posture"): "Posture",
    ("work_pool", "status"): "WorkPoolStatus",
    ("work_queue", "status"): "WorkQueueStatus",
}

# Fields that read in a template otherwise than their JSON does, and are too rare to imitate.
_UNLIKE = {
    "task_run": ("task_inputs",),
    "trigger": ("match", "match_related"),
    "triggers": ("match", "match_related"),
}
# Fields that the state taken from an event's labels lacks.
_ABSENT = {"state": ("id", "state_details")}


def _field(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, str):
        return _text_field(kind, name, value)
    if name in _DURATIONS and isinstance(value, (int, float)):
        return timedelta(seconds=value)
    if name in _MODELS:
        return _models(name, value)
    if name in _SETS.get(kind, ()):
        return set(cast("list[Any]", value or []))
    return value


def _text_field(kind: str, name: str, value: str) -> Any:
    if name == "id" or name.endswith("_id"):
        return _uuid(value) or value
    if name in _TIMES:
        return moment(value)
    enum = _ENUMS.get((kind, name))
    return EnumText(enum, value) if enum is not None else value


def _models(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return api_object(name, cast("dict[str, Any]", value))
    if isinstance(value, list):
        models: list[Any] = [_models(name, item) for item in cast("list[Any]", value)]
        return models
    return value
