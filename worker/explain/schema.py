"""Whether the server would create a run at all: it checks a new run's variables against the pool's schema.

Owns the rules of that check (PROTOCOL 3.5, and what the server does with nulls, references and defaults that are
themselves wrong). The check itself is `jsonschema`'s, which the server uses, too. Messages name variables and rules,
never a value. Runs that a schedule makes are not checked by the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, relevance
from referencing import Registry
from referencing.exceptions import Unresolvable

from worker.runs.job_variables import Inputs
from worker.runs.placeholders import is_list, is_object

_MESSAGES_WITHOUT_VALUES: Final = {"required", "additionalProperties"}
_LONGEST_RULE: Final = 120


def refusal(inputs: Inputs, *, complete: bool) -> str | None:
    """Why the server would not create a run of these layers, in one sentence; None if it would.

    If the layers are not `complete`, what is required may still be missing.
    """
    schema = inputs.base_job_template.get("variables")
    if not is_object(schema) or not schema:
        return None  # an empty template: nothing is checked
    try:
        Draft202012Validator.check_schema(schema)
        return _refusal(schema, inputs, complete=complete)
    except SchemaError:
        return "the work pool's template is no valid JSON schema under 'variables'"
    except (Unresolvable, RecursionError):
        return "the work pool's template refers to a definition that it does not have, or to itself"


def still_required(inputs: Inputs) -> tuple[str, ...]:
    """The variables that the pool's schema requires, and that neither a layer nor a default sets."""
    schema = inputs.base_job_template.get("variables")
    required = schema.get("required") if is_object(schema) else None
    if not is_object(schema) or not is_list(required):
        return ()
    properties = schema.get("properties")
    with_default = {
        name
        for name, attributes in (properties.items() if is_object(properties) else ())
        if is_object(attributes) and "default" in attributes
    }
    given = {*inputs.deployment_job_variables, *inputs.flow_run_job_variables, *with_default}
    return tuple(str(name) for name in required if name not in given)


def _refusal(schema: dict[str, Any], inputs: Inputs, *, complete: bool) -> str | None:
    defaults, referred, all_sound = _defaults(schema)
    values = {**defaults, **inputs.deployment_job_variables, **inputs.flow_run_job_variables}
    lenient = _lenient(schema)
    for name in referred - {*inputs.deployment_job_variables, *inputs.flow_run_job_variables}:
        # What the block holds is checked by the server alone.
        values[name] = None
        lenient["properties"][name] = {}
    if not all_sound or not complete:
        lenient.pop("required", None)
    error = _first_error(values, lenient)
    return None if error is None else f"the server would not create the run (422): {_sentence(error)}"


def _defaults(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], bool]:
    """The defaults that fit the schema, the names whose default is a block, and whether all defaults fit."""
    optional = {key: value for key, value in schema.items() if key != "required"}
    fitting: dict[str, Any] = {}
    referred: set[str] = set()
    all_sound = True
    for name, attributes in cast("dict[str, Any]", schema.get("properties") or {}).items():
        if not is_object(attributes) or "default" not in attributes:
            continue
        default = attributes["default"]
        if is_object(default) and "$ref" in default:
            referred.add(name)
        elif _first_error({name: default}, optional) is None:
            fitting[name] = default
        else:
            all_sound = False
    return fitting, referred, all_sound


def _lenient(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the server uses it for runs: what is not required may be null; tuples in the older form."""
    copy: dict[str, Any] = deepcopy(dict(schema))
    _relax(copy)
    definitions = copy.get("definitions")
    for definition in definitions.values() if is_object(definitions) else ():
        if is_object(definition):
            _relax(definition)
    return copy


def _relax(schema: dict[str, Any]) -> None:
    properties, required = schema.get("properties"), schema.get("required")
    for name, attributes in properties.items() if is_object(properties) else ():
        if not is_object(attributes):
            continue
        if "type" in attributes and name not in (required if is_list(required) else ()):
            given = attributes["type"]
            attributes["type"] = list(
                dict.fromkeys([*(cast("list[str]", given) if is_list(given) else [given]), "null"])
            )
        if is_list(attributes.get("items")):
            attributes.setdefault("prefixItems", attributes.pop("items"))
        _relax(attributes)


def _first_error(values: Mapping[str, Any], schema: Mapping[str, Any]) -> ValidationError | None:
    # The types of what the library gives are only in part known.
    validator: Any = Draft202012Validator(dict(schema), registry=Registry[Any]())
    errors: list[ValidationError] = list(validator.iter_errors(dict(values)))
    return max(errors, key=cast("Any", relevance), default=None)


def _sentence(error: ValidationError) -> str:
    if error.validator in _MESSAGES_WITHOUT_VALUES:
        return f"{error.json_path.removeprefix('$.')}: {error.message}" if error.path else error.message
    rule = json.dumps(error.validator_value, default=str)
    if len(rule) > _LONGEST_RULE:
        rule = rule[:_LONGEST_RULE] + "…"
    return f"{error.json_path.removeprefix('$.')} does not fit the pool's schema: {error.validator} {rule}"
