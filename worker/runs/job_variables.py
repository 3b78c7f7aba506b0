"""From layers of job variables to one job configuration: the resolver.

Owns the order of the steps (PROTOCOL 3.1), the difference between the modes, and the notes for the
run's log. Each step lives in a module of its own: `layers` merges, `job_template` fills,
`references` replaces, `configuration_types` checks, `provenance` remembers. It deliberately adds
nothing of the worker's (its environment, Prefect's settings, the `prefect.io/*` labels, the engine's
command): that is said where the launch is prepared. Templates written by automations are rendered
before this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

from worker.runs.configuration_types import FIELDS, Fields, check
from worker.runs.job_template import JobTemplate, Populated, populate, read_template
from worker.runs.job_variables_error import JobVariablesError, build_error
from worker.runs.job_variables_mode import JobVariablesMode
from worker.runs.layers import (
    Layer,
    Variables,
    in_order_of,
    layered_order,
    on_layer,
    stock_layers,
    stock_order,
)
from worker.runs.placeholders import MISSING, Filling, Kind, Path, fill, is_object
from worker.runs.provenance import Provenance, flat, keys, trace
from worker.runs.references import BlockPass, ReferenceNotFound, References, VariablePass
from worker.runs.undeclared import find_undeclared


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a configuration is made of, apart from what it refers to. Nothing of it is changed.

    `process_env` is the environment of the worker process, for `{{ $NAME }}`. `context` holds the
    JSON forms of the flow and the flow run under `flow` and `flow_run`, for `{{ ctx.… }}` in names.
    """

    base_job_template: Mapping[str, Any]
    deployment_job_variables: Mapping[str, Any]
    flow_run_job_variables: Mapping[str, Any]
    process_env: Mapping[str, str]
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobConfiguration:
    """What the layers amount to.

    `command` is None when none is configured; then the flow engine is to be run, in the interpreter that `python` names
    or, when that is None, the daemon's choice. A null in `env`
    means that the variable is not set by the layers. `name` falls back to the flow run's; it is what
    a `{{ ctx.… }}` path leads to, so it may be any JSON value, and is for display only.
    `provenance` is by flat key: `command`, `env.X`, `labels.a`. `notes` are lines for the run's log,
    free of values; only the layered mode has any.
    """

    command: str | None
    env: Mapping[str, str | None]
    labels: Mapping[str, str]
    name: Any
    python: str | None
    stream_output: bool
    working_dir: str | None
    provenance: Mapping[str, Provenance]
    notes: tuple[str, ...] = ()


async def resolve(inputs: Inputs, references: References, mode: JobVariablesMode) -> JobConfiguration:
    """Resolve the layers of one flow run.

    Raises JobVariablesError where Prefect would crash the run; what `references` raises on its own
    account passes through.
    """
    try:
        populated, notes = _populate(inputs, mode)
        configuration = await _resolve_references(populated, references)
        return _conclude(configuration, populated, inputs, notes)
    except RecursionError:
        raise build_error(
            "RecursionError", "the job variables or the template are nested too deeply"
        ) from None


def _populate(inputs: Inputs, mode: JobVariablesMode) -> tuple[Populated, tuple[str, ...]]:
    deployment = on_layer(Layer.DEPLOYMENT, inputs.deployment_job_variables)
    flow_run = on_layer(Layer.FLOW_RUN, inputs.flow_run_job_variables)
    merged = stock_layers(deployment, flow_run)
    template = read_template(inputs.base_job_template)
    match mode:
        case JobVariablesMode.STOCK:
            return populate(template, stock_order(merged), inputs.process_env), ()
        case JobVariablesMode.LAYERED:
            undeclared = find_undeclared(template, {Layer.DEPLOYMENT: deployment, Layer.FLOW_RUN: flow_run})
            variables = layered_order(deployment, flow_run, undeclared.promoted)
            return _beside_stock(template, variables, merged, inputs.process_env, undeclared.notes)
        case _:
            assert_never(mode)


def _beside_stock(
    template: JobTemplate,
    variables: Variables,
    merged: Variables,
    process_env: Mapping[str, str],
    notes: tuple[str, ...],
) -> tuple[Populated, tuple[str, ...]]:
    """Populate in layers and say in one more note where stock would have come to something else."""
    try:
        stock_variables = stock_order(merged)
        stock = populate(template, stock_variables, process_env)
    except JobVariablesError as error:
        note = f"Stock Prefect 3.8.8 would refuse these job variables: {error.type}: {error}"
        return populate(template, variables, process_env), (*notes, note)
    ordered = {
        name: traced.with_value(in_order_of(stock_variables[name].value, traced.value))
        if name in stock_variables
        else traced
        for name, traced in variables.items()
    }
    layered = populate(template, ordered, process_env)
    differences = [_difference(path, layered, stock) for path in _differing(layered, stock)]
    if differences:
        notes = (*notes, f"Job variables differ from stock Prefect 3.8.8: {', '.join(differences)}")
    return layered, notes


def _differing(layered: Populated, stock: Populated) -> list[Path]:
    paths = dict.fromkeys(
        (*keys(layered.configuration, FIELDS), *keys(stock.configuration, FIELDS)),
    )
    return [path for path in paths if repr(_at(layered, path)) != repr(_at(stock, path))]


def _at(populated: Populated, path: Path) -> Any:
    value: Any = populated.configuration
    for segment in path:
        if not is_object(value) or segment not in value:
            return MISSING
        value = value[segment]
    return value


def _difference(path: Path, layered: Populated, stock: Populated) -> str:
    name = flat(path)
    return f"{name if name.isprintable() else ascii(name)} ({_setter(path, layered)}; stock: {_setter(path, stock)})"


def _setter(path: Path, populated: Populated) -> str:
    if _at(populated, path) is MISSING:
        return "not set"
    provenance = trace(path, populated.origins, populated.fillings)
    return f"{provenance.layer} on the {provenance.on}" if provenance.on else provenance.layer.value


async def _resolve_references(populated: Populated, references: References) -> dict[str, Any]:
    record = populated.fillings.record
    configuration = await BlockPass(references=references, record=record).resolve(populated.configuration)
    return await VariablePass(references=references, record=record).resolve(configuration)


def _conclude(
    configuration: dict[str, Any], populated: Populated, inputs: Inputs, notes: tuple[str, ...]
) -> JobConfiguration:
    def blame(path: Path) -> str:
        provenance = trace(path, populated.origins, populated.fillings)
        return ", ".join((f"set by: {provenance.layer}", *provenance.filled_by))

    fields = check(configuration, blame)
    name = _name(fields, inputs, populated)
    paths: list[Path] = [(field,) for field in FIELDS if field not in {"env", "labels"}]
    paths.extend(("env", key) for key in fields.env)
    paths.extend(("labels", key) for key in fields.labels)
    provenance = {flat(path): trace(path, populated.origins, populated.fillings) for path in paths}
    if not name:
        flow_run = inputs.context.get("flow_run")
        name = flow_run.get("name") if is_object(flow_run) else None
        provenance["name"] = Provenance(Layer.WORKER_DEFAULT)
    return JobConfiguration(
        command=fields.command,
        env=fields.env,
        labels=fields.labels,
        name=name,
        python=fields.python,
        stream_output=fields.stream_output,
        working_dir=fields.working_dir,
        provenance=provenance,
        notes=notes,
    )


def _name(fields: Fields, inputs: Inputs, populated: Populated) -> Any:
    """Fill the name once more, from the run itself (PROTOCOL 3.4)."""
    if not fields.name:
        return None

    def record(path: Path, filling: Filling) -> None:
        in_context = filling.kind is Kind.TEMPLATE_VARIABLE
        populated.fillings.record(path, replace(filling, kind=Kind.CONTEXT) if in_context else filling)

    name = fill(
        fields.name,
        values={"ctx": dict(inputs.context)},
        process_env=inputs.process_env,
        record=record,
        path=("name",),
    )
    return fields.name if name is MISSING else name


__all__ = [
    "Inputs",
    "JobConfiguration",
    "JobVariablesError",
    "JobVariablesMode",
    "Layer",
    "Provenance",
    "ReferenceNotFound",
    "References",
    "resolve",
]
