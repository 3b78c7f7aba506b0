"""The one way in which job variables fail.

Owns the error only. It deliberately knows nothing about layers or placeholders, so that every
module of the resolver can raise it.
"""

from __future__ import annotations

from typing import Any


class JobVariablesError(Exception):
    """The layers of one flow run give no usable job configuration.

    `type` is the class name of what Prefect 3.8.8 raises on the same input (PROTOCOL 3.6) and
    `stage` the step it raises it in; both are stable and meant for machines. `message` is for
    people: it names the key and what to change, never a value, because values may be secret.
    """

    def __init__(self, *, kind: str, stage: str, message: str) -> None:
        super().__init__(message)
        self.type = kind
        self.stage = stage
        self.message = message


def build_error(kind: str, message: str) -> JobVariablesError:
    """Give the error of the `build` stage: everything up to and including the configuration's types."""
    return JobVariablesError(kind=kind, stage="build", message=message)


def json_type(value: Any) -> str:
    """Name the JSON type of `value` for a message, without showing the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "list"
        case dict():
            return "object"
        case _:
            return type(value).__name__
