"""Random inputs for the resolver of job variables, nasty ones on purpose.

Owns what is drawn, and the fixed blocks and variables that drawn placeholders may name. All of it is
what a server could hand over as JSON; whether it makes sense is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import strategies as st

from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE

Drawn = st.SearchStrategy[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """The inputs of one resolution; without blocks and variables of its own it has the fixed ones."""

    template: dict[str, Any]
    deployment: dict[str, Any]
    flow_run: dict[str, Any]
    blocks: Mapping[str, dict[str, Any]] = field(default_factory=lambda: BLOCKS)
    blocks_by_id: Mapping[str, dict[str, Any]] = field(default_factory=lambda: BLOCKS_BY_ID)
    variables: Mapping[str, Any] = field(default_factory=lambda: VARIABLES)


BLOCKS: Final[dict[str, dict[str, Any]]] = {
    "secret/tok": {"value": "s3cr3t"},
    "secret/obj": {"value": {"a": {"b": [10, {"c": "deep"}], "1": "one"}, "value": "inner"}},
    "secret/null": {"value": None},
    "secret/var": {"value": "<{{ prefect.variables.v_str }}{{ prefect.blocks.secret.tok }}>"},
    "secret/num": {"value": 1.0},
    "aws/prod": {"key": "AK", "flag": True, "list": ["x", 2]},
    "empty/doc": {},
    "value/two": {"value": 1, "other": 2},
}
BLOCKS_BY_ID: Final[dict[str, dict[str, Any]]] = {
    "66666666-6666-4666-8666-666666666666": {"A": "{{ prefect.variables.v_str }}", "env": {"K": "v"}},
    "5": {"value": "x"},
}
VARIABLES: Final[dict[str, Any]] = {
    "v_str": "hello",
    "v_num": 3,
    "v_obj": {"a": [1, 2], "K": "{{ prefect.variables.v_num }}"},
    "v_null": None,
    "v_bool": False,
    "v.dotted": "d",
    "v_block": "{{ prefect.blocks.secret.tok }}",
}
FIELDS: Final = ("command", "env", "labels", "name", "stream_output", "working_dir")
NAMES: Final = (
    *FIELDS, "cfg", "cfg.a", "cfg.A.B", "cfg[0]", "cfg.0", "cfg[-1]", "cfg.1_0", "cfg.٣", "cfg.é", "cfg.", ".", "FOO",
    "FOO[0]", "nope", "nope.a", "1", "env.A", "labels.a", "my-var", "$", "$$LEAN_ENV_PROBE", "$LEAN_ENV_PROBE",
    "$LEAN_ENV_MISSING", "$LEAN.X", "prefect", "prefect.blocks.", "prefect.blocks.secret", "prefect.blocks.secret.",
    "prefect.blocks.secret.none", "prefect.blocks.secret.tok", "prefect.blocks.secret.tok.value",
    "prefect.blocks.secret.tok[0]", "prefect.blocks.secret.tok.0", "prefect.blocks.secret.tok.",
    "prefect.blocks.secret.obj", "prefect.blocks.secret.obj.a", "prefect.blocks.secret.obj.a.b[1].c",
    "prefect.blocks.secret.obj.value.a.b[0]", "prefect.blocks.secret.obj.values", "prefect.blocks.secret.obj.a.1",
    "prefect.blocks.secret.null", "prefect.blocks.secret.var", "prefect.blocks.secret.num", "prefect.blocks.aws.prod",
    "prefect.blocks.aws.prod.key", "prefect.blocks.aws.prod.list[1]", "prefect.blocks.aws.prod.flag",
    "prefect.blocks.empty.doc", "prefect.blocks.empty.doc.value", "prefect.blocks.value.two.value",
    "prefect.blocks.prefect.blocks.secret.tok", "prefect.variables.", "prefect.variables.v_str",
    "prefect.variables.v_num", "prefect.variables.v_obj", "prefect.variables.v_obj.a", "prefect.variables.v_null",
    "prefect.variables.v_bool", "prefect.variables.v.dotted", "prefect.variables.v_block", "prefect.variables.nope",
    "prefect.variables.prefect.variables.v_str", "ctx", "ctx.flow.name", "ctx.flow_run.name", "ctx.flow_run.tags[0]",
    "ctx.flow_run.parameters.n", "ctx.flow_run.parameters", "ctx.flow_run.nope", "ctx.flow_run",
)  # fmt: skip


def _placeholder(left: str, name: str, right: str) -> str:
    return f"{{{{{left}{name}{right}}}}}"


def _reference(document_id: Any, rest: dict[str, None]) -> dict[str, Any]:
    return {**rest, "$ref": {"block_document_id": document_id}}


def _odd_reference(value: Any) -> dict[str, Any]:
    return {"$ref": value}


def _template(configuration: Any, declared: Any) -> dict[str, Any]:
    return _odd_template(configuration, {"properties": declared})


def _odd_template(configuration: Any, schema: Any) -> dict[str, Any]:
    return {"job_configuration": configuration, "variables": schema}


def _defaults(value: Any) -> dict[str, Any]:
    return {"default": value}


def _keyed(names: Any) -> Drawn:
    return st.fixed_dictionaries({name: entry(name) for name in names})


def _declared(names: Any) -> Drawn:
    return st.fixed_dictionaries({name: _property(name) for name in names})


def _configured(names: Any) -> Drawn:
    return st.fixed_dictionaries({name: _own(name) | _own(name) | entry(name) for name in names})


def _own(name: str) -> Drawn:
    return st.just(f"{{{{ {name} }}}}")


def _property(name: str) -> Drawn:
    return st.just(empty) | entry(name).map(_defaults)


empty: Final[dict[str, Any]] = {}
no_items: Final[list[Any]] = []
placeholders: Drawn = st.builds(
    _placeholder,
    st.sampled_from(["", " ", " \t", "\u00a0", "\n"]),
    st.sampled_from(NAMES),
    st.sampled_from(["", " ", "  "]),
)
LITERALS: Final = (
    "", " ", "a", "yes", "OFF", "1", "é日本😀", "/srv//x/./y/", "{", "}}", "{{", "{{ a b }}", "{{}}", "\\", "'",
    "\ud800", "T\n",
)  # fmt: skip
pieces: Drawn = placeholders | st.sampled_from(LITERALS)
texts: Drawn = pieces | st.lists(pieces, min_size=2, max_size=4).map("".join)
scalars: Drawn = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 10**20]),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, 1e-07, float("inf"), float("nan")]),
)
keys: Drawn = st.sampled_from(
    ["A", "B", "a", "b", "0", "1", "value", "", "é", "block_document_id", "env", "nope"]
)
references: Drawn = st.builds(
    _reference,
    st.sampled_from([*BLOCKS_BY_ID, "absent", "", None, 5, 0, no_items, [1], {"a": 1}]),
    st.dictionaries(keys, st.none(), max_size=1),
)
odd_references: Drawn = (scalars | st.just(no_items) | st.just(empty)).map(_odd_reference)


def _nested(inner: Drawn) -> Drawn:
    return st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3), references, odd_references
    )


values: Drawn = st.recursive(scalars, _nested, max_leaves=5)
calm_values: Drawn = st.one_of(
    texts, texts, st.integers(0, 9), st.none(), st.dictionaries(keys, texts, max_size=2)
)
environments: Drawn = st.dictionaries(st.sampled_from(["A", "B", "C", "é"]), calm_values, max_size=3)
odd_environments: Drawn = st.dictionaries(st.sampled_from(["A", "B", "C", "é"]), values, max_size=3)
string_maps: Drawn = st.dictionaries(st.sampled_from(["a", "b", "c"]), texts, max_size=3)
pairs: Drawn = st.lists(
    st.lists(scalars, max_size=3) | st.sampled_from(["ab", "abc", {"x": 1, "y": 2}]), max_size=2
)


def entry(name: str) -> Drawn:
    """Draw a value for the variable or field of this name: mostly of its type, sometimes anything."""
    match name:
        case "env":
            usual, odd = environments, st.one_of(odd_environments, references, texts, values, pairs)
        case "labels":
            usual, odd = string_maps, values
        case "stream_output":
            usual, odd = st.booleans(), scalars
        case "cfg" | "FOO" | "other" | "my-var":
            usual, odd = values, values
        case _:
            usual, odd = texts, values
    return st.integers(0, 9).flatmap(lambda die: odd if die == 0 else usual)


DOTTED: Final = (
    "env.A", "env.B", "env.A.B", "env.A[0]", "env.A.0", "env[A].B", "env[A]", "env.", ".env", "env..A", "labels.a",
    "labels.b", "command.x", "a.b", "a.b.c", "cfg.a", "cfg.A.B", "cfg.A", ".", "FOO.A",
)  # fmt: skip
LAYER_NAMES: Final = (*FIELDS, *FIELDS, *DOTTED, "cfg", "FOO", "my-var", "other", "prefect", "ctx", "1", "")
layers: Drawn = st.lists(st.sampled_from(LAYER_NAMES), max_size=5, unique=True).flatmap(_keyed)
PROPERTY_NAMES: Final = (*FIELDS, "cfg", "FOO", "my-var")
properties: Drawn = st.sets(st.sampled_from(PROPERTY_NAMES), max_size=4).flatmap(_declared)
odd_attributes: Drawn = st.sampled_from([None, 5, True, 1.5, no_items, ["default"], "", "my default", empty])
odd_properties: Drawn = values | st.dictionaries(
    st.sampled_from(PROPERTY_NAMES), _property("env") | odd_attributes, max_size=3
)
job_configurations: Drawn = st.lists(st.sampled_from(FIELDS), max_size=6, unique=True).flatmap(_configured)
default_templates: Drawn = st.builds(
    _template, st.just(DEFAULT_BASE_JOB_TEMPLATE["job_configuration"]), properties
)
odd_templates: Drawn = st.one_of(
    st.just(empty),
    st.dictionaries(st.sampled_from(["job_configuration", "variables"]), values, max_size=2),
    st.builds(_template, job_configurations | values, odd_properties),
    st.builds(_odd_template, job_configurations | values, values),
)
templates: Drawn = st.one_of(
    st.builds(_template, job_configurations, properties),
    default_templates,
    default_templates,
    default_templates,
    odd_templates,
)
cases: st.SearchStrategy[Case] = st.builds(Case, template=templates, deployment=layers, flow_run=layers)
