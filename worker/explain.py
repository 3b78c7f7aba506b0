"""`headrace explain --input FILE`: job variables resolved from a file, with where each value comes from.

Owns the two forms of output and the exit code. It deliberately needs no server and no prefect, and leaves
the file's shape to `worker.explain_input` and every rule of resolving to `worker.runs.job_variables`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

import anyio

from worker.explain_input import Entry, InputError, Unreadable, one_line, read_items
from worker.runs.job_variables import (
    JobConfiguration,
    JobVariablesError,
    JobVariablesMode,
    Layer,
    Provenance,
    resolve,
)

EXIT_OK: Final = 0
EXIT_UNRESOLVED: Final = 1
EXIT_UNREADABLE: Final = 2

_SECRET_NAME: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api_?key|private_?key", re.IGNORECASE
)


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

    Gives the exit code: 0; 1 when the file holds a single object and that cannot be resolved; 2 when the
    file cannot be read or holds no objects, with a sentence on `stderr`. A list is a report: what is wrong
    with one object stands in its place. `environ` is the environment that `{{ $NAME }}` sees, under the
    `process_env` of a context.
    """
    try:
        single, items = read_items(path, environ=environ, stdin=stdin)
    except InputError as error:
        print(error, file=stderr or sys.stderr)
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


async def _resolve_all(items: list[Entry], mode: JobVariablesMode) -> list[Outcome]:
    return [await _resolve_one(item, mode) for item in items]


async def _resolve_one(item: Entry, mode: JobVariablesMode) -> Outcome:
    if isinstance(item, Unreadable):
        return item.error
    try:
        return await resolve(item.inputs, item.references, mode)
    except JobVariablesError as error:
        return error


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
        return one_line(f"cannot be resolved: {outcome.type}: {outcome}")
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
        one_line(key),
        _shown(key, value, provenance),
        layer,
        ", ".join(provenance.overrode) or "-",
        one_line(", ".join(provenance.filled_by) or "-"),
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
    return one_line(str(value))


def _printable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
