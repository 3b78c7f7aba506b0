"""`headrace explain --input FILE`: job variables resolved from a file, with where each value comes from.

Owns the file's shape, the references it carries, and the two forms of output. It deliberately
needs no server and no prefect, and leaves every rule of resolving to `worker.runs.job_variables`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import anyio

from worker.runs.job_variables import (
    Inputs,
    JobConfiguration,
    JobVariablesError,
    JobVariablesMode,
    Layer,
    Provenance,
    ReferenceNotFound,
    resolve,
)
from worker.runs.job_variables_error import json_type
from worker.runs.placeholders import is_list, is_object

EXIT_OK: Final = 0
EXIT_UNRESOLVED: Final = 1
EXIT_UNREADABLE: Final = 2

_SECRET_NAME: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api_?key|private_?key", re.IGNORECASE
)


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


Outcome = JobConfiguration | JobVariablesError


def explain_file(
    *,
    path: str,
    as_json: bool,
    mode: JobVariablesMode,
    stdout: TextIO,
    environ: Mapping[str, str],
    stdin: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Resolve the object or the list of objects in the file at `path`, `-` being standard input.

    Gives the exit code: 0; 1 when the file holds a single object that cannot be resolved; 2 when
    the file cannot be read or has the wrong shape, with a sentence on `stderr`. In a list, what
    cannot be resolved is part of the report. `environ` is the environment that `{{ $NAME }}` sees,
    under the `process_env` of a context.
    """
    try:
        document = _read(path, stdin or sys.stdin)
        single, items = _items(document, environ)
    except InputError as error:
        print(f"{'standard input' if path == '-' else path}: {error}", file=stderr or sys.stderr)
        return EXIT_UNREADABLE
    outcomes = anyio.run(_resolve_all, items, mode)
    texts = [_rendered(outcome, _as_json if as_json else _as_table) for outcome in outcomes]
    if single:
        [text] = texts
    elif as_json:
        text = f"[{', '.join(texts)}]"
    else:
        text = "\n\n".join(f"# {item.title}\n{text}" for item, text in zip(items, texts, strict=True))
    stdout.write(_printable(f"{text}\n", stdout))
    failed = single and isinstance(outcomes[0], JobVariablesError)
    return EXIT_UNRESOLVED if failed else EXIT_OK


async def _resolve_all(items: list[Item], mode: JobVariablesMode) -> list[Outcome]:
    return [await _resolve_one(item, mode) for item in items]


async def _resolve_one(item: Item, mode: JobVariablesMode) -> Outcome:
    try:
        return await resolve(item.inputs, item.references, mode)
    except JobVariablesError as error:
        return error


# --- reading ---


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


def _items(document: Any, environ: Mapping[str, str]) -> tuple[bool, list[Item]]:
    context: Any = None
    if is_object(document) and "cases" in document:
        context, document = document.get("context"), document["cases"]
        if not is_list(document):
            raise InputError(f"cases must be a list, got {json_type(document)}")
    if is_list(document):
        return False, [
            _item(entry, f"item {number}: ", context, environ)
            for number, entry in enumerate(document, start=1)
        ]
    return True, [_item(document, "", None, environ)]


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
    name = entry.get("name")
    return Item(
        f"{place.removesuffix(': ')}: {_one_line(name)}"
        if isinstance(name, str)
        else place.removesuffix(": "),
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


# --- writing ---


def _rendered(outcome: Outcome, form: Callable[[Outcome], str]) -> str:
    """Give an outcome's text; a name may be any value of the file's context, too deep a one included."""
    try:
        return form(outcome)
    except RecursionError:
        error = JobVariablesError(
            kind="RecursionError", stage="prepare", message="the name leads to a value nested too deeply"
        )
        return form(error)


def _as_json(outcome: Outcome) -> str:
    # ASCII only: it passes through any locale, and so do lone surrogates
    return json.dumps(_report(outcome), indent=2)


def _report(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, JobVariablesError):
        return {"error": {"type": outcome.type, "stage": outcome.stage, "message": outcome.message}}
    return {
        "command": outcome.command,
        "env": dict(outcome.env),
        "working_dir": outcome.working_dir,
        "stream_output": outcome.stream_output,
        "labels": dict(outcome.labels),
        "name": outcome.name,
        "provenance": {key: provenance.as_json() for key, provenance in outcome.provenance.items()},
        **({"notes": list(outcome.notes)} if outcome.notes else {}),
    }


def _as_table(outcome: Outcome) -> str:
    if isinstance(outcome, JobVariablesError):
        return _one_line(f"cannot be resolved: {outcome.type}: {outcome}")
    values: dict[str, Any] = {
        "command": outcome.command,
        "working_dir": outcome.working_dir,
        "stream_output": outcome.stream_output,
        "name": outcome.name,
        **{f"env.{key}": value for key, value in outcome.env.items()},
        **{f"labels.{key}": value for key, value in outcome.labels.items()},
    }
    rows = [("KEY", "VALUE", "LAYER", "OVERRODE", "FILLED BY")]
    rows.extend(_row(key, value, outcome.provenance[key]) for key, value in values.items())
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join((*lines, *(f"note: {note}" for note in outcome.notes)))


def _row(key: str, value: Any, provenance: Provenance) -> tuple[str, str, str, str, str]:
    layer = f"{provenance.layer} ({provenance.on})" if provenance.on else provenance.layer.value
    return (
        _one_line(key),
        _shown(key, value, provenance),
        layer,
        ", ".join(provenance.overrode) or "-",
        _one_line(", ".join(provenance.filled_by) or "-"),
    )


def _shown(key: str, value: Any, provenance: Provenance) -> str:
    """Give a value's text for people; `--json` has it in full."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    from_block = provenance.layer is Layer.BLOCK or any(
        filler.startswith(f"{Layer.BLOCK} ") for filler in provenance.filled_by
    )
    if from_block or _SECRET_NAME.search(key):
        return "(hidden)"
    return _one_line(str(value))


def _one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _printable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
