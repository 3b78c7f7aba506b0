"""The job variables of a run that its pool's template has no use for, as `headrace explain` tells them.

Owns only the putting together; the rule is that of `runs.undeclared`.
"""

from __future__ import annotations

from collections.abc import Mapping

from worker.explain.report import Stray
from worker.runs.job_template import JobTemplate, read_template
from worker.runs.job_variables import Inputs, JobConfiguration, JobVariablesMode, Layer
from worker.runs.layers import ENV, Variables, on_layer
from worker.runs.undeclared import find_undeclared, find_unused, nearest

_DROPPED = "it is not declared, and stock Prefect drops what is not declared"


def undeclared(inputs: Inputs, mode: JobVariablesMode) -> tuple[Stray, ...]:
    """The variables that the pool does not declare: environment variables in the making, and ignored ones."""
    template, layers = _read(inputs)
    found = find_undeclared(template, layers)
    by_name: dict[str, list[Layer]] = {}
    for layer, promoted in found.promoted.items():
        for name in promoted[ENV].value:
            by_name.setdefault(name, []).append(layer)
    stock = mode is JobVariablesMode.STOCK
    strays = [
        Stray(
            name=name,
            layers=tuple(layer.value for layer in on),
            becomes=None if stock else f"env.{name}",
            reason=_DROPPED if stock else None,
            nearest=nearest(name, template.declared),
        )
        for name, on in by_name.items()
    ]
    strays += [
        Stray(
            name=one.name,
            layers=tuple(layer.value for layer in one.layers),
            becomes=None,
            reason=_DROPPED if stock else one.reason,
            nearest=nearest(one.name, template.declared),
        )
        for one in found.ignored
    ]
    return tuple(strays)


def unused(inputs: Inputs) -> tuple[Stray, ...]:
    """The variables that the pool declares and does not use; the layers that set one do so in vain."""
    template, layers = _read(inputs)
    return tuple(
        Stray(
            name=one.name,
            layers=tuple(layer.value for layer in one.layers),
            becomes=None,
            reason=one.reason,
            nearest=None,
        )
        for one in find_unused(template, layers)
    )


def idle_python(job: JobConfiguration) -> tuple[Stray, ...]:
    """`python`, where the job has a command of its own, which may name another interpreter."""
    if job.python is None or job.command is None:
        return ()
    layer = job.provenance["python"].layer
    reason = "the job has a command, which is started in its place"
    return (Stray(name="python", layers=(layer.value,), becomes=None, reason=reason, nearest=None),)


def _read(inputs: Inputs) -> tuple[JobTemplate, Mapping[Layer, Variables]]:
    return read_template(inputs.base_job_template), {
        Layer.DEPLOYMENT: on_layer(Layer.DEPLOYMENT, inputs.deployment_job_variables),
        Layer.FLOW_RUN: on_layer(Layer.FLOW_RUN, inputs.flow_run_job_variables),
    }
