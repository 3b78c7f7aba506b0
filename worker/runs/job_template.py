"""A pool's base job template: reading it, and filling it with job variables.

Owns steps 2, 3, 6 and 7 of PROTOCOL 3.1 and the errors that a malformed template causes in them.
It deliberately does not merge layers and does not fetch anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE
from worker.runs.job_variables_error import build_error, json_type
from worker.runs.layers import ENV, Layer, Origin, Traced, Variables, on_layer, replace, update
from worker.runs.placeholders import Kind, fill, find, is_object, lookup, split_path, whole
from worker.runs.provenance import Fillings


@dataclass(frozen=True, slots=True)
class JobTemplate:
    """A base job template, read.

    `fields` is its job_configuration with the defaults for env in it already, or None when that is
    no object: servers do not check every template, and Prefect stumbles over it only when filling.
    """

    fields: Variables | None
    defaults: Variables
    declared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Populated:
    """A configuration whose template variables are filled in and whose references are not resolved."""

    configuration: dict[str, Any]
    origins: Variables
    fillings: Fillings


def read_template(base_job_template: Mapping[str, Any]) -> JobTemplate:
    """Read a template; an empty one stands for the worker's own default.

    Raises JobVariablesError.
    """
    template = base_job_template or DEFAULT_BASE_JOB_TEMPLATE
    for key in ("job_configuration", "variables"):
        if key not in template:
            raise build_error(
                "KeyError", f"base_job_template has no {key!r}; see the work pool's base job template"
            )
    properties = _properties(template["variables"])
    defaults: Variables = {}
    for name, attributes in properties.items():
        default = _default(name, attributes)
        if default is not None:
            defaults[name] = Traced.on(Origin(Layer.POOL_DEFAULT), default)
    configuration = template["job_configuration"]
    fields = on_layer(Layer.POOL_TEMPLATE, deepcopy(configuration)) if is_object(configuration) else None
    if (env := defaults.get(ENV)) is not None and env.value:
        fields = _with_default_env(_required(fields), env)
    return JobTemplate(fields, defaults, tuple(properties))


def _properties(schema: Any) -> dict[str, Any]:
    if not is_object(schema):
        raise build_error(
            "AttributeError", f"variables of base_job_template must be an object, got {json_type(schema)}"
        )
    properties = schema.get("properties", {})
    if not is_object(properties):
        raise build_error(
            "AttributeError",
            f"variables.properties of base_job_template must be an object, got {json_type(properties)}",
        )
    return properties


def _default(name: str, attributes: Any) -> Any:
    if is_object(attributes):
        return attributes.get("default")
    if isinstance(attributes, (str, list)) and "default" not in attributes:
        return None  # Prefect only looks whether "default" is in there
    raise build_error(
        "AttributeError" if isinstance(attributes, (str, list)) else "TypeError",
        f"variables.properties.{name} of base_job_template must be an object, got {json_type(attributes)}",
    )


def _required(fields: Variables | None) -> Variables:
    if fields is None:
        raise build_error("AttributeError", "job_configuration of base_job_template must be an object")
    return fields


def _with_default_env(fields: Variables, default: Traced) -> Variables:
    env = fields.get(ENV)
    if env is None or not is_object(env.value):
        return {**fields, ENV: default}
    return {**fields, ENV: _update_env(env, default)}


def _update_env(low: Traced, high: Traced) -> Traced:
    if not is_object(high.value):
        raise build_error(
            "TypeError",
            f"env must be an object of names and values, got {json_type(high.value)}"
            f" (set by: {high.history[-1].layer})",
        )
    return update(low, high)


def populate(template: JobTemplate, variables: Variables, process_env: Mapping[str, str]) -> Populated:
    """Fill the template with job variables, defaults below them. Raises JobVariablesError."""
    values = {
        **template.defaults,
        **{name: replace(template.defaults.get(name), traced) for name, traced in variables.items()},
    }
    fields = _required(template.fields)
    env, over = fields.get(ENV), values.get(ENV)
    if env is not None and over is not None and is_object(env.value) and over.value:
        fields = {**fields, ENV: _update_env(env, over)}
    fillings = Fillings(values)
    configuration = fill(
        {name: traced.value for name, traced in fields.items()},
        values={name: traced.value for name, traced in values.items()},
        process_env=process_env,
        record=fillings.record,
    )
    origins = {name: _see_through(traced, values) for name, traced in fields.items() if name in configuration}
    return Populated(configuration, origins, fillings)


def _see_through(traced: Traced, values: Variables) -> Traced:
    """Give a field the history of its variable where the pool's template only says `{{ variable }}`."""
    seen = _variable_behind(traced.value, traced.history, values)
    if seen is not None:
        return seen
    if not is_object(traced.value):
        return traced
    parts = dict(traced.parts)
    for key, value in traced.value.items():
        if (part := _variable_behind(value, traced.of(key), values)) is not None:
            parts[key] = part.history
    return Traced(traced.value, traced.history, parts)


def _variable_behind(value: Any, history: tuple[Origin, ...], values: Variables) -> Traced | None:
    if not isinstance(value, str) or history[-1].layer is not Layer.POOL_TEMPLATE:
        return None
    placeholder = whole(value, find(value), Kind.TEMPLATE_VARIABLE)
    if placeholder is None or (traced := values.get(placeholder.root)) is None:
        return None
    _, *rest = split_path(placeholder.name)
    if not rest:
        return traced
    below = lookup(traced.value, ".".join(rest))
    return Traced(below, traced.of(rest[0]))
