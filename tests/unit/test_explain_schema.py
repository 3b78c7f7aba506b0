"""Which variables the server refuses a run for; compared with a real server in tests/server."""

from typing import Any

import pytest

from tests.support.job_variable_resolving import inputs_of
from worker.explain.schema import refusal, still_required

PROPERTIES: dict[str, Any] = {
    "image": {"type": "string"},
    "size": {"type": "integer", "default": 3},
    "kind": {"enum": ["a", "b"]},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
}


def template(*required: str, **schema: Any) -> dict[str, Any]:
    variables = {"type": "object", "properties": PROPERTIES, "required": list(required), **schema}
    return {"job_configuration": {"image": "{{ image }}"}, "variables": variables}


@pytest.mark.parametrize(
    ("required", "deployment", "run", "words"),
    [
        ([], {}, {}, None),
        (["image"], {}, {}, "'image' is a required property"),
        (["image"], {"image": "x"}, {}, None),
        (["image"], {}, {"image": "x"}, None),
        (["size"], {}, {}, None),
        ([], {"size": "three"}, {}, 'size does not fit the pool\'s schema: type ["integer", "null"]'),
        ([], {"size": "three"}, {"size": 4}, None),
        (["size"], {"size": None}, {}, 'size does not fit the pool\'s schema: type "integer"'),
        ([], {"size": None}, {}, None),
        ([], {"kind": "s3cr3t"}, {}, 'kind does not fit the pool\'s schema: enum ["a", "b"]'),
        ([], {"env": {"A": 1}}, {}, 'env.A does not fit the pool\'s schema: type "string"'),
        ([], {"env.A": 1, "undeclared": 1}, {}, None),
    ],
)
def test_what_is_refused(
    required: list[str], deployment: dict[str, Any], run: dict[str, Any], words: str | None
) -> None:
    inputs = inputs_of(template=template(*required), deployment=deployment, flow_run=run)
    expected = None if words is None else f"the server would not create the run (422): {words}"
    assert refusal(inputs, complete=True) == expected


def test_undeclared_names_where_the_schema_closes_the_list() -> None:
    inputs = inputs_of(template=template(additionalProperties=False), flow_run={"env.A": "s3cr3t"})
    assert "'env.A' was unexpected" in str(refusal(inputs, complete=True))
    assert "s3cr3t" not in str(refusal(inputs, complete=True))


def test_a_block_as_default_is_not_looked_into() -> None:
    properties = {**PROPERTIES, "image": {"type": "string", "default": {"$ref": {"block_document_id": "x"}}}}
    inputs = inputs_of(template=template("image", properties=properties))
    assert refusal(inputs, complete=True) is None


def test_with_a_wrong_default_nothing_is_required() -> None:
    properties = {**PROPERTIES, "size": {"type": "integer", "default": "x"}}
    inputs = inputs_of(template=template("image", properties=properties))
    assert refusal(inputs, complete=True) is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "no valid JSON schema"),
        ({"properties": {"image": {"$ref": "#/definitions/none"}}}, "a definition that it does not have"),
    ],
)
def test_a_template_that_is_no_schema(schema: dict[str, Any], words: str) -> None:
    inputs = inputs_of(template={"job_configuration": {}, "variables": schema}, flow_run={"image": 1})
    assert words in str(refusal(inputs, complete=True))


def test_without_a_template_nothing_is_checked() -> None:
    assert refusal(inputs_of(flow_run={"env": 5}), complete=True) is None


def test_what_is_still_required_is_told_of_a_pool() -> None:
    inputs = inputs_of(template=template("image", "size", "kind"), flow_run={"kind": "a"})
    assert still_required(inputs) == ("image",)
    assert refusal(inputs, complete=False) is None
