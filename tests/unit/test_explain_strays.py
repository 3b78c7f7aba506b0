"""Variables that a pool's template does not declare, or declares in vain."""

from typing import Any

import pytest

from tests.support.job_variable_resolving import LAYERED, STOCK, default_with, inputs_of
from worker.explain.strays import undeclared, unused
from worker.runs.job_variables import JobVariablesMode


def fates(
    mode: JobVariablesMode, deployment: dict[str, Any], flow_run: dict[str, Any]
) -> dict[str, tuple[tuple[str, ...], str | None, str | None]]:
    inputs = inputs_of(template=default_with(), deployment=deployment, flow_run=flow_run)
    return {one.name: (one.layers, one.becomes, one.nearest) for one in undeclared(inputs, mode)}


def test_undeclared_variables_and_what_becomes_of_them() -> None:
    assert fates(LAYERED, {"MY_VAR": 1, "wroking_dir": "/x"}, {"MY_VAR": 2, "COMAND": "x", "L": [1]}) == {
        "MY_VAR": (("deployment", "flow run"), "env.MY_VAR", None),
        "wroking_dir": (("deployment",), None, "working_dir"),
        "COMAND": (("flow run",), "env.COMAND", "command"),
        "L": (("flow run",), None, None),
    }


def test_stock_drops_all_of_them() -> None:
    found = fates(STOCK, {"MY_VAR": 1}, {"envv.A": 2})
    assert found == {"MY_VAR": (("deployment",), None, None), "envv.A": (("flow run",), None, "env")}


@pytest.mark.parametrize(("deployment", "layers"), [({}, ()), ({"command": "x"}, ("deployment",))])
def test_a_declared_variable_that_the_template_does_not_use(
    deployment: dict[str, Any], layers: tuple[str, ...]
) -> None:
    template = default_with({"command": "fixed", "env": {"A": "1"}, "name": "{{ labels.x }}"})
    inputs = inputs_of(template=template, deployment=deployment)
    assert {one.name: one.layers for one in unused(inputs)} == {"command": layers, "name": ()}


def test_a_dotted_name_sets_its_root_in_vain() -> None:
    template = default_with({"labels": {"fixed": "x"}})
    (one,) = unused(inputs_of(template=template, flow_run={"labels.a": "b"}))
    assert (one.name, one.layers) == ("labels", ("flow run",))
