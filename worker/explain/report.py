"""What `headrace explain` has found out about one run, and its two forms of output.

Owns the report's shape as JSON and as text; what is hidden is `secrets`' decision, made here for
each value at the moment it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.explain.rows import Row
from worker.explain.secrets import Discretion, is_secret
from worker.explain.table import one_line, table
from worker.runs.job_variables import Layer, Provenance

FRESH_DIRECTORY = "(a fresh directory, removed afterwards)"
ENGINE = "(the flow engine)"
DAEMONS_PYTHON = "(the daemon's)"
ELASTIC = (1, 4)
"""The columns of a table that are shortened first: VALUE and FILLED BY."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the run could not start: a class name for machines, a sentence for people."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Stray:
    """A variable that the template does not use: what becomes of it, and the declared name most like it.

    `becomes` is the environment variable it is taken for, None when it has no effect.
    """

    name: str
    layers: tuple[str, ...]
    becomes: str | None
    reason: str | None
    nearest: str | None


@dataclass(frozen=True, slots=True)
class Launch:
    """What would be launched. `cwd` None: a directory made for the run. `cold_because` None: a warm start.

    `named_python`: in an interpreter that a job variable names, and so from its fork server.
    """

    argv: tuple[str, ...]
    cwd: str | None
    cold_because: str | None
    named_python: bool
    pull_steps: tuple[str, ...]
    later: tuple[str, ...]
    """Variables that get their value when the run is launched."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of one run. Without `launch` its job variables cannot be resolved."""

    about: Mapping[str, Any]
    """Kind, id and names, as `--json` prints them."""
    mode: str
    problem: Problem | None
    rows: tuple[Row, ...] = ()
    environment: tuple[Row, ...] = ()
    labels: tuple[Row, ...] = ()
    everything: bool = False
    launch: Launch | None = None
    undeclared: tuple[Stray, ...] = ()
    unused: tuple[Stray, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Every key, in the order of the table."""
        return (*self.rows, *self.environment, *self.labels)


def secret(row: Row) -> bool:
    """Tell whether a row's value is to be hidden."""
    try:
        layer = Layer(row.layer)
    except ValueError:  # a layer of the environment only
        layer = Layer.WORKER_DEFAULT
    return is_secret(row.key, Provenance(layer, filled_by=row.filled_by))


def report_as_json(report: Report, discretion: Discretion) -> dict[str, Any]:
    """The report for programs; where both have a key it means what it means with `--input`."""
    shown = {row.key: discretion.value(row.value, secret=secret(row)) for row in report.all_rows}
    hidden = [row.key for row in report.all_rows if shown[row.key] != row.value]
    document: dict[str, Any] = {
        "about": dict(report.about),
        "job_variables": report.mode,
        "starts": report.problem is None,
    }
    if report.problem is not None:
        document["error"] = {
            "type": report.problem.type,
            "message": discretion.text(report.problem.message),
        }
    if (launch := report.launch) is not None:
        document |= {
            **{row.key: shown[row.key] for row in report.rows},
            "env": {_name(row): shown[row.key] for row in report.environment},
            "labels": {_name(row): shown[row.key] for row in report.labels},
            "provenance": {row.key: row.provenance() for row in report.all_rows},
            "hidden": hidden,
            "launch": {
                "argv": _argv(report, launch, discretion),
                "cwd": None if launch.cwd is None else discretion.text(launch.cwd),
                "pull_steps": list(launch.pull_steps),
                "set_at_launch": list(launch.later),
            },
            "start_method": {
                "method": "warm" if launch.cold_because is None else "cold",
                "reason": None if launch.cold_because is None else discretion.text(launch.cold_because),
            },
            "undeclared": [_stray(one) for one in report.undeclared],
            "unused": [_stray(one) for one in report.unused],
        }
    return document | {
        "notes": discretion.texts(report.notes),
        "remarks": discretion.texts(report.remarks),
    }


def as_text(report: Report, discretion: Discretion, *, width: int | None) -> str:
    """The report for people, at most `width` columns wide where that is given."""
    lines = [title(report), *(f"  {discretion.text(remark)}" for remark in report.remarks)]
    if (launch := report.launch) is not None:
        rows = [("KEY", "VALUE", "LAYER", "OVERRODE", "FILLED BY")]
        rows.extend(_cells(row, discretion) for row in report.all_rows)
        lines += ["", *table(rows, width=width, elastic=ELASTIC), "", *_endings(report, launch, discretion)]
    lines += [f"the run's log says: {discretion.text(note)}" for note in report.notes]
    if report.problem is not None:
        lines.append(f"could not start: {one_line(discretion.text(report.problem.message))}")
    return "\n".join(lines)


def title(report: Report) -> str:
    """One line that says what is explained."""
    about = report.about
    names = [f"{key.replace('_', ' ')} {about[key]}" for key in ("deployment", "work_pool") if about.get(key)]
    what = f"{about['kind']} {about['name']}"
    others = [name for name in names if name != what]
    return one_line(", ".join([what, *others, f"job variables {report.mode}"]))


def _endings(report: Report, launch: Launch, discretion: Discretion) -> list[str]:
    words = " ".join(one_line(word) for word in _argv(report, launch, discretion))
    lines = [
        f"starts: {words}",
        f"in: {one_line(discretion.text(launch.cwd)) if launch.cwd is not None else FRESH_DIRECTORY}",
    ]
    if launch.pull_steps:
        lines.append(f"pull steps, which may lead elsewhere: {', '.join(map(one_line, launch.pull_steps))}")
    if launch.cold_because is None:
        which = (
            f"fork server of {one_line(discretion.text(launch.argv[0]))}"
            if launch.named_python
            else "fork server"
        )
        lines.append(f"start method: warm, unless the {which} finds a reason against it")
    else:
        lines.append(f"start method: cold, because {one_line(discretion.text(launch.cold_because))}")
    lines += [_undeclared_line(one) for one in report.undeclared]
    lines += [_unused_line(one) for one in report.unused if one.layers]
    return lines


def _undeclared_line(one: Stray) -> str:
    hint = f"; did you mean {one.nearest!r}?" if one.nearest else ""
    fate = f"becomes {one.becomes}" if one.becomes else f"is ignored: {one.reason}"
    return f"undeclared: {one_line(one.name)} ({' and '.join(one.layers)}) {fate}{hint}"


def _unused_line(one: Stray) -> str:
    return f"unused: {one_line(one.name)} ({' and '.join(one.layers)}) has no effect: {one.reason}"


def _stray(one: Stray) -> dict[str, Any]:
    return {
        "name": one.name,
        "layers": list(one.layers),
        "becomes": one.becomes,
        "reason": one.reason,
        "nearest": one.nearest,
    }


def _argv(report: Report, launch: Launch, discretion: Discretion) -> list[str]:
    command = next(row for row in report.rows if row.key == "command")
    whole = secret(command) and command.value is not None
    return discretion.words(launch.argv, secret=whole)


def _name(row: Row) -> str:
    return row.key.partition(".")[2]


def _cells(row: Row, discretion: Discretion) -> tuple[str, str, str, str, str]:
    filled_by: Sequence[str] = row.filled_by
    if row.nulled is not None:
        filled_by = (*filled_by, f"null on the {row.nulled}")
    return (
        one_line(row.key),
        shown_text(row, discretion),
        f"{row.layer} ({row.on})" if row.on else row.layer,
        ", ".join(dict.fromkeys(row.overrode)) or "-",
        one_line(", ".join(filled_by) or "-"),
    )


def shown_text(row: Row, discretion: Discretion) -> str:
    """A value as it stands in a table."""
    if row.value is None:
        nothing = {"command": ENGINE, "python": DAEMONS_PYTHON, "working_dir": FRESH_DIRECTORY}
        return nothing.get(row.key, "null")
    value = discretion.value(row.value, secret=secret(row))
    return one_line(value if isinstance(value, str) else json.dumps(value))
