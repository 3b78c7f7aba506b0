from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.job_variable_inputs import Case, calm_values, cases
from tests.support.job_variable_resolving import (
    LAYERED,
    STOCK,
    CountingReferences,
    default_with,
    inputs_of,
    outcome,
    references_of,
    resolved,
)
from worker.runs.job_variables import Inputs, JobVariablesMode, Layer, Provenance
from worker.runs.placeholders import is_object

# --- layered: dotted keys ---


@pytest.mark.parametrize(
    ("deployment", "flow_run", "expected"),
    [
        ({"env": {"X": "dep"}}, {"env.X": "cli"}, {"X": "cli"}),
        ({"env": {"X": "dep", "Y": "dep"}}, {"env.X": "cli"}, {"X": "cli", "Y": "dep"}),
        ({"env.X": "dep"}, {"env.X": "cli"}, {"X": "cli"}),
        ({"env.X": "dep"}, {"env": {"X": "run"}}, {"X": "run"}),
        ({"env.X": "dot", "env": {"X": "plain"}}, {}, {"X": "plain"}),
        ({}, {"env.X": "dot", "env": {"X": "plain"}}, {"X": "plain"}),
        ({"env": {"X": "dep"}}, {"env.X": "dot", "env": {"X": "plain"}}, {"X": "plain"}),
        ({"env.X": "dot", "env": {"Y": "dep"}}, {"env": {"Z": "run"}}, {"X": "dot", "Y": "dep", "Z": "run"}),
        ({"env": {"X": "dep"}}, {"env.X": None}, {"X": None}),
        ({"env": None}, {"env.X": "cli"}, {"X": "cli"}),
        ({"env": "text"}, {"env.X": "cli"}, {"X": "cli"}),
        ({"env.A": "x"}, {"env.A.B": "y"}, {"A": "{'B': 'y'}"}),
        ({"env.A.B": "y"}, {"env.A": "x"}, {"A": "x"}),
        ({"env": {"A": {"x": 1}}}, {"env.A.y": 2}, {"A": "{'y': 2, 'x': 1}"}),
        ({"env": {"A": {"x": 1}}}, {"env.A.x": 2}, {"A": "{'x': 2}"}),
        ({"env": {"A": {"x": 1}}}, {"env": {"A": {"y": 2}}}, {"A": "{'y': 2}"}),
        ({"env.A": {"x": 1}}, {"env.A": {"y": 2}}, {"A": "{'y': 2}"}),
        ({"env.A.x": 1}, {"env": {"A": {"y": 2}}}, {"A": "{'x': 1, 'y': 2}"}),
        ({"env.A[0]": "a"}, {"env.A.0": "b"}, {"A": "{'0': 'b'}"}),
    ],
)
def test_layered_env(deployment: dict[str, Any], flow_run: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resolved(inputs_of(deployment=deployment, flow_run=flow_run)).env == expected


@pytest.mark.parametrize(
    ("deployment", "flow_run", "expected"),
    [
        ({"labels": {"a": "d", "b": "d"}}, {"labels.a": "r"}, {"a": "r", "b": "d"}),
        ({"labels": {"a": "d", "b": "d"}}, {"labels": {"b": "r"}}, {"b": "r"}),
        ({"labels.a": "d", "labels": {"b": "d"}}, {"labels": {"c": "r"}}, {"a": "d", "c": "r"}),
        ({"labels": {"a": "d"}}, {"labels.b": "r", "labels": {"c": "r"}}, {"b": "r", "c": "r"}),
        ({"labels": None}, {"labels.b": "r"}, {"b": "r"}),
        ({"labels.a": "d"}, {"labels.b": "r"}, {"a": "d", "b": "r"}),
    ],
)
def test_layered_labels(
    deployment: dict[str, Any], flow_run: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert resolved(inputs_of(deployment=deployment, flow_run=flow_run)).labels == expected


def test_a_dotted_key_of_the_run_lies_over_the_pools_default() -> None:
    template = default_with(env={"X": "def", "Y": "def"})
    job = resolved(inputs_of(template=template, deployment={"env": {"X": "dep"}}, flow_run={"env.X": "cli"}))
    assert job.env == {"X": "cli", "Y": "def"}
    assert job.provenance["env.X"] == Provenance(Layer.FLOW_RUN, (Layer.POOL_DEFAULT, Layer.DEPLOYMENT))


def test_a_dotted_key_that_makes_no_sense_is_an_error_in_both_modes() -> None:
    for mode in JobVariablesMode:
        assert outcome(inputs_of(flow_run={"command.x": "y"}), mode) == "ValidationError in build"
        assert outcome(inputs_of(flow_run={"env.A": "x", "env.A.B": "y"}), mode) == "TypeError in build"


# --- layered: undeclared variables ---


@pytest.mark.parametrize(
    ("deployment", "flow_run", "expected"),
    [
        ({}, {"MY_NEW_ENV_VAR": "42", "HELLO": "THERE"}, {"MY_NEW_ENV_VAR": "42", "HELLO": "THERE"}),
        ({"FOO": 1}, {}, {"FOO": "1"}),
        ({"FOO": 1.5, "BAR": True, "_B4Z": None}, {}, {"FOO": "1.5", "BAR": "True", "_B4Z": None}),
        ({"FOO": "dep"}, {"FOO": "run"}, {"FOO": "run"}),
        ({"env": {"FOO": "dep"}}, {"FOO": "run"}, {"FOO": "run"}),
        ({"FOO": "dep"}, {"env": {"FOO": "run"}}, {"FOO": "run"}),
        ({"FOO": "undeclared", "env.FOO": "dotted"}, {}, {"FOO": "dotted"}),
        ({"FOO": "undeclared", "env": {"FOO": "plain"}}, {}, {"FOO": "plain"}),
        ({"FOO": "undeclared", "env.FOO.x": "dotted"}, {}, {"FOO": "{'x': 'dotted'}"}),
        ({"FOO": "{{ name }}"}, {}, {"FOO": "{{ name }}"}),
    ],
)
def test_an_undeclared_variable_becomes_an_environment_variable(
    deployment: dict[str, Any], flow_run: dict[str, Any], expected: dict[str, Any]
) -> None:
    inputs = inputs_of(deployment=deployment, flow_run=flow_run)
    assert resolved(inputs).env == expected


@pytest.mark.parametrize("name", ["foo", "Foo", "4FOO", "FOO-BAR", "FOO\n", "ÅÄÖ", "", "foo.bar", "FOO.BAR"])
def test_another_undeclared_variable_is_ignored_with_a_note(name: str) -> None:
    job = resolved(inputs_of(flow_run={name: "hidden-value"}))
    assert job.env == {}
    [note] = job.notes
    assert repr(name) in note
    assert "flow run" in note
    assert "name, env, labels, command, python, stream_output, working_dir" in note
    assert "hidden-value" not in note


@pytest.mark.parametrize("value", [[1], {"a": 1}, [], {}])
def test_an_undeclared_variable_that_is_no_single_value_is_ignored_with_a_note(value: Any) -> None:
    job = resolved(inputs_of(deployment={"FOO": value}))
    assert job.env == {}
    assert "only a single value" in job.notes[0]


def test_the_note_names_both_layers_and_a_declared_name_that_is_close() -> None:
    job = resolved(inputs_of(deployment={"comand": "x"}, flow_run={"comand": "y"}))
    assert len(job.notes) == 1
    assert "(deployment and flow run)" in job.notes[0]
    assert "Did you mean 'command'?" in job.notes[0]


def test_nothing_becomes_an_environment_variable_where_the_pool_takes_none() -> None:
    template: dict[str, Any] = {"job_configuration": {"command": "x"}, "variables": {}}
    job = resolved(inputs_of(template=template, flow_run={"FOO": "1"}))
    assert job.env == {}
    assert "takes no environment variables" in job.notes[0]


def test_a_literal_env_in_the_template_takes_undeclared_variables() -> None:
    template = default_with({"env": {"FOO": "tmpl", "A": "tmpl"}})
    job = resolved(inputs_of(template=template, flow_run={"FOO": "1"}))
    assert job.env == {"FOO": "1", "A": "tmpl"}
    assert job.provenance["env.FOO"] == Provenance(
        Layer.UNDECLARED, (Layer.POOL_TEMPLATE,), on=Layer.FLOW_RUN
    )


@pytest.mark.parametrize(
    "template",
    [
        default_with(FOO=None),
        default_with({"command": "run {{ FOO }}"}),
        default_with({"command": ["{{ FOO[0] }}"], "working_dir": None}),
    ],
    ids=["declared", "used", "used inside"],
)
def test_a_variable_that_is_declared_or_used_does_not_become_one(template: dict[str, Any]) -> None:
    inputs = inputs_of(template=template, flow_run={"FOO": "1"})
    assert outcome(inputs, LAYERED) == outcome(inputs, STOCK)


def test_a_variable_that_a_merged_env_uses_is_used() -> None:
    inputs = inputs_of(template=default_with(env={"A": "<{{ FOO }}>"}), flow_run={"FOO": "1"})
    job = resolved(inputs)
    assert job.env == {"A": "<1>"}
    assert job.notes == ()


# --- layered: the note on differences ---


def test_one_note_names_the_keys_that_differ_from_stock_and_no_value() -> None:
    job = resolved(
        inputs_of(
            deployment={"env": {"X": "old-secret", "Y": "y"}, "labels": {"a": "d"}},
            flow_run={"env.X": "new-secret", "labels.a": "r", "FOO": "foo-secret", "env.Y": "y"},
        )
    )
    [note] = job.notes
    assert note == (
        "Job variables differ from stock Prefect 3.8.8: env.X (flow run; stock: deployment),"
        " env.FOO (undeclared on the flow run; stock: not set), labels.a (flow run; stock: deployment)"
    )


def test_a_note_says_when_stock_would_refuse() -> None:
    job = resolved(inputs_of(deployment={"env.A": "x-secret"}, flow_run={"env.A.B": "y-secret"}))
    [note] = job.notes
    assert "Stock Prefect 3.8.8 would refuse these job variables: TypeError" in note
    assert "secret" not in note


def test_stock_mode_says_nothing() -> None:
    inputs = inputs_of(deployment={"env": {"X": "dep"}}, flow_run={"env.X": "cli", "FOO": "1", "foo": 1})
    job = resolved(inputs, STOCK)
    assert (job.env, job.notes) == ({"X": "dep"}, ())


# --- layered and stock on random input ---


def random_case(case: Case) -> tuple[Inputs, CountingReferences]:
    return (
        inputs_of(template=case.template, deployment=case.deployment, flow_run=case.flow_run),
        references_of(case.blocks, case.blocks_by_id, case.variables),
    )


def without_promoted(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in layer.items() if name != "FOO"}


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(case=cases, lonely=st.sampled_from(["deployment", "flow_run"]))
def test_one_layer_alone_gives_what_stock_gives(case: Case, lonely: str) -> None:
    layer = without_promoted(getattr(case, lonely))
    inputs = inputs_of(template=case.template, **{lonely: layer})
    references = random_case(case)[1]
    assert outcome(inputs, LAYERED, references) == outcome(inputs, STOCK, references)


def leaves(value: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if is_object(value) and value:
        return [leaf for key, below in value.items() for leaf in leaves(below, (*path, key))]
    return [path]


def touched(layer: dict[str, Any], *, dotted: bool) -> list[tuple[str, ...]]:
    return [
        leaf
        for name, value in layer.items()
        if ("." in name) == dotted
        for leaf in leaves(
            value, tuple(name.replace("[", ".").replace("]", "").split(".")) if dotted else (name,)
        )
    ]


def clash(left: list[tuple[str, ...]], right: list[tuple[str, ...]]) -> bool:
    return any(a[: len(b)] == b or b[: len(a)] == a for a in left for b in right)


KEYED = st.dictionaries(st.sampled_from(["A", "B", "C"]), calm_values, max_size=3)
MIXED = st.dictionaries(
    st.sampled_from(["env.A", "env.B", "env.C", "env.A.a", "env.B.b", "env.A.b"]), calm_values, max_size=3
)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(dotted=st.tuples(MIXED, MIXED), plain=st.tuples(KEYED | st.none(), KEYED | st.none()), default=KEYED)
def test_layers_that_do_not_clash_give_what_stock_gives(
    dotted: tuple[dict[str, Any], ...], plain: tuple[dict[str, Any] | None, ...], default: dict[str, Any]
) -> None:
    deployment, flow_run = (
        {**names, **({} if env is None else {"env": env})} for names, env in zip(dotted, plain, strict=True)
    )
    forms = (True, False)
    assume(
        not any(
            clash(touched(deployment, dotted=one), touched(flow_run, dotted=other))
            for one in forms
            for other in forms
            if one or other
        )
    )
    inputs = inputs_of(template=default_with(env=default), deployment=deployment, flow_run=flow_run)
    assert outcome(inputs, LAYERED) == outcome(inputs, STOCK)


FORMS = ("env", "env.X", "X")


def written(form: str, value: Any) -> dict[str, Any]:
    return {form: {"X": value} if form == "env" else value}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("below", [forms for n in range(4) for forms in combinations(FORMS, n)], ids="+".join)
@pytest.mark.parametrize("default", [{}, {"X": "def"}], ids=["no default", "default"])
def test_the_run_wins_in_whatever_form_it_is_written(form: str, below: tuple[str, ...], default: Any) -> None:
    deployment = {key: value for name in below for key, value in written(name, "dep").items()}
    inputs = inputs_of(
        template=default_with(env=default), deployment=deployment, flow_run=written(form, "run")
    )
    job = resolved(inputs)
    assert job.env == {"X": "run"}
    assert job.provenance["env.X"].layer is (Layer.UNDECLARED if form == "X" else Layer.FLOW_RUN)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(case=cases, mode=st.sampled_from(JobVariablesMode))
def test_any_input_resolves_or_is_refused_and_stays_as_it_was(case: Case, mode: JobVariablesMode) -> None:
    inputs, references = random_case(case)
    before = repr((inputs, references.source))
    assert outcome(inputs, mode, references)
    assert repr((inputs, references.source)) == before
