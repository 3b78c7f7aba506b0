"""The file that `headrace explain --input` reads: one object, a list of objects, or a file of worked cases.

Owns the file's shape and what is said about a wrong one. Resolving is not its business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from worker.explain.table import one_line
from worker.runs.job_variables import Inputs, ReferenceNotFound
from worker.runs.job_variables_error import JobVariablesError, json_type
from worker.runs.placeholders import is_list, is_object


class InputError(Exception):
    """The file is not what `explain` reads; the text names the place and what belongs there."""


@dataclass(frozen=True, slots=True)
class FileReferences:
    """The blocks and variables that one object of the file carries."""

    blocks: Mapping[str, dict[str, Any]]
    blocks_by_id: Mapping[str, dict[str, Any]]
    variables: Mapping[str, Any]

    async def block_document(self, *, type_slug: str, name: str) -> dict[str, Any]:
        """Give `blocks["<type slug>/<name>"]`."""
        return self._get(self.blocks, f"{type_slug}/{name}")

    async def block_document_by_id(self, document_id: str) -> dict[str, Any]:
        """Give `blocks_by_id["<id>"]`."""
        return self._get(self.blocks_by_id, document_id)

    async def variable(self, name: str) -> Any:
        """Give `variables["<name>"]`."""
        return self._get(self.variables, name)

    @staticmethod
    def _get(values: Mapping[str, Any], key: str) -> Any:
        if key not in values:
            raise ReferenceNotFound(key)
        return values[key]


@dataclass(frozen=True, slots=True)
class Item:
    """One object of the file, with what to call it."""

    title: str
    inputs: Inputs
    references: FileReferences


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One object of the file that has the wrong shape."""

    title: str
    error: JobVariablesError


Entry = Item | Unreadable


def read_items(
    path: str, *, environ: Mapping[str, str], stdin: TextIO | None = None
) -> tuple[bool, list[Entry]]:
    """Whether the file holds a single object, and what it holds; `-` is standard input.

    Raises InputError when the file cannot be read, is not JSON, or holds something else than objects.
    """
    try:
        return _items(_read(path, stdin or sys.stdin), environ)
    except InputError as error:
        raise InputError(f"{'standard input' if path == '-' else path}: {error}") from None


def _read(path: str, stdin: TextIO) -> Any:
    try:
        text = stdin.read() if path == "-" else Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text (byte {error.start})") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError:
        raise InputError("is not usable JSON: a number has too many digits") from None
    except RecursionError:
        raise InputError("is not usable JSON: it is nested too deeply") from None


def _items(document: Any, environ: Mapping[str, str]) -> tuple[bool, list[Entry]]:
    context: Any = None
    if is_object(document) and "cases" in document:
        context, document = document.get("context"), document["cases"]
        if not is_list(document):
            raise InputError(f"cases must be a list, got {json_type(document)}")
    if is_list(document):
        return False, [
            _entry(entry, f"item {number}: ", context, environ)
            for number, entry in enumerate(document, start=1)
        ]
    if not is_object(document):
        raise InputError(f"there must be an object or a list of objects in it, got {json_type(document)}")
    return True, [_entry(document, "", None, environ)]


def _entry(entry: Any, place: str, context: Any, environ: Mapping[str, str]) -> Entry:
    """Read one object: a wrong one is reported in its place and costs the others nothing."""
    try:
        return _item(entry, place, context, environ)
    except InputError as error:
        refusal = JobVariablesError(kind="InputError", stage="input", message=str(error))
        return Unreadable(_title(entry, place), refusal)


def _title(entry: Any, place: str) -> str:
    name = entry.get("name") if is_object(entry) else None
    position = place.removesuffix(": ")
    return f"{position}: {one_line(name)}" if isinstance(name, str) else position


def _item(entry: Any, place: str, context: Any, environ: Mapping[str, str]) -> Item:
    if not is_object(entry):
        raise InputError(
            f"{place}there must be an object with a base_job_template here, got {json_type(entry)}"
        )
    own = _object(entry, "context", place) if entry.get("context") is not None else context
    scope = _object({"context": own}, "context", place)
    process_env = _object(scope, "process_env", f"{place}context: ")
    for name, value in process_env.items():
        if not isinstance(value, str):
            raise InputError(f"{place}context: process_env.{name} must be a string, got {json_type(value)}")
    return Item(
        _title(entry, place),
        Inputs(
            base_job_template=_object(entry, "base_job_template", place),
            deployment_job_variables=_object(entry, "deployment_job_variables", place),
            flow_run_job_variables=_object(entry, "flow_run_job_variables", place),
            process_env={**environ, **process_env},
            context={key: _object(scope, key, f"{place}context: ") for key in ("flow", "flow_run")},
        ),
        FileReferences(
            blocks=_documents(entry, "blocks", place),
            blocks_by_id=_documents(entry, "blocks_by_id", place),
            variables=_object(entry, "variables", place),
        ),
    )


def _object(values: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    """Give the object under `key`; one that is absent or null is empty."""
    value = values.get(key)
    if value is None:
        return {}
    if not is_object(value):
        raise InputError(f"{place}{key} must be an object, got {json_type(value)}")
    return value


def _documents(entry: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    documents = _object(entry, key, place)
    for name, data in documents.items():
        if not is_object(data):
            raise InputError(f"{place}{key}[{name!r}] must be an object, got {json_type(data)}")
    return documents
