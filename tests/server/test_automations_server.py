"""Finding the event behind an automation's run, and rendering over it, on a real server.

The server renders the parameters of the same action itself, so each template is put into a parameter and a job
variable and the two are compared. No daemon runs here.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from tests.support.api import Json, PrefectApi
from tests.support.fake_prefect import api_settings
from tests.support.server import PrefectServer
from tests.support.wait import wait_for
from worker.api.client import PrefectClient
from worker.api.models import FlowRun
from worker.api.records import ServerEvent
from worker.runs.automations import (
    CREATED_BY,
    EVENT_WAIT,
    AutomationTemplateError,
    needs_rendering,
    rendered_job_variables,
)

pytestmark = [pytest.mark.anyio, pytest.mark.thorough]

# Each has text beside its expressions: then the server's parameter is text too.
TEMPLATES = {
    "payload": "n={{ event.payload.n }} nested={{ event.payload.nested.a.b[0] }} all={{ event.payload | tojson }}",
    "event": "{{ event.id }} {{ event.event }} {{ event.occurred }} {{ event.occurred.isoformat() }}",
    "received": "{{ event.received }} {{ event.received.timestamp() }}",
    "resource": "{{ event.resource.id }} {{ event.resource['size'] }} {{ event.resource.labels.region.code }}",
    "related": "{% for r in event.related %}{{ r.role }}={{ r.id }};{% endfor %}",
    "by_label": "{{ labels['region.code'] }} {{ labels.region.code }}",
    "firing": "{{ firing.triggered }} {{ firing.triggering_labels['region.code'] }} {{ firing.trigger.id }}",
    "firings": "{{ firings | length }} {{ events | length }} {{ events[0].id }}",
    "automation": "{{ automation.id }} {{ automation.name }} {{ automation.trigger.within }} {{ automation.created }}",
    "deployment": "{{ deployment.id }} {{ deployment.name }} {{ deployment.created }} {{ deployment.paused }}",
    "flow": "{{ flow.id }} {{ flow.name }} {{ flow.tags }}",
    "flow_run": "{{ flow_run.name }} {{ flow_run.state.name }} {{ flow_run.state.type }} {{ flow_run.state.timestamp }}",
    "work_pool": "{{ work_pool.name }} {{ work_pool.type }} {{ work_pool.default_queue_id }}",
    "work_queue": "{{ work_queue.name }} {{ work_queue.priority }} {{ work_queue.late_runs_count }}",
    "variables": "{{ variables.VARIABLE }} {{ variables.nosuch }}-",
    "absent": "-{{ task_run.name }}-{{ concurrency_limit.name }}-{{ event.payload.nosuch.deeper }}-",
    "humanized": "{{ event.payload.n | humanize_ordinal }} {{ event.payload.n | humanize_intcomma }}",
}
FORMS: Json = {
    "json": {
        "__prefect_kind": "json",
        "value": {"__prefect_kind": "jinja", "template": "{{ event.payload | tojson }}"},
    },
    "jinja": {"__prefect_kind": "jinja", "template": "{{ event.payload.nosuch }}"},
    "none": {"__prefect_kind": "none", "value": ["{{ event.id }}", 1, None]},
    "variable": {"__prefect_kind": "workspace_variable", "variable_name": "VARIABLE"},
    "removed": {"__prefect_kind": "json"},
}
PAYLOAD: Json = {"n": 1234, "nested": {"a": {"b": ["deep"]}}, "text": "<&> 'ü'"}


REFIRE_INTERVAL = 5.0
STORY = ["prefect.automation.triggered", "prefect.automation.action.failed"]


@dataclass(frozen=True, slots=True)
class Source:
    """The real client; counts how often it looks for events."""

    client: PrefectClient
    looks: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])

    async def filter_events(self, event_filter: Mapping[str, Any], limit: int, /) -> Sequence[ServerEvent]:
        self.looks.append(event_filter)
        return await self.client.filter_events(event_filter, limit)

    async def read_variable(self, name: str, /) -> Any:
        return await self.client.read_variable(name)

    async def read_object(self, *segments: str) -> Mapping[str, Any]:
        return await self.client.read_object(*segments)


@pytest.fixture
async def source(prefect_server: PrefectServer) -> AsyncGenerator[Source]:
    async with PrefectClient(
        settings=api_settings(prefect_server.api_url), worker_name=None, random=lambda: 0.5
    ) as client:
        yield Source(client)


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment that automations start, and what events are about."""

    api: PrefectApi
    pool: str
    deployment: str
    name: str = field(default_factory=lambda: f"auto-{uuid.uuid4().hex[:8]}")

    def automate(self, trigger: Json, *, when: str = "actions", **action: Any) -> str:
        """An automation that starts the deployment; its id."""
        run = {"type": "run-deployment", "source": "selected", "deployment_id": self.deployment, **action}
        body: Json = {"name": self.name, "trigger": trigger, "actions": [], when: [run]}
        return self.api.post("/automations/", body)["id"]

    def run(self, fire: Callable[[], object] = lambda: None, *, other_than: str | None = None) -> FlowRun:
        """The run that the automation starts once `fire` was called.

        The server learns of a new automation a moment after it has created it, and an event that is too early
        for it is lost; so it is fired again now and then.
        """
        again = 0.0

        def look() -> Json | None:
            nonlocal again
            if time.monotonic() >= again:
                fire()
                again = time.monotonic() + REFIRE_INTERVAL
            return next((run for run in self._runs() if run["id"] != other_than), None)

        run = wait_for(
            look,
            timeout=90,
            interval=0.2,
            description=lambda: f"the automation's run; the automations say {self.api.events(names=STORY)}",
        )
        return FlowRun.read(run)

    def _runs(self) -> list[Json]:
        return self.api.runs_of_deployment(self.deployment)


@pytest.fixture
def target(api: PrefectApi, pool: str) -> Target:
    deployment = api.create_deployment(pool=pool, entrypoint="flow.py:flow", enforce_parameter_schema=False)
    return Target(api=api, pool=pool, deployment=deployment)


def on_event(name: str, **fields: Any) -> Json:
    return {"type": "event", "posture": "Reactive", "expect": [name], "threshold": 1, "within": 0, **fields}


def involving(target: Target, other_run: str) -> list[Json]:
    """Related resources of every kind that the API has an object for."""
    api = target.api
    deployment = api.deployment(target.deployment)
    pool = api.pool(target.pool)
    named: list[tuple[str, str, dict[str, str]]] = [
        ("deployment", target.deployment, {}),
        ("flow", deployment["flow_id"], {}),
        ("work-queue", pool["default_queue_id"], {}),
        ("work-pool", pool["id"], {"prefect.resource.name": target.pool}),
        (
            "flow-run",
            other_run,
            {
                "prefect.state-message": "as it was then",
                "prefect.state-name": "Failed",
                "prefect.state-timestamp": "2024-05-01T10:11:12Z",
                "prefect.state-type": "FAILED",
            },
        ),
    ]
    return [
        {"prefect.resource.id": f"prefect.{kind}.{identity}", "prefect.resource.role": kind, **labels}
        for kind, identity, labels in named
    ]


def emit(target: Target, name: str, **fields: Any) -> None:
    event: Json = {
        "id": str(uuid.uuid4()),
        "event": name,
        "occurred": "2024-05-01T10:11:12.5+02:00",
        "resource": {"prefect.resource.id": f"thing.{target.name}", "region.code": "eu", "size": "9"},
        "related": [],
        "payload": PAYLOAD,
        **fields,
    }
    target.api.post("/events", [event])


async def test_job_variables_render_to_what_the_server_makes_of_the_same_parameters(
    target: Target, source: Source
) -> None:
    variable = f"v_{uuid.uuid4().hex[:8]}"
    target.api.create_variable(variable, {"any": ["json"]})
    templates = {name: text.replace("VARIABLE", variable) for name, text in TEMPLATES.items()}
    forms = {**FORMS, "variable": {**FORMS["variable"], "variable_name": variable}}
    values: Json = {**templates, **forms, "nested": {"deep": [templates["event"]]}}
    event = f"e.{target.name}"
    other_run = target.api.create_flow_run(target.deployment, state={"type": "PENDING"})
    related = involving(target, other_run)
    target.automate(
        on_event(event, for_each=["region.code"], match={"prefect.resource.id": f"thing.{target.name}"}),
        parameters=values,
        job_variables=values,
    )
    run = target.run(lambda: emit(target, event, related=related), other_than=other_run)

    assert run.created_by is not None
    assert run.created_by.type == CREATED_BY
    assert run.job_variables == values, "a server that renders them by itself: nothing left to do"
    assert needs_rendering(run.job_variables)
    rendered = await rendered_job_variables(run, source, sleep=anyio.sleep)
    assert rendered == run.raw["parameters"]
    assert rendered["json"] == PAYLOAD
    assert "removed" not in rendered


async def test_a_lone_expression_is_text_even_where_a_parameter_keeps_its_type(
    target: Target, source: Source
) -> None:
    event = f"e.{target.name}"
    values = {"n": "{{ event.payload.n }}", "list": "{{ event.payload.nested.a.b }}"}
    # An id fails as a parameter, but not as text.
    target.automate(on_event(event), parameters=values, job_variables={**values, "id": "{{ event.id }}"})
    run = target.run(lambda: emit(target, event))
    assert run.raw["parameters"] == {"n": 1234, "list": ["deep"]}
    rendered = await rendered_job_variables(run, source, sleep=anyio.sleep)
    assert str(uuid.UUID(rendered.pop("id")))
    assert rendered == {"n": "1234", "list": "['deep']"}


@pytest.mark.parametrize("occurred", ["1999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
async def test_an_event_of_any_time_is_found(target: Target, source: Source, occurred: str) -> None:
    event = f"e.{target.name}"
    target.automate(on_event(event), job_variables={"when": "{{ event.occurred.year }}"})
    run = target.run(lambda: emit(target, event, occurred=occurred))
    rendered = await rendered_job_variables(run, source, sleep=anyio.sleep)
    assert rendered == {"when": occurred[:4]}


async def test_an_action_on_the_trigger_is_about_the_automations_own_event(
    target: Target, source: Source
) -> None:
    event = f"e.{target.name}"
    text = (
        "{{ event.event }} {{ event.payload.triggering_event.id }} {{ events[0].id }} {{ automation.name }}"
    )
    target.automate(
        on_event(event, within=60),
        when="actions_on_trigger",
        parameters={"x": text},
        job_variables={"x": text},
    )
    run = target.run(lambda: emit(target, event))
    rendered = await rendered_job_variables(run, source, sleep=anyio.sleep)
    assert rendered == run.raw["parameters"]
    kind, about, part, name = rendered["x"].split()
    assert (kind, name) == ("prefect.automation.triggered", target.name)
    assert about == part


@pytest.mark.long
async def test_an_automation_that_fires_because_no_event_came_has_none(
    target: Target, source: Source
) -> None:
    text = "-{{ event.id }}-{{ deployment.name }}-{{ events | length }}-{{ labels | length }}-"
    trigger = on_event(f"never.{target.name}", posture="Proactive", within=10)
    target.automate(trigger, parameters={"x": text}, job_variables={"x": text})
    run = target.run()
    rendered = await rendered_job_variables(run, source, sleep=anyio.sleep)
    assert rendered == run.raw["parameters"] == {"x": "---0-0-"}


async def test_a_composite_trigger_has_its_last_event_but_not_its_parts(
    target: Target, source: Source
) -> None:
    event = f"e.{target.name}"
    text = "{{ event.id }} {{ labels | length }}"
    parts = [on_event(event), on_event(f"{event}.two")]
    target.automate(
        {"type": "compound", "require": "all", "within": 60, "triggers": parts},
        parameters={"x": text},
        job_variables={"x": text, "y": "{{ events | length }}"},
    )
    run = target.run(lambda: [emit(target, name) for name in (event, f"{event}.two")])
    with pytest.raises(AutomationTemplateError, match=r"job variable 'y'.*names events"):
        await rendered_job_variables(run, source, sleep=anyio.sleep)
    without = FlowRun.read({**run.raw, "job_variables": {"x": text}})
    assert await rendered_job_variables(without, source, sleep=anyio.sleep) == run.raw["parameters"]


async def test_a_run_whose_event_never_appears_is_given_up(target: Target, source: Source) -> None:
    run = FlowRun.read(
        {
            "id": str(uuid.uuid4()),
            "job_variables": {"x": "{{ event.id }}"},
            "idempotency_key": f"automation {uuid.uuid4()}, action 0, invocation {uuid.uuid4()}",
        }
    )
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.raises(AutomationTemplateError, match="not on the server after waiting 30 s"):
        await rendered_job_variables(run, source, sleep=sleep)
    assert sum(waits) == EVENT_WAIT
    assert len(source.looks) == len(waits) + 1
