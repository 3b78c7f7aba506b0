from typing import Any, Final

import pytest

from tests.support.job_variable_resolving import (
    CASES,
    LAYERED,
    STOCK,
    CountingReferences,
    default_with,
    fields_of,
    inputs_of,
    outcome,
    references_of,
    resolved,
)
from worker.explain.input import FileReferences
from worker.runs.job_variables import Inputs, JobVariablesError, JobVariablesMode, Layer, Provenance, resolve

LAYERED_DIFFERS: Final[dict[str, dict[str, Any]]] = {
    "dot key on flow run versus nested on deployment: nested wins": {"env": {"FOO": "run"}},
}
"""The worked cases that one of the two ways of the layered mode touches, with what is different."""


def case_inputs(case: dict[str, Any]) -> tuple[Inputs, CountingReferences]:
    return (
        inputs_of(
            template=case["base_job_template"],
            deployment=case["deployment_job_variables"],
            flow_run=case["flow_run_job_variables"],
        ),
        references_of(case["blocks"], case["blocks_by_id"], case["variables"]),
    )


# --- the worked cases ---


@pytest.mark.parametrize("mode", JobVariablesMode)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_worked_case(case: dict[str, Any], mode: JobVariablesMode) -> None:
    inputs, references = case_inputs(case)
    if "expected_error" in case:
        with pytest.raises(JobVariablesError) as raised:
            resolved(inputs, mode, references)
        expected = case["expected_error"]
        assert (raised.value.type, raised.value.stage) == (expected["type"], expected["stage"])
        assert raised.value.message
        return
    job = resolved(inputs, mode, references)
    different = LAYERED_DIFFERS.get(case["name"], {}) if mode is LAYERED else {}
    assert fields_of(job) == {**case["expected"], **different}
    extra = case["expected_extra"]
    assert (job.command is not None) == extra["command_configured"]
    assert sorted(references.reads) == sorted(extra["api_reads"])
    if not different:
        assert {k: v for k, v in job.env.items() if v is not None} == extra["env_after_null_drop"]
        assert not any("differ from stock" in note for note in job.notes)


def test_every_case_named_as_different_exists() -> None:
    assert set(LAYERED_DIFFERS) <= {case["name"] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_value_has_a_provenance(case: dict[str, Any]) -> None:
    if "expected" not in case:
        return
    inputs, references = case_inputs(case)
    job = resolved(inputs, STOCK, references)
    scalars = {"command", "python", "working_dir", "stream_output", "name"}
    assert set(job.provenance) == scalars | {f"env.{k}" for k in job.env} | {
        f"labels.{k}" for k in job.labels
    }
    assert job.notes == ()


# --- provenance ---

TOKEN = "{{ prefect.blocks.secret.tok }}"
SECRET = "the-text-of-the-block"


def provenance(
    key: str,
    *,
    template: Any = None,
    deployment: dict[str, Any] | None = None,
    flow_run: dict[str, Any] | None = None,
) -> Provenance:
    references = references_of(
        {"secret/tok": {"value": SECRET}, "json/env": {"value": {"K": SECRET}}},
        {"some-id": {"K": SECRET}},
        {"v": SECRET, "v_env": {"K": SECRET}},
    )
    inputs = inputs_of(template=template, deployment=deployment, flow_run=flow_run)
    job = resolved(inputs, LAYERED, references)
    assert SECRET not in repr((job.provenance, job.notes))
    return job.provenance[key]


@pytest.mark.parametrize(
    ("key", "given_inputs", "expected"),
    [
        ("command", {}, Provenance(Layer.WORKER_DEFAULT)),
        ("stream_output", {}, Provenance(Layer.POOL_DEFAULT)),
        ("name", {}, Provenance(Layer.WORKER_DEFAULT)),
        ("command", {"template": default_with({"command": "fixed"})}, Provenance(Layer.POOL_TEMPLATE)),
        ("command", {"template": default_with(command="def")}, Provenance(Layer.POOL_DEFAULT)),
        (
            "command",
            {
                "template": default_with(command="def"),
                "deployment": {"command": "d"},
                "flow_run": {"command": "r"},
            },
            Provenance(Layer.FLOW_RUN, (Layer.POOL_DEFAULT, Layer.DEPLOYMENT)),
        ),
        (
            "labels.b",
            {"deployment": {"labels": {"b": "d"}}, "flow_run": {"labels": {"b": "r"}}},
            Provenance(Layer.FLOW_RUN, (Layer.DEPLOYMENT,)),
        ),
        (
            "labels.c",
            {"deployment": {"labels": {"b": "d"}}, "flow_run": {"labels": {"c": "r"}}},
            Provenance(Layer.FLOW_RUN),
        ),
        (
            "env.A",
            {
                "template": default_with({"env": {"A": "tmpl"}}, env={"A": "def"}),
                "deployment": {"env": {"A": "d"}},
                "flow_run": {"env": {"A": "r"}},
            },
            Provenance(Layer.FLOW_RUN, (Layer.POOL_TEMPLATE, Layer.POOL_DEFAULT, Layer.DEPLOYMENT)),
        ),
        (
            "env.A",
            {"deployment": {"env": {"A": "d"}}, "flow_run": {"env": {"A": f"Bearer {TOKEN}"}}},
            Provenance(Layer.FLOW_RUN, (Layer.DEPLOYMENT,), ("block secret/tok",)),
        ),
        (
            "env.A",
            {
                "deployment": {
                    "env": {"A": f"{TOKEN}{{{{ prefect.variables.v }}}}{{{{ prefect.variables.no }}}}"}
                }
            },
            Provenance(
                Layer.DEPLOYMENT, filled_by=("block secret/tok", "variable v", "variable no (not set)")
            ),
        ),
        (
            "env.A",
            {"deployment": {"env": {"A": ["x", TOKEN]}}},
            Provenance(Layer.DEPLOYMENT, filled_by=("block secret/tok",)),
        ),
        (
            "env.K",
            {"template": default_with(env="{{ prefect.blocks.json.env }}")},
            Provenance(Layer.BLOCK, filled_by=("block json/env",)),
        ),
        (
            "env.K",
            {
                "template": default_with(env={"$ref": {"block_document_id": "some-id"}}),
                "deployment": {"env": {"K": TOKEN}},
            },
            Provenance(Layer.BLOCK, (Layer.DEPLOYMENT,), ("block some-id",)),
        ),
        (
            "env.K",
            {"flow_run": {"env": "{{ prefect.variables.v_env }}"}},
            Provenance(Layer.VARIABLE, filled_by=("variable v_env",)),
        ),
        (
            "working_dir",
            {"template": default_with({"working_dir": "{{ $LEAN_ENV_PROBE }}/{{ $LEAN_ENV_MISSING }}"})},
            Provenance(
                Layer.POOL_TEMPLATE,
                filled_by=(
                    "worker environment LEAN_ENV_PROBE",
                    "worker environment LEAN_ENV_MISSING (not set)",
                ),
            ),
        ),
        (
            "command",
            {"template": default_with({"command": "wrap {{ name }}"}), "flow_run": {"name": "n"}},
            Provenance(Layer.POOL_TEMPLATE, filled_by=("job variable name (flow run)",)),
        ),
        (
            "command",
            {
                "template": default_with({"command": "{{ cfg.cmd }}"}),
                "deployment": {"cfg": {"cmd": "d"}},
                "flow_run": {"cfg.cmd": "r"},
            },
            Provenance(Layer.FLOW_RUN, (Layer.DEPLOYMENT,), ("job variable cfg.cmd (flow run)",)),
        ),
        (
            "env.T",
            {"template": default_with({"env": {"T": "{{ name }}"}}), "deployment": {"name": "n"}},
            Provenance(Layer.DEPLOYMENT, filled_by=("job variable name (deployment)",)),
        ),
        (
            "name",
            {"deployment": {"name": "{{ ctx.flow.name }}-{{ ctx.nope }}"}},
            Provenance(
                Layer.DEPLOYMENT, filled_by=("run context ctx.flow.name", "run context ctx.nope (not set)")
            ),
        ),
        (
            "env.FOO",
            {"deployment": {"env": {"FOO": "d"}}, "flow_run": {"FOO": TOKEN}},
            Provenance(Layer.UNDECLARED, (Layer.DEPLOYMENT,), ("block secret/tok",), on=Layer.FLOW_RUN),
        ),
        (
            "env.FOO",
            {"deployment": {"FOO": "d"}, "flow_run": {"env.FOO": "r"}},
            Provenance(Layer.FLOW_RUN, (Layer.UNDECLARED,)),
        ),
    ],
)
def test_provenance(key: str, given_inputs: dict[str, Any], expected: Provenance) -> None:
    assert provenance(key, **given_inputs) == expected


def test_provenance_of_a_whole_configuration_taken_from_a_block() -> None:
    template = {"job_configuration": {"$ref": {"block_document_id": "some-id"}}, "variables": {}}
    references = references_of(blocks_by_id={"some-id": {"command": "x", "env": {"K": "v"}}})
    job = resolved(inputs_of(template=template), LAYERED, references)
    assert job.provenance["command"] == Provenance(Layer.BLOCK, filled_by=("block some-id",))
    assert job.provenance["env.K"] == Provenance(Layer.BLOCK, filled_by=("block some-id",))


def test_provenance_as_json() -> None:
    assert Provenance(Layer.FLOW_RUN, (Layer.DEPLOYMENT,), ("block secret/tok",)).as_json() == {
        "layer": "flow run",
        "overrode": ["deployment"],
        "filled_by": ["block secret/tok"],
    }
    assert Provenance(Layer.UNDECLARED, on=Layer.FLOW_RUN).as_json() == {
        "layer": "undeclared",
        "on": "flow run",
        "overrode": [],
        "filled_by": [],
    }


# --- errors ---


@pytest.mark.parametrize(
    ("template", "kind", "names"),
    [
        ({"job_configuration": {}}, "KeyError", "'variables'"),
        ({"variables": {}}, "KeyError", "'job_configuration'"),
        ({"job_configuration": [], "variables": {}}, "AttributeError", "job_configuration"),
        ({"job_configuration": {}, "variables": []}, "AttributeError", "variables"),
        ({"job_configuration": {}, "variables": {"properties": None}}, "AttributeError", "properties"),
        ({"job_configuration": {}, "variables": {"properties": {"x": None}}}, "TypeError", "properties.x"),
        (
            {"job_configuration": {}, "variables": {"properties": {"x": ["default"]}}},
            "AttributeError",
            "properties.x",
        ),
        (
            {"job_configuration": {"env": {}}, "variables": {"properties": {"env": {"default": "x"}}}},
            "TypeError",
            "pool default",
        ),
    ],
)
def test_a_malformed_template_is_an_error_that_names_the_place(
    template: dict[str, Any], kind: str, names: str
) -> None:
    with pytest.raises(JobVariablesError) as raised:
        resolved(inputs_of(template=template))
    assert (raised.value.type, raised.value.stage) == (kind, "build")
    assert names in raised.value.message


@pytest.mark.parametrize("mode", JobVariablesMode)
@pytest.mark.parametrize(
    ("given_inputs", "python", "layer"),
    [
        ({}, None, Layer.WORKER_DEFAULT),
        ({"deployment": {"python": "/venv"}}, "/venv", Layer.DEPLOYMENT),
        ({"deployment": {"python": "/venv"}, "flow_run": {"python": "py"}}, "py", Layer.FLOW_RUN),
        ({"deployment": {"python": "/venv"}, "flow_run": {"python": None}}, None, Layer.FLOW_RUN),
        ({"deployment": {"python": ""}}, None, Layer.DEPLOYMENT),
        ({"deployment": {"python": "{{ prefect.variables.v }}"}}, "/of-a-variable", Layer.DEPLOYMENT),
        ({"template": default_with(python="/venv")}, "/venv", Layer.POOL_DEFAULT),
        ({"template": default_with({"python": "/venv"})}, "/venv", Layer.POOL_TEMPLATE),
    ],
)
def test_an_interpreter_is_a_variable_as_any(
    mode: JobVariablesMode, given_inputs: dict[str, Any], python: str | None, layer: Layer
) -> None:
    references = references_of(variables={"v": "/of-a-variable"})
    job = resolved(inputs_of(**given_inputs), mode, references)
    assert (job.python, job.provenance["python"].layer, job.notes) == (python, layer, ())


@pytest.mark.parametrize("value", [5, True, ["/venv"], {"path": "/venv"}])
def test_an_interpreter_is_named_by_a_text(value: Any) -> None:
    with pytest.raises(JobVariablesError, match=r"python must be a string or null, got .*deployment"):
        resolved(inputs_of(deployment={"python": value}))


def test_a_pool_of_prefects_has_no_interpreter_and_the_log_says_how_it_gets_one() -> None:
    template = default_with()
    del template["job_configuration"]["python"], template["variables"]["properties"]["python"]
    job = resolved(inputs_of(template=template, deployment={"python": "/venv"}))
    assert job.python is None
    (note,) = job.notes
    assert "'python' (deployment) is ignored" in note
    assert "add it to the pool's base job template" in note


def test_an_error_names_every_wrong_field_and_its_layer_and_no_value() -> None:
    references = references_of({"secret/tok": {"value": {"k": SECRET}}})
    inputs = inputs_of(
        deployment={"command": TOKEN, "labels": {"a": 1}, "stream_output": SECRET},
        flow_run={"working_dir": 5},
    )
    with pytest.raises(JobVariablesError) as raised:
        resolved(inputs, LAYERED, references)
    assert raised.value.message == (
        "command must be a string or null, got object (set by: deployment, block secret/tok); "
        "labels.a must be a string, got number (set by: deployment); "
        "stream_output must be true or false, got another string (set by: deployment); "
        "working_dir must be a string or null, got number (set by: flow run)"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"x{TOKEN}",
        "{{ prefect.blocks.secret.tok.nope }}",
        "{{ prefect.blocks.secret }}",
        "{{ prefect.blocks.no.no }}",
    ],
)
def test_an_error_about_a_block_shows_neither_its_text_nor_the_text_around_it(text: str) -> None:
    references = references_of({"secret/tok": {"value": {"k": SECRET}}})
    with pytest.raises(JobVariablesError) as raised:
        resolved(inputs_of(deployment={"env": {"A": f"{text} other-secret"}}), STOCK, references)
    assert "env.A" in raised.value.message
    assert "secret}}" not in raised.value.message
    assert SECRET not in raised.value.message
    assert "other-secret" not in raised.value.message


def test_too_deep_a_nesting_is_an_error() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    for mode in JobVariablesMode:
        assert outcome(inputs_of(deployment={"env": {"A": deep}}), mode) == "RecursionError in build"


@pytest.mark.anyio
async def test_a_failure_to_read_a_reference_passes_through() -> None:
    class Broken(CountingReferences):
        async def variable(self, name: str) -> Any:
            raise ConnectionError(name)

    inputs = inputs_of(deployment={"command": "{{ prefect.variables.v }}"})
    with pytest.raises(ConnectionError):
        await resolve(inputs, Broken(FileReferences({}, {}, {})), LAYERED)


def test_a_document_is_read_once() -> None:
    references = references_of({"secret/tok": {"value": "x"}}, {"i": {"a": 1}}, {"v": 1})
    ref = {"$ref": {"block_document_id": "i"}}
    variable = "{{ prefect.variables.v }}"
    resolved(
        inputs_of(
            deployment={
                "env": {"A": TOKEN, "B": f"{TOKEN}!", "C": ref, "D": ref, "E": variable, "F": variable}
            }
        ),
        LAYERED,
        references,
    )
    assert references.reads == ["block:secret/tok", "block_id:i", "variable:v"]
