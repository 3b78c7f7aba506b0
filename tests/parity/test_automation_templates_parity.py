"""The rendering of templates under Prefect's own code and under ours: same templates, same objects.

Prefect renders an automation's parameters; our rendering of job variables promises to be that (PROTOCOL 5.5).
Where it differs on purpose the test says so.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from worker.runs.automation_context import api_object
from worker.runs.automation_errors import AutomationTemplateError
from worker.runs.automation_objects import Labels, event_object
from worker.runs.automation_templates import render

# Prefect's types are not what is tested here, and it is not everywhere the type checker runs.
actions: Any = import_module("prefect.server.events.actions")
automations: Any = import_module("prefect.server.events.schemas.automations")
events: Any = import_module("prefect.server.events.schemas.events")
labelling: Any = import_module("prefect.server.events.schemas.labelling")
core: Any = import_module("prefect.server.schemas.core")
responses: Any = import_module("prefect.server.schemas.responses")
user_templates: Any = import_module("prefect.server.utilities.user_templates")
hydration: Any = import_module("prefect.utilities.schema_tools.hydration")

pytestmark = pytest.mark.anyio

ID = "11111111-1111-4111-8111-111111111111"
TIME = "2024-05-01T10:11:12.500000Z"
LABELS = {"a": "1", "a.b": "2", "a.b.c": "3", "x.y.z": "4", "prefect.resource.id": "r"}

EVENT = events.ReceivedEvent.model_validate(
    {
        "id": ID,
        "event": "order.placed",
        "occurred": TIME,
        "received": "2024-05-01T10:11:13Z",
        "resource": {"prefect.resource.id": "shop.1", "prefect.resource.name": "shop", "region.code": "eu"},
        "related": [
            {"prefect.resource.id": f"prefect.flow.{ID}", "prefect.resource.role": "flow", "n": "1"},
            {"prefect.resource.id": "prefect.tag.a", "prefect.resource.role": "tag"},
            {"prefect.resource.id": "prefect.tag.b", "prefect.resource.role": "tag"},
        ],
        "payload": {
            "n": 3,
            "size": 123456789,
            "text": "Ada <&> 'q' \"d\" ü",
            "none": None,
            "flag": True,
            "real": 1.5,
            "list": [1, "two", None],
            "nested": {"a": {"b": ["deep"]}, "items": 1},
            "items": "shadowed",
            "when": "2024-01-01",
        },
    }
)
TRIGGER = {
    "type": "event",
    "id": ID,
    "expect": ["order.placed"],
    "for_each": ["region.code"],
    "posture": "Reactive",
    "threshold": 1,
    "within": 90,
}
AUTOMATION = automations.Automation.model_validate(
    {
        "id": ID,
        "created": TIME,
        "name": "on order",
        "trigger": TRIGGER,
        "actions": [{"type": "run-deployment", "source": "selected", "deployment_id": ID}],
    }
)


def as_received(model: BaseModel) -> dict[str, Any]:
    """The JSON that the server's API would answer with."""
    return json.loads(model.model_dump_json())


SERVER_CONTEXT: dict[str, Any] = {
    "event": EVENT,
    "labels": labelling.LabelDiver(LABELS),
    "automation": AUTOMATION,
}
OUR_CONTEXT: dict[str, Any] = {
    "event": event_object(as_received(EVENT)),
    "labels": Labels(LABELS),
    "automation": api_object("automation", as_received(AUTOMATION)),
}

TEMPLATES = [
    "{{ event.payload.n }}",
    "{{ event.payload }}",
    "{{ event.payload | tojson }}",
    "{{ event.payload | tojson(indent=2) }}",
    "{{ event.payload.text | tojson }}",
    "{{ event.payload.list | join(',') }} {{ event.payload.flag }} {{ event.payload.real }}",
    "{{ event.payload.nested.a.b[0] }} {{ event.payload['nested']['a'] }}",
    "{{ event.payload['items'] }} {{ event.payload.nested['items'] }}",
    "{{ event.payload.missing }}",
    "{{ event.payload.missing.deeper['x'] | default('d') }}",
    "{{ event.payload.missing | tojson }}",
    "{{ event.payload.missing() }}",
    "{{ nothing.at.all }}",
    "{{ event.id }} {{ event.id.hex }} {{ event.follows }} {{ event.event }}",
    "{{ event.id | upper }}",
    "{{ event.id[:4] }}",
    "{{ event.id | tojson }}",
    "{{ event.occurred }} {{ event.received }} {{ event.occurred.isoformat() }}",
    "{{ event.occurred.strftime('%Y-%m-%d %H:%M:%S %Z') }} {{ event.occurred.date() }}",
    "{{ event.occurred.timestamp() }} {{ event.occurred.year }} {{ event.occurred.tzinfo }}",
    "{{ (event.received - event.occurred).total_seconds() }}",
    "{{ event.occurred | tojson }}",
    "{{ event | tojson }}",
    "{{ [event, event.resource] | tojson }}",
    "{{ event.resource }} {{ event.related }}",
    "{{ event.resource.id }} {{ event.resource.name }} {{ event.related[0].role }} {{ event.related[0].name }}",
    "{{ event.resource.role }}",
    "{{ event.resource['region.code'] }} {{ event.resource.get('nosuch') }} {{ event.resource.get('nosuch', 'd') }}",
    "{{ event.resource['nosuch'] }}",
    "{{ event.resource.labels.region.code }} {{ event.resource.labels.prefect.resource.name }}",
    "{{ event.resource.labels.nosuch.deeper }}",
    "{{ event.resource.root }} {{ event.resource.keys() | list }}",
    "{% for key, value in event.resource.items() %}{{ key }}={{ value }};{% endfor %}",
    "{{ 'region.code' in event.resource }} {{ 'nosuch' in event.resource }}",
    "{{ event.resource_in_role['tag'].id }} {{ event.resource_in_role.flow.id }}",
    "{{ event.resources_in_role['tag'] | map(attribute='id') | join(',') }}",
    "{{ event.involved_resources | length }} {{ event.related | length }}",
    "{{ event.find_resource_label('region.code') }} {{ event.find_resource_label('related:flow:n') }}",
    "{{ event.find_resource_label('related:nosuch:n') }} {{ event.find_resource_label('nosuch') }}",
    "{{ labels.a }} {{ labels.a.b }} {{ labels.a.b.c }} {{ labels.x }} {{ labels.x.y }} {{ labels.x.y.z }}",
    "{{ labels['a.b'] }} {{ labels['x.y'] }} {{ labels | length }} {{ labels.nosuch }}",
    "{% for name, value in labels %}{{ name }}={{ value }};{% endfor %}",
    "{{ labels | tojson }}",
    "{{ automation.name }} {{ automation.id }} {{ automation.created }} {{ automation.enabled }}",
    "{{ automation.trigger.within }} {{ automation.trigger.expect }} {{ automation.trigger.posture }}",
    "{{ automation.trigger.posture == 'Reactive' }} {{ automation.trigger.posture | tojson }}",
    "{{ automation.actions[0].type }} {{ automation.actions[0].deployment_id }}",
    "{{ automation.tags }} {{ automation.description }}",
    "{% if event.payload.flag %}yes{% else %}no{% endif %}{{ '\n' }}",
    "{% for n in range(100) %}{{ loop.index }}{% endfor %}{{ event.event }}",
    "{{ range(101) }}",
    "{% for x in event.payload.list %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in event.payload.list %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(event.payload.n) }}",
    "{{ event.payload.list.append(4) }}",
    "{{ event.payload.text.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ event.payload.n / 0 }}",
    "{{ event.payload.n | nosuchfilter }}",
    "{% include 'x' %}",
    "{{ 'x/runs/flow-run/" + ID + "?a' | flow_run_id }} {{ none | flow_run_id }} {{ 'x' | flow_run_id }}",
    "{{ '%s %05d' | format('a', event.payload.n) }} {{ '{:>5}'.format(event.payload.n) }}",
    "{{ event.payload.n * 'ab' }} {{ 2 ** 10 }} {{ 7 * event.payload.real }}",
    "trailing newline {{ event.payload.n }}\n",
    "  {{ event.payload.n }}  ",
    "{{ event.payload.size | humanize_naturalsize }} {{ event.payload.size | humanize_intcomma }}",
    "{{ event.payload.n | humanize_ordinal }} {{ event.payload.n | humanize_apnumber }}",
    "{{ (event.received - event.occurred) | humanize_precisedelta }}",
    "{{ event.occurred | humanize_naturaldate }}",
    "{{ event.payload.size | humanize_intword }} {{ event.payload.real | humanize_fractional }}",
]


def outcome(action: Callable[[], Any], *failures: type[Exception]) -> tuple[str, Any]:
    try:
        return "value", action()
    except failures as error:
        del error
        return "error", None


@pytest.fixture(scope="module", autouse=True)
def event_filters() -> None:
    """What the server does before it renders the first template of an action."""
    getattr(actions.JinjaTemplateAction, "_register_filters_if_needed")()  # noqa: B009 - private, but it is what is compared


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_jinja_form_renders_as_on_the_server(template: str) -> None:
    def server() -> str:
        return user_templates.render_user_template_sync(template, SERVER_CONTEXT)

    def ours() -> Any:
        return render({"x": {"__prefect_kind": "jinja", "template": template}}, OUR_CONTEXT, {})["x"]

    assert outcome(ours, AutomationTemplateError) == outcome(server, user_templates.TemplateRenderError)


def is_one_expression(template: str) -> bool:
    """The server's own rule for what keeps its type as a parameter."""
    text = template.strip()
    return text.startswith("{{") and text.endswith("}}") and text.count("{{") == 1


@pytest.mark.parametrize(
    "template", [text for text in TEMPLATES if not is_one_expression(text) and "nothing" not in text]
)
async def test_a_plain_string_renders_to_the_text_of_the_servers_parameter(template: str) -> None:
    ours = outcome(lambda: render({"x": template}, OUR_CONTEXT, {}), AutomationTemplateError)
    assert ours == await server_parameters({"x": template})


@pytest.mark.parametrize(
    ("expression", "fails"),
    [
        ("event.payload.n", False),
        ("event.payload.text", False),
        ("event.payload.missing", True),
        ("event.payload.missing.deeper", True),
        ("event.payload.missing | default('d')", False),
        ("event.payload.text if false", True),
        ("event.payload.n / 0", True),
        ("event.payload.missing | upper", False),
    ],
)
async def test_one_expression_without_a_value_fails_as_a_parameter_does(expression: str, fails: bool) -> None:
    template = "{{ " + expression + " }}"
    server = await server_parameters({"x": template})
    ours = outcome(lambda: render({"x": template}, OUR_CONTEXT, {}), AutomationTemplateError)
    assert (server[0], ours[0]) == (("error", "error") if fails else ("value", "value"))
    if not fails:
        assert ours[1] == {"x": str(server[1]["x"])}


async def server_parameters(parameters: dict[str, Any]) -> tuple[str, Any]:
    """What `RunDeployment` makes of its parameters for our event."""
    action = actions.RunDeployment.model_construct(
        type="run-deployment", source="selected", deployment_id=UUID(ID), parameters=parameters
    )
    trigger = automations.EventTrigger(
        expect={"order.placed"}, posture=automations.Posture.Reactive, threshold=1
    )
    firing = automations.Firing(
        trigger=trigger,
        trigger_states={automations.TriggerState.Triggered},
        triggered=EVENT.received,
        triggering_labels=LABELS,
        triggering_event=EVENT,
    )
    triggered = automations.TriggeredAction(
        automation=AUTOMATION,
        firing=firing,
        triggered=EVENT.received,
        triggering_labels=LABELS,
        triggering_event=EVENT,
        action=action,
    )
    try:
        return "value", await action.render_parameters(triggered)
    except (hydration.HydrationError, TypeError):
        return "error", None


# forms ---------------------------------------------------------------------------------------------------

VARIABLES: dict[str, Any] = {
    "text": "plain",
    "number": 5,
    "object": {"a": [1]},
    "json": '{"b": 2}',
    "null": None,
}


def server_hydration(value: Any) -> tuple[str, Any]:
    context = hydration.HydrationContext(
        raise_on_error=True,
        render_jinja=True,
        jinja_context=SERVER_CONTEXT,
        render_workspace_variables=True,
        workspace_variables=VARIABLES,
    )
    return outcome(
        lambda: hydration.hydrate({"x": value}, context), hydration.HydrationError, TypeError, AttributeError
    )


def our_rendering(value: Any) -> tuple[str, Any]:
    return outcome(lambda: render({"x": value}, OUR_CONTEXT, VARIABLES), AutomationTemplateError)


def form(kind: Any, **fields: Any) -> dict[str, Any]:
    return {"__prefect_kind": kind, **fields}


FORMS = [
    form("none", value=1),
    form("none", value={"a": form("jinja", template="{{ event.payload.n }}")}),
    form("none"),
    form("json", value='{"a": [1, null]}'),
    form("json", value="{"),
    form("json", value=None),
    form("json", value=[form("jinja", template="x")]),
    form("json", value={"a": form("jinja", template="{{ event.payload.n }}")}),
    form("json", value=form("jinja", template="{{ event.payload.nested | tojson }}")),
    form("json", value=form("jinja", template="{{ event.payload.text }}")),
    form("json", value=form("workspace_variable", variable_name="json")),
    form("json", value=form("workspace_variable", variable_name="object")),
    form("json", value=form("json", value='"5"')),
    form("json", value=form("json")),
    form("json"),
    form("jinja", template="{{ event.payload.n }}"),
    form("jinja", template="{{ event.payload.missing }}"),
    form("jinja", template="no template"),
    form("jinja", template="{{ event"),
    form("jinja", template=form("json", value='"{{ event.payload.n }}"')),
    form("jinja", template=form("json")),
    form("jinja", template="{% for a in [1] %}{% endfor %}" * 11),
    form(
        "jinja",
        template="{% for a in [1] %}{% for b in [1] %}{% for c in [1] %}{% endfor %}{% endfor %}{% endfor %}",
    ),
    form("jinja"),
    form("workspace_variable", variable_name="text"),
    form("workspace_variable", variable_name="null"),
    form("workspace_variable", variable_name="nosuch"),
    form("workspace_variable", variable_name=form("jinja", template="te{{ 'xt' }}")),
    form("workspace_variable"),
    form("mystery", value="as it is"),
    form("mystery"),
    form(None, value=form("json")),
    [form("json"), form("json", value="1"), "x"],
    {"a": form("json"), "b": {"c": [form("workspace_variable")]}},
]


@pytest.mark.parametrize("value", FORMS)
def test_a_form_hydrates_as_on_the_server(value: Any) -> None:
    assert our_rendering(value) == server_hydration(value)


def wrap(kind: str, field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: form(kind, **{field: value})


def forms(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    texts = st.sampled_from(
        ["{{ event.payload.n }}", "{{ labels.a }}!", "[1]", '"t"', "text", "json", "{{ x"]
    )
    # Prefect lets a template that is no text through when it comes from a nested form.
    json_texts = st.sampled_from(['"t"', '"{{ event.payload.n }}"', "no JSON"])
    return st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        inner.map(wrap("none", "value")),
        (texts | inner).map(wrap("json", "value")),
        (texts | json_texts.map(wrap("json", "value"))).map(wrap("jinja", "template")),
        texts.map(wrap("workspace_variable", "variable_name")),
        st.sampled_from(["none", "json", "jinja", "workspace_variable", "mystery", None]).map(form),
    )


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.just("plain"), forms, max_leaves=8)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_any_nesting_of_forms_hydrates_as_on_the_server(value: Any) -> None:
    assert our_rendering(value) == server_hydration(value)


# objects -------------------------------------------------------------------------------------------------

STATE = {
    "id": ID,
    "type": "FAILED",
    "name": "Failed",
    "timestamp": TIME,
    "message": "m",
    "state_details": {"flow_run_id": ID, "scheduled_time": TIME, "cache_expiration": TIME, "retriable": True},
}
RUN = {
    "id": ID, "created": TIME, "updated": TIME, "name": "run", "flow_id": ID, "state_id": ID, "state": STATE,
    "state_type": "FAILED", "state_name": "Failed", "expected_start_time": TIME, "start_time": TIME,
    "next_scheduled_start_time": TIME, "end_time": TIME, "total_run_time": 90061.5, "estimated_run_time": 2.25,
    "estimated_start_time_delta": 0.5, "tags": ["t"], "labels": {"prefect.flow.id": ID, "n": 1},
    "created_by": {"id": ID, "type": "AUTOMATION", "display_value": "auto"},
}  # fmt: skip
OBJECTS: dict[str, BaseModel] = {
    "flow": core.Flow.model_validate(
        {"id": ID, "created": TIME, "name": "f", "tags": ["a"], "labels": {"k": "v"}}
    ),
    "flow_run": responses.FlowRunResponse.model_validate(
        {
            **RUN,
            "parameters": {"created": TIME, "id": ID, "n": 1},
            "empirical_policy": {"retries": 2},
            "work_pool_id": ID,
            "work_queue_id": ID,
            "deployment_id": ID,
            "infrastructure_pid": "12",
            "job_variables": {"env": {"A": "1"}},
        }
    ),
    "task_run": core.TaskRun.model_validate(
        {**RUN, "flow_run_id": ID, "task_key": "k", "dynamic_key": "0", "cache_expiration": TIME}
    ),
    "deployment": responses.DeploymentResponse.model_validate(
        {
            "id": ID,
            "created": TIME,
            "name": "d",
            "flow_id": ID,
            "schedules": [
                {"id": ID, "schedule": {"interval": 90, "anchor_date": TIME}, "active": True},
                {"id": ID, "schedule": {"cron": "* * * * *"}, "active": False},
            ],
            "status": "NOT_READY",
            "last_polled": TIME,
            "global_concurrency_limit": {
                "id": ID,
                "created": TIME,
                "active": True,
                "name": "g",
                "limit": 2,
                "active_slots": 1,
            },
            "concurrency_options": {"collision_strategy": "ENQUEUE"},
            "updated_by": {"id": ID, "type": "USER"},
            "job_variables": {"id": "x"},
        }
    ),
    "work_pool": core.WorkPool.model_validate(
        {
            "id": ID,
            "name": "p",
            "type": "process",
            "status": "READY",
            "default_queue_id": ID,
            "base_job_template": {},
        }
    ),
    "work_queue": responses.WorkQueueWithStatus.model_validate(
        {
            "id": ID,
            "name": "q",
            "status": "PAUSED",
            "last_polled": TIME,
            "healthy": True,
            "late_runs_count": 1,
            "health_check_policy": {"maximum_late_runs": 1},
            "filter": {"tags": ["x"]},
            "work_pool_id": ID,
        }
    ),
    "concurrency_limit": core.ConcurrencyLimitV2.model_validate(
        {"id": ID, "created": TIME, "name": "c", "limit": 2}
    ),
    "automation": AUTOMATION,
}
WITHHELD = {"task_inputs", "match", "match_related"}


def leaves(value: Any, path: str) -> Iterator[tuple[str, bool]]:
    """The paths below a model with whether they are models themselves."""
    if isinstance(value, BaseModel):
        yield path, True
        for name in type(value).model_fields:
            if name not in WITHHELD:
                yield from leaves(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in cast("list[Any]", value)):
        for at, item in enumerate(cast("list[Any]", value)):
            yield from leaves(item, f"{path}[{at}]")
    else:
        yield path, False


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # Prefect's fields that are, read too
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_field_of_an_object_reads_as_on_the_server(kind: str) -> None:
    ours: Mapping[str, Any] = {kind: api_object(kind, as_received(OBJECTS[kind]))}
    server = {kind: type(OBJECTS[kind]).model_validate(as_received(OBJECTS[kind]))}
    for path, is_model in leaves(server[kind], kind):
        template = "-{{ " + path + " }}"
        if is_model:
            with pytest.raises(AutomationTemplateError, match="prints a whole"):
                render({"x": template}, ours, {})
        else:
            expected = user_templates.render_user_template_sync(template, cast("dict[str, Any]", server))
            assert (path, render({"x": template}, ours, {})["x"]) == (path, expected)


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_has_the_json_it_has_on_the_server(kind: str) -> None:
    template = "{{ " + kind + " | tojson }}"
    ours = render({"x": template}, {kind: api_object(kind, as_received(OBJECTS[kind]))}, {})["x"]
    assert ours == user_templates.render_user_template_sync(template, {kind: OBJECTS[kind]})
