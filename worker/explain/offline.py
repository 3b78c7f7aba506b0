"""`headrace explain --input FILE`: job variables resolved from a file, with where each value comes from.

Owns the two forms of output and the exit code. It deliberately needs no server and no prefect, and leaves
the file's shape to `worker.explain.input` and every rule of resolving to `worker.runs.job_variables`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TextIO

import anyio

from worker.explain.input import Entry, InputError, Unreadable, read_items
from worker.explain.secrets import Discretion, is_secret
from worker.explain.table import one_line, printable, table, terminal_width
from worker.runs.job_variables import (
    JobConfiguration,
    JobVariablesError,
    JobVariablesMode,
    Provenance,
    resolve,
)

EXIT_OK: Final = 0
EXIT_UNRESOLVED: Final = 1
EXIT_UNREADABLE: Final = 2

Outcome = JobConfiguration | JobVariablesError


def explain_file(
    *,
    path: str,
    as_json: bool,
    mode: JobVariablesMode,
    stdout: TextIO,
    environ: Mapping[str, str],
    show_secrets: bool = False,
    stdin: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Resolve the object or the list of objects in the file at `path`, `-` being standard input.

    Gives the exit code: 0; 1 when the file holds a single object and that cannot be resolved; 2 when the
    file cannot be read or holds no objects, with a sentence on `stderr`. A list is a report: what is wrong
    with one object stands in its place. `environ` is the environment that `{{ $NAME }}` sees, under the
    `process_env` of a context. `show_secrets` is for the table; JSON has every value as it is.
    """
    try:
        single, items = read_items(path, environ=environ, stdin=stdin)
    except InputError as error:
        print(error, file=stderr or sys.stderr)
        return EXIT_UNREADABLE
    outcomes = anyio.run(_resolve_all, items, mode)
    discretion = Discretion(show=show_secrets, redact=str)
    as_table = partial(_as_table, discretion=discretion, width=terminal_width(stdout))
    texts = [_rendered(outcome, _as_json if as_json else as_table) for outcome in outcomes]
    if single:
        [text] = texts
    elif as_json:
        text = f"[{', '.join(texts)}]"
    else:
        text = "\n\n".join(f"# {item.title}\n{text}" for item, text in zip(items, texts, strict=True))
    stdout.write(printable(f"{text}\n", stdout))
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
        "python": outcome.python,
        "env": dict(outcome.env),
        "working_dir": outcome.working_dir,
        "stream_output": outcome.stream_output,
        "labels": dict(outcome.labels),
        "name": outcome.name,
        "provenance": {key: provenance.as_json() for key, provenance in outcome.provenance.items()},
        **({"notes": list(outcome.notes)} if outcome.notes else {}),
    }


def _as_table(outcome: Outcome, *, discretion: Discretion, width: int | None) -> str:
    if isinstance(outcome, JobVariablesError):
        return one_line(f"cannot be resolved: {outcome.type}: {outcome}")
    values: dict[str, Any] = {
        "command": outcome.command,
        "python": outcome.python,
        "working_dir": outcome.working_dir,
        "stream_output": outcome.stream_output,
        "name": outcome.name,
        **{f"env.{key}": value for key, value in outcome.env.items()},
        **{f"labels.{key}": value for key, value in outcome.labels.items()},
    }
    rows = [("KEY", "VALUE", "LAYER", "OVERRODE", "FILLED BY")]
    rows.extend(_row(key, value, outcome.provenance[key], discretion) for key, value in values.items())
    lines = table(rows, width=width, elastic=(1, 4))
    return "\n".join((*lines, *(f"note: {note}" for note in outcome.notes)))


def _row(
    key: str, value: Any, provenance: Provenance, discretion: Discretion
) -> tuple[str, str, str, str, str]:
    layer = f"{provenance.layer} ({provenance.on})" if provenance.on else provenance.layer.value
    return (
        one_line(key),
        _shown(key, value, provenance, discretion),
        layer,
        ", ".join(provenance.overrode) or "-",
        one_line(", ".join(provenance.filled_by) or "-"),
    )


def _shown(key: str, value: Any, provenance: Provenance, discretion: Discretion) -> str:
    """Give a value's text for people; `--json` has it in full."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return one_line(str(discretion.value(value, secret=is_secret(key, provenance))))
