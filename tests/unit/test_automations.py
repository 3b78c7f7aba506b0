import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any
from uuid import UUID

import pytest

from worker.api.errors import NotFound
from worker.api.models import FlowRun
from worker.api.records import ServerEvent
from worker.runs.automation_context import api_object
from worker.runs.automation_objects import EnumText, Labels, Record, event_object
from worker.runs.automation_templates import CONTEXT_NAMES, references, render
from worker.runs.automations import AutomationTemplateError, needs_rendering, rendered_job_variables

pytestmark = pytest.mark.anyio

RUN = "11111111-1111-4111-8111-111111111111"
EVENT = "22222222-2222-4222-8222-222222222222"
CHANGE = "33333333-3333-4333-8333-333333333333"
AUTOMATION = "44444444-4444-4444-8444-444444444444"
INVOCATION = "55555555-5555-4555-8555-555555555555"
DEPLOYMENT = "66666666-6666-4666-8666-666666666666"
OTHER_RUN = "77777777-7777-4777-8777-777777777777"
POOL = "88888888-8888-4888-8888-888888888888"
QUEUE = "99999999-9999-4999-8999-999999999999"

RAW_EVENT: dict[str, Any] = {
    "id": EVENT,
    "event": "order.placed",
    "occurred": "2024-05-01T10:11:12.500000Z",
    "received": "2024-05-01T10:11:13Z",
    "resource": {"prefect.resource.id": "shop.1", "prefect.resource.name": "shop", "region.code": "eu"},
    "related": [
        {"prefect.resource.id": f"prefect.deployment.{DEPLOYMENT}", "prefect.resource.role": "deployment"},
        {
            "prefect.resource.id": f"prefect.flow-run.{OTHER_RUN}",
            "prefect.resource.role": "flow-run",
            "prefect.state-message": "then",
            "prefect.state-name": "Failed",
            "prefect.state-timestamp": "2024-05-01T10:11:12Z",
            "prefect.state-type": "FAILED",
        },
        {
            "prefect.resource.id": f"prefect.work-pool.{POOL}",
            "prefect.resource.role": "work-pool",
            "prefect.resource.name": "pool",
        },
        {"prefect.resource.id": f"prefect.work-queue.{QUEUE}", "prefect.resource.role": "work-queue"},
        {"prefect.resource.id": "prefect.task-run.no-uuid", "prefect.resource.role": "task-run"},
    ],
    "payload": {
        "n": 3,
        "big": 10**9,
        "name": "Ada",
        "none": None,
        "list": [1, 2, 3],
        "many": list(range(200)),
        "nested": {"a": {"b": "deep"}},
        "items": "shadowed",
        "block": "{{ prefect.blocks.secret.token }}",
        "environment": "{{ $TOKEN }}",
        "cut": "{{ prefect.variables.x",
        "braces": "{{ a sentence }} {{}} }}",
        "escaped": "\\u007b\\u007b prefect.blocks.secret.token }}",
        "reference": {"$ref": {"block_document_id": EVENT}},
        "word": "quoted",
    },
    "follows": None,
}
CONTEXT: dict[str, Any] = {
    "event": event_object(RAW_EVENT),
    "labels": Labels({"shop.region": "eu", "shop": "x"}),
    "flow": None,
    "variables": {"region": "north"},
}


def jinja(template: Any) -> dict[str, Any]:
    return {"__prefect_kind": "jinja", "template": template}


def as_json(value: Any) -> dict[str, Any]:
    return {"__prefect_kind": "json", "value": value}


def rendered(value: Any, **variables: Any) -> Any:
    return render({"x": value}, CONTEXT, variables).get("x", "removed")


# which values are templates ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "{{ event.payload.x }}",
        "a {{ event.id }} b {{ automation.name }}",
        "{% if event.payload.x %}a{% endif %}",
        "{% for r in event.related %}{{ r.id }}{{ loop.index }}{% endfor %}",
        "{% set x = event.id %}{{ x }}",
        "{{ range(3) | join(event.payload.x) }}",
        "{{ 'a' ~ 'b' }}",
        "{{ event.nosuch | nosuchfilter(1) is nosuchtest }}",
        "{{ event.payload.n | humanize_ordinal }}",
        "{{ variables.region }}",
        {"__prefect_kind": "jinja", "template": "plain"},
        {"__prefect_kind": "none", "value": 1},
        {"__prefect_kind": None},
        {"a": [{"b": "{{ firing.triggered }}"}]},
        *(f"{{{{ {name} }}}}" for name in sorted(CONTEXT_NAMES)),
    ],
)
def test_a_template_needs_rendering(value: Any) -> None:
    assert needs_rendering({"plain": "x", "value": value})


@pytest.mark.parametrize(
    "value",
    [
        "text",
        5,
        None,
        "{{ $HOME }}",
        "{{ prefect.variables.x }}",
        "{{ prefect.blocks.secret.x }}",
        "{{ name }}",
        "{{ namespace }}",
        "{{ range(3) }}",
        "{{ event",
        "event }}",
        "{{}}",
        "{{ event.payload.x }} {{ $HOME }}",
        "{{ event.payload.x }} {{ name }}",
        "{% nosuchtag %}{{ event.id }}",
        '{"a": {"b": {}}}',
        "{{ '" + "(" * 5 + " }}",
        "{{ " + "(" * 5000 + "event" + ")" * 5000 + " }}",
        {"{{ event.id }}": "a key"},
    ],
)
def test_other_text_is_left_alone(value: Any) -> None:
    assert not needs_rendering({"value": value})
    assert rendered(value) == value


@pytest.mark.parametrize("value", [None, ["{{ event.id }}"], "{{ event.id }}", 3])
def test_what_is_no_object_is_left_to_the_layering_to_complain_about(value: Any) -> None:
    assert not needs_rendering(value)


def test_jinja2_is_not_imported_without_a_template() -> None:
    code = (
        "import sys\n"
        "from worker.runs import automations\n"
        "assert not automations.needs_rendering({'a': {'b': ['text', '{ x }', 5]}})\n"
        "assert 'jinja2' not in sys.modules\n"
        "assert automations.needs_rendering({'a': {'__prefect_kind': 'json'}})\n"
        "assert 'jinja2' not in sys.modules\n"
        "assert automations.needs_rendering({'a': '{{ event.id }}'})\n"
        "assert 'jinja2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_references_name_only_what_the_templates_use() -> None:
    found = references(
        {
            "a": "{{ event.id }} {{ variables.region }} {{ variables['other'] }}",
            "b": [jinja({"__prefect_kind": "none", "value": "{{ flow_run.name }} {{ unknown }}"})],
            "c": {"__prefect_kind": "workspace_variable", "variable_name": as_json('"third"')},
            "d": "{{ name }}",
            "e": as_json(jinja("{{ labels.a }}")),
            "f": {"__prefect_kind": "workspace_variable", "variable_name": jinja("{{ event.id }}")},
        }
    )
    assert found.names == {"event", "variables", "flow_run", "labels"}
    assert found.variables == {"region", "other", "third"}


@pytest.mark.parametrize(
    "template",
    ["{{ variables }}", "{{ variables[event.id] }}", "{{ variables.items() }}", "{{ variables|tojson }}"],
)
def test_all_workspace_variables_at_once_are_refused(template: str) -> None:
    with pytest.raises(AutomationTemplateError, match=r"'x'.*`variables.name`"):
        references({"x": template})


# what they render to -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ event.payload.name }}", "Ada"),
        ("{{ event.payload.n }}", "3"),
        ("{{ event.payload.none }}", "None"),
        ("{{ event.payload.list }}", "[1, 2, 3]"),
        ("{{ event.payload.nested.a.b }}", "deep"),
        ("{{ event.payload['items'] }}", "shadowed"),
        ("Hello {{ event.payload.name }}!", "Hello Ada!"),
        ("Hello {{ event.payload.missing.deeper }}!", "Hello !"),
        ("{{ event.payload.missing | default('none') }}", "none"),
        ("{{ event.payload.list | tojson }}", "[1, 2, 3]"),
        ("{{ event.payload.n * 2 + 2 ** 3 }}", "14"),
        ("{{ 'ab' * event.payload.n }}", "ababab"),
        ("{{ event.event }} {{ event.id }}", f"order.placed {EVENT}"),
        ("{{ event.occurred }}", "2024-05-01 10:11:12.500000+00:00"),
        ("{{ event.occurred.year }}", "2024"),
        ("{{ event.resource.id }} {{ event.resource.name }}", "shop.1 shop"),
        ("{{ event.resource['region.code'] }} {{ event.resource.labels.region.code }}", "eu eu"),
        ("{{ event.related[0].role }}", "deployment"),
        ("{{ event.resource_in_role['work-pool'].name }}", "pool"),
        ("{{ event.find_resource_label('related:flow-run:prefect.state-name') }}", "Failed"),
        ("{{ event.find_resource_label('region.code') }}", "eu"),
        ("{{ labels.shop }} {{ labels.shop.region }}", "x eu"),
        ("{{ flow.name }}-{{ event.payload.n }}", "-3"),
        ("{{ variables.region }}", "north"),
        ("{% for n in event.payload.list %}{{ n }}{% if not loop.last %},{% endif %}{% endfor %}", "1,2,3"),
        ("{% for n in event.payload.list %}{{ loop.length }}{% endfor %}", "333"),
        ("{% for n in event.payload.missing %}{{ n }}{% else %}none{% endfor %}", "none"),
        ("{{ 'see flow-run/" + OTHER_RUN + "' | flow_run_id }} {{ event.id }}", f"{OTHER_RUN} {EVENT}"),
        ("{{ event.payload.braces }}", "{{ a sentence }} {{}} }}"),
        ("{# comment #}{{ event.payload.name }}", "Ada"),
        ("{{ 'two' }}", "two"),
    ],
)
def test_a_plain_string_renders_to_text(template: str, expected: str) -> None:
    assert rendered(template) == expected


FORMS: list[tuple[Any, Any]] = [
    ({"__prefect_kind": "none", "value": {"a": "{{ event.id }}"}}, {"a": "{{ event.id }}"}),
    ({"__prefect_kind": "none", "value": [jinja("{{ event.payload.n }}")]}, ["3"]),
    ({"__prefect_kind": "mystery", "value": "{{ event.id }}"}, "{{ event.id }}"),
    ({"__prefect_kind": "mystery"}, None),
    (as_json("[1, {}]"), [1, {}]),
    (as_json({"a": jinja("{{ event.payload.n }}")}), {"a": "3"}),
    (as_json(jinja("{{ event.payload.nested | tojson }}")), {"a": {"b": "deep"}}),
    (as_json(jinja("{{ event.payload.n }}")), 3),
    (as_json([jinja("x")]), [jinja("x")]),
    (as_json(5), 5),
    ({"__prefect_kind": "json"}, "removed"),
    ({"__prefect_kind": "workspace_variable"}, "removed"),
    (as_json({"__prefect_kind": "json"}), "removed"),
    (jinja("{{ event.payload.n }}"), "3"),
    (jinja("{{ event.payload.missing }}"), ""),
    (jinja("{{ whatever }}"), ""),
    (jinja("no template"), "no template"),
    (jinja(as_json('"{{ event.payload.n }}"')), "3"),
    ({"__prefect_kind": "workspace_variable", "variable_name": "region"}, {"code": 7}),
    (as_json({"__prefect_kind": "workspace_variable", "variable_name": "text"}), [1]),
    ([1, {"__prefect_kind": "json"}, jinja("a")], [1, "a"]),
]


@pytest.mark.parametrize(("value", "expected"), FORMS)
def test_a_form_gives_what_the_server_gives(value: Any, expected: Any) -> None:
    assert rendered(value, region={"code": 7}, text="[1]") == expected


@pytest.mark.parametrize(
    ("whole", "expected"),
    [(as_json('{"env": {"A": "1"}}'), {"env": {"A": "1"}}), ({"__prefect_kind": "json"}, {})],
)
def test_the_job_variables_as_a_whole_may_be_a_form(whole: dict[str, Any], expected: Any) -> None:
    assert render(whole, CONTEXT, {}) == expected


def test_rendering_changes_nothing_that_was_given() -> None:
    given = {
        "env": {"A": "{{ event.payload.name }}", "B": "{{ $B }}"},
        "l": [jinja("{{ event.id }}"), {"k": 1}],
    }
    before = deepcopy(given)
    result = render(given, CONTEXT, {})
    assert given == before
    assert result == {"env": {"A": "Ada", "B": "{{ $B }}"}, "l": [EVENT, {"k": 1}]}


# what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{{ event.payload.missing }}", "no attribute 'missing'"),
        ("  {{ event.payload.missing.deeper }} ", "no attribute 'missing'"),
        ("{{ event.payload.name if false }}", "no else section"),
        ("{{ event.payload.n / 0 }}", "ZeroDivisionError"),
        ("{{ event.payload.name + 1 }}", "TypeError"),
        ("{{ event.payload.missing() }}", "no attribute 'missing'"),
        ("{{ event.payload.name | nosuch }}", "nosuch"),
        ("{{ event }}", "prints a whole event"),
        ("a {{ event ~ 'b' }}", "prints a whole event"),
        ("{{ event.url }}", "event.url cannot be known here"),
        ("{{ event | ui_url }}", "ui_url"),
        ("{{ event.id | humanize_activate }}", "humanize_activate"),
        ("{{ firing.triggered }}", "names firing, which cannot be known"),
        ("{{ event.occurred | tojson }}", "not JSON serializable"),
        (
            "{% for n in event.payload.many %}{% for m in event.payload.many %}{% endfor %}{% endfor %}",
            "steps",
        ),
        (
            "{% for a in [1] %}{% for b in [1] %}{% for c in [1] %}{% endfor %}{% endfor %}{% endfor %}",
            "nest 3 deep",
        ),
        ("{% for a in [1] %}{% endfor %}" * 11, "11 for loops"),
        ("{{ range(101) | list ~ event.id }}", "range"),
        ("{{ 'x' * event.payload.big }}", "too big"),
        ("{{ [1] * event.payload.big ~ event.id }}", "too big"),
        ("{{ 9 ** event.payload.big }}", "too big"),
        ("{% for n in event.payload.list %}{{ 'x' * 400000 }}{% endfor %}", "longer than"),
        ("{{ event.payload.list.append(1) }}", "unsafe"),
        ("{{ event.payload.name.__class__ }}", "unsafe"),
        ("{% include 'x' %}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ event.payload.block }}", "placeholder in double braces"),
        ("a {{ event.payload.environment }} b", "placeholder in double braces"),
        ("a {{ event.payload.cut }}", "placeholder in double braces"),
        (as_json(jinja('["{{ event.payload.escaped }}"]')), "placeholder in double braces"),
        (as_json(jinja('{"{{ event.payload.escaped }}": 1}')), "placeholder in double braces"),
        (as_json(jinja("{{ event.payload.reference | tojson }}")), r"\$ref"),
        (jinja("{{ event.payload"), "TemplateSyntaxError"),
        (jinja(5), "not text"),
        (jinja({"a": 1}), "not text"),
        ({"__prefect_kind": "jinja"}, "no 'template'"),
        ({"__prefect_kind": "none"}, "no 'value'"),
        (as_json("{"), "valid JSON"),
        (as_json(jinja("{{ event.payload.word }}")), "valid JSON"),
        ({"__prefect_kind": "workspace_variable", "variable_name": "nosuch"}, "no variable 'nosuch'"),
        ({"__prefect_kind": "workspace_variable", "variable_name": ["a"]}, "not text"),
    ],
)
def test_what_cannot_be_rendered_is_said_with_its_place(value: Any, reason: str) -> None:
    with pytest.raises(AutomationTemplateError, match=reason) as caught:
        render({"env": {"A": ["", value]}}, CONTEXT, {})
    assert str(caught.value).startswith("job variable 'env.A[1]' cannot be rendered")
    assert "\n" not in str(caught.value)


def test_a_form_that_replaces_all_job_variables_must_give_an_object() -> None:
    with pytest.raises(AutomationTemplateError, match="list, not an object"):
        render(as_json("[]"), CONTEXT, {})


def test_the_step_limit_holds_for_all_templates_together() -> None:
    template = "{% for n in event.payload.many %}{% endfor %}"
    assert render({"x": [template] * 50}, CONTEXT, {}) == {"x": [""] * 50}
    with pytest.raises(AutomationTemplateError, match="steps"):
        render({"x": [template] * 51}, CONTEXT, {})


def test_missing_humanize_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2_humanize_extension", None)
    with pytest.raises(AutomationTemplateError, match="jinja2-humanize-extension"):
        rendered("{{ event.payload.n | humanize_ordinal }}")


# the objects ---------------------------------------------------------------------------------------------


def test_an_enum_member_is_its_value_and_prints_its_enum() -> None:
    member = EnumText("StateType", "FAILED")
    assert member == "FAILED"
    assert (member.value, member.name, str(member)) == ("FAILED", "FAILED", "StateType.FAILED")


def test_free_form_fields_are_not_looked_into() -> None:
    run = api_object(
        "flow_run", {"id": RUN, "parameters": {"created": "2024", "id": "5"}, "external_id": "no uuid"}
    )
    assert run.id == UUID(RUN)
    assert run.parameters == {"created": "2024", "id": "5"}
    assert run.external_id == "no uuid"


def test_a_record_shows_no_field_in_its_repr() -> None:
    assert repr(Record("flow_run", {"name": "secret"})) == "<flow_run>"


# finding the event ---------------------------------------------------------------------------------------

ACTION: dict[str, Any] = {
    "id": "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa",
    "event": "prefect.automation.action.triggered",
    "occurred": "2024-05-01T10:11:14Z",
    "resource": {
        "prefect.resource.id": f"prefect.automation.{AUTOMATION}",
        "prefect.trigger-type": "event",
    },
    "related": [
        {"prefect.resource.id": f"prefect.flow-run.{RUN}", "prefect.resource.role": "flow-run"},
        {
            "prefect.resource.id": f"prefect.event.{CHANGE}",
            "prefect.resource.role": "automation-triggered-event",
        },
        {"prefect.resource.id": f"prefect.event.{EVENT}", "prefect.resource.role": "triggering-event"},
    ],
    "payload": {"action_index": 0, "action_type": "run-deployment", "invocation": INVOCATION},
    "follows": None,
}
CHANGE_EVENT: dict[str, Any] = {
    "id": CHANGE,
    "event": "prefect.automation.triggered",
    "occurred": "2024-05-01T10:11:14Z",
    "resource": {"prefect.resource.id": f"prefect.automation.{AUTOMATION}"},
    "related": [],
    "payload": {"triggering_labels": {"shop.region": "eu"}, "triggering_event": RAW_EVENT},
}
OBJECTS: dict[str, dict[str, Any]] = {
    f"automations/{AUTOMATION}": {
        "id": AUTOMATION,
        "name": "on order",
        "trigger": {"type": "event", "within": 2.0},
    },
    f"deployments/{DEPLOYMENT}": {"id": DEPLOYMENT, "name": "dep"},
    f"flow_runs/{OTHER_RUN}": {
        "id": OTHER_RUN,
        "name": "other",
        "state_type": "COMPLETED",
        "state": {"type": "COMPLETED", "name": "Completed", "message": "now"},
    },
    "work_pools/pool": {"id": POOL, "name": "pool"},
    f"work_queues/{QUEUE}": {"id": QUEUE, "name": "queue"},
    f"work_queues/{QUEUE}/status": {"late_runs_count": 2},
}


class FakeSource:
    """A server on which events appear only after so many seconds of sleeping."""

    def __init__(
        self, events: Sequence[Mapping[str, Any]], *, objects: Mapping[str, Any] = OBJECTS, delay: float = 0.0
    ) -> None:
        self.events = [ServerEvent.read(event) for event in events]
        self.objects = objects
        self.delay = delay
        self.slept = 0.0
        self.filters: list[Mapping[str, Any]] = []
        self.read: list[str] = []

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds

    async def filter_events(self, event_filter: Mapping[str, Any], limit: int, /) -> Sequence[ServerEvent]:
        assert limit > 0
        self.filters.append(event_filter)
        return [
            event for event in self.events if self.slept >= self.delay and self._matches(event, event_filter)
        ]

    @staticmethod
    def _matches(event: ServerEvent, event_filter: Mapping[str, Any]) -> bool:
        involved = {item["prefect.resource.id"] for item in [event.resource, *event.related]}
        occurred = event_filter["occurred"]
        return (
            str(event.id) in event_filter.get("id", {"id": [str(event.id)]})["id"]
            and event.event in event_filter.get("event", {"name": [event.event]})["name"]
            and bool(involved & set(event_filter.get("any_resource", {"id": involved})["id"]))
            and occurred["since"] <= event.raw["occurred"] <= occurred["until"]
        )

    async def read_object(self, *segments: str) -> Mapping[str, Any]:
        self.read.append("/".join(segments))
        try:
            return self.objects["/".join(segments)]
        except KeyError:
            raise NotFound("read", "not found", status=404) from None

    async def read_variable(self, name: str, /) -> Any:
        self.read.append(f"variables/{name}")
        if name != "region":
            raise NotFound("read", "not found", status=404)
        return "north"


def run_with(job_variables: Any) -> FlowRun:
    return FlowRun.read(
        {
            "id": RUN,
            "job_variables": job_variables,
            "created_by": {"type": "AUTOMATION", "id": AUTOMATION},
            "idempotency_key": f"automation {AUTOMATION}, action 0, invocation {INVOCATION}",
        }
    )


async def resolved(source: FakeSource, template: Any, *, deadline: float = 30.0) -> Any:
    result = await rendered_job_variables(
        run_with({"x": template}), source, sleep=source.sleep, deadline=deadline
    )
    return result["x"]


EVENTS = [ACTION, CHANGE_EVENT, RAW_EVENT]
UNLINKED_ACTION = {**ACTION, "related": ACTION["related"][:1], "follows": EVENT}


@pytest.mark.parametrize(
    ("template", "expected", "read"),
    [
        ("{{ event.payload.name }}", "Ada", []),
        ("{{ labels.shop.region }}", "eu", []),
        ("{{ automation.name }}", "on order", [f"automations/{AUTOMATION}"]),
        ("{{ deployment.name }}", "dep", [f"deployments/{DEPLOYMENT}"]),
        ("{{ work_pool.name }}", "pool", ["work_pools/pool"]),
        (
            "{{ work_queue.name }} {{ work_queue.late_runs_count }}",
            "queue 2",
            [f"work_queues/{QUEUE}", f"work_queues/{QUEUE}/status"],
        ),
        (
            "{{ flow_run.name }} {{ flow_run.state.name }} {{ flow_run.state.type.value }} {{ flow_run.state.message }}",
            "other Failed FAILED then",
            [f"flow_runs/{OTHER_RUN}"],
        ),
        ("-{{ flow.name }}{{ task_run.name }}{{ concurrency_limit.name }}-", "--", []),
        ("{{ firing.triggered }}", "2024-05-01 10:11:14+00:00", [f"automations/{AUTOMATION}"]),
        ("{{ firing.trigger.within }}", "0:00:02", [f"automations/{AUTOMATION}"]),
        ("{{ firing.triggering_event.payload.n }}", "3", [f"automations/{AUTOMATION}"]),
        ("{{ firings | length }}", "1", [f"automations/{AUTOMATION}"]),
        ("{{ events[0].payload.n }}", "3", []),
        ("{{ variables.region }}", "north", ["variables/region"]),
        ("-{{ variables.nosuch }}-", "--", ["variables/nosuch"]),
        ({"__prefect_kind": "workspace_variable", "variable_name": "region"}, "north", ["variables/region"]),
    ],
)
async def test_the_context_is_read_as_far_as_it_is_named(
    template: Any, expected: str, read: list[str]
) -> None:
    source = FakeSource(EVENTS)
    assert await resolved(source, template) == expected
    assert source.read == read
    assert source.slept == 0


async def test_no_event_is_looked_for_when_none_is_named() -> None:
    source = FakeSource([])
    assert await resolved(source, as_json("[1]")) == [1]
    assert await resolved(source, "{{ 1 + 1 }}") == "2"
    assert await resolved(source, "{{ variables.region }}") == "north"
    assert source.filters == []


async def test_an_event_of_any_time_is_found() -> None:
    future = {**RAW_EVENT, "occurred": "2999-01-01T00:00:00Z"}
    assert await resolved(FakeSource([UNLINKED_ACTION, future]), "{{ event.occurred.year }}") == "2999"


async def test_the_event_is_waited_for() -> None:
    source = FakeSource(EVENTS, delay=5.0)
    assert await resolved(source, "{{ event.payload.name }}") == "Ada"
    assert 5.0 <= source.slept < 8.0


@pytest.mark.parametrize(
    ("events", "template", "what"),
    [
        ([], "{{ event.id }}", "which automation's action created this run"),
        ([UNLINKED_ACTION], "{{ event.id }}", f"the triggering event {EVENT}"),
        ([ACTION, RAW_EVENT], "{{ labels.a }}", f"the automation's own event {CHANGE}"),
    ],
)
async def test_waiting_for_an_event_ends(events: list[dict[str, Any]], template: str, what: str) -> None:
    source = FakeSource(events)
    with pytest.raises(AutomationTemplateError, match=f"{what} is not on the server after waiting 12 s"):
        await resolved(source, template, deadline=12.0)
    assert source.slept == 12.0


async def test_only_the_action_that_created_the_run_counts() -> None:
    other_event = {**RAW_EVENT, "id": OTHER_RUN, "payload": {"name": "Eve"}}
    links = [{"prefect.resource.id": f"prefect.flow-run.{RUN}", "prefect.resource.role": "target"}]
    links += [
        {"prefect.resource.id": f"prefect.event.{OTHER_RUN}", "prefect.resource.role": "triggering-event"}
    ]
    cancels = {
        **ACTION,
        "related": links,
        "payload": {"action_type": "cancel-flow-run", "invocation": INVOCATION},
    }
    elsewhere = {
        **ACTION,
        "related": links,
        "payload": {"action_type": "run-deployment", "invocation": OTHER_RUN},
    }
    source = FakeSource([cancels, elsewhere, *EVENTS, other_event])
    assert await resolved(source, "{{ event.payload.name }}") == "Ada"


async def test_an_older_server_says_the_event_only_by_follows() -> None:
    assert await resolved(FakeSource([UNLINKED_ACTION, RAW_EVENT]), "{{ event.payload.name }}") == "Ada"
    with pytest.raises(AutomationTemplateError, match="names labels, which cannot be known"):
        await resolved(FakeSource([UNLINKED_ACTION, RAW_EVENT]), "{{ labels.a }}")


async def test_an_event_keeps_the_offset_of_its_time() -> None:
    copy = {**RAW_EVENT, "occurred": "2024-05-01T12:11:12.5+02:00"}
    change = {**CHANGE_EVENT, "payload": {**CHANGE_EVENT["payload"], "triggering_event": copy}}
    assert await resolved(FakeSource([ACTION, change, RAW_EVENT]), "{{ event.occurred.hour }}") == "12"


async def test_an_event_the_state_change_has_no_copy_of_is_read() -> None:
    change = {**CHANGE_EVENT, "payload": {**CHANGE_EVENT["payload"], "triggering_event": None}}
    assert await resolved(FakeSource([ACTION, change, RAW_EVENT]), "{{ event.payload.name }}") == "Ada"


async def test_an_action_on_the_trigger_is_about_the_state_change_itself() -> None:
    triggering = {
        "prefect.resource.id": f"prefect.event.{CHANGE}",
        "prefect.resource.role": "triggering-event",
    }
    action = {**ACTION, "related": [*ACTION["related"][:2], triggering]}
    source = FakeSource([action, CHANGE_EVENT])
    assert (
        await resolved(source, "{{ event.event }} {{ events[0].id }}")
        == f"prefect.automation.triggered {EVENT}"
    )


async def test_an_older_server_that_links_no_event_is_not_taken_for_one_without() -> None:
    action = {**ACTION, "related": ACTION["related"][:1]}
    with pytest.raises(AutomationTemplateError, match="names event, which cannot be known"):
        await resolved(FakeSource([action]), "-{{ event.id }}-")


async def test_an_automation_may_fire_because_no_event_came() -> None:
    action = {**ACTION, "related": ACTION["related"][:2]}
    payload: dict[str, Any] = {"triggering_labels": {}, "triggering_event": None}
    change = {**CHANGE_EVENT, "payload": payload}
    source = FakeSource([action, change])
    assert (
        await resolved(source, "-{{ event.payload.name }}{{ deployment.name }}{{ events | length }}-")
        == "-0-"
    )
    assert await resolved(source, "{% if event %}an event{% else %}none{% endif %}") == "none"


@pytest.mark.parametrize("template", ["{{ firings }}", "{{ events }}", "{{ firing.triggering_firings }}"])
async def test_the_parts_of_a_composite_trigger_are_not_known(template: str) -> None:
    action = {**ACTION, "resource": {**ACTION["resource"], "prefect.trigger-type": "compound"}}
    source = FakeSource([action, CHANGE_EVENT, RAW_EVENT])
    with pytest.raises(AutomationTemplateError, match="known"):
        await resolved(source, template)
    assert await resolved(source, "{{ firing.triggering_labels['shop.region'] }}") == "eu"


@pytest.mark.parametrize(
    "template", ["{{ firing.id }}", "{{ firing.trigger_states }}", "{{ firing | tojson }}"]
)
async def test_what_only_the_server_knows_of_a_firing_is_refused(template: str) -> None:
    with pytest.raises(AutomationTemplateError, match="cannot be known here"):
        await resolved(FakeSource(EVENTS), template)


async def test_an_object_that_was_deleted_since_is_an_error() -> None:
    with pytest.raises(AutomationTemplateError, match=f"deployments/{DEPLOYMENT} does not exist any more"):
        await resolved(FakeSource(EVENTS, objects={}), "-{{ deployment.name }}-")


async def test_another_pool_of_the_same_name_is_not_the_events_pool() -> None:
    source = FakeSource(EVENTS, objects={"work_pools/pool": {"id": QUEUE, "name": "pool"}})
    with pytest.raises(AutomationTemplateError, match="another one has its name"):
        await resolved(source, "-{{ work_pool.name }}-")
