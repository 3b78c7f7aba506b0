"""Two reports side by side: the keys in which they differ.

Owns the comparing, which is done on the real values, and its two forms of output, in which secrets are
hidden as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.explain.report import FRESH_DIRECTORY, Report, secret, shown_text, title
from worker.explain.rows import Row
from worker.explain.secrets import Discretion
from worker.explain.table import one_line, table

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that has another value, or comes from another layer; None: the report has no such key."""

    key: str
    a: Row | None
    b: Row | None

    @property
    def in_value(self) -> bool:
        """Whether the values differ, and not only where they come from."""
        return self.a is None or self.b is None or self.a.value != self.b.value


def differences(a: Report, b: Report) -> tuple[Difference, ...]:
    """The keys that differ, in the order of the first report, then of the second."""
    of_a, of_b = _by_key(a), _by_key(b)
    found = [Difference(key, of_a.get(key), of_b.get(key)) for key in dict.fromkeys((*of_a, *of_b))]
    return tuple(one for one in found if one.a != one.b)


def _by_key(report: Report) -> dict[str, Row]:
    rows = {row.key: row for row in report.all_rows}
    if (launch := report.launch) is not None:
        cold = launch.cold_because
        start = Row("start_method", "warm" if cold is None else f"cold: {cold}", "headrace")
        steps = Row("pull_steps", list(launch.pull_steps), "deployment")
        pool = Row("work_pool", report.about.get("work_pool"), "deployment")
        rows |= {row.key: row for row in (start, steps, pool)}
    return rows


def diff_as_json(
    a: Report, b: Report, about: tuple[dict[str, Any], dict[str, Any]], discretion: Discretion
) -> dict[str, Any]:
    """The difference for programs; `about` are the two reports as JSON."""
    return {
        "a": about[0],
        "b": about[1],
        "differences": [
            {
                "key": one.key,
                "value_differs": one.in_value,
                "a": _side(one.a, discretion),
                "b": _side(one.b, discretion),
            }
            for one in differences(a, b)
        ],
    }


def _side(row: Row | None, discretion: Discretion) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"value": discretion.value(row.value, secret=secret(row)), **row.provenance()}


def diff_as_text(a: Report, b: Report, discretion: Discretion, *, width: int | None) -> str:
    """The difference for people."""
    lines = [f"A: {title(a)}", f"B: {title(b)}"]
    found = differences(a, b)
    if a.launch is not None and b.launch is not None:
        rows = [("KEY", "A", "LAYER", "B", "LAYER")]
        rows.extend(_cells(one, discretion) for one in found)
        lines += ["", *(table(rows, width=width, elastic=(1, 3)) if found else ["no difference"])]
    for name, report in (("A", a), ("B", b)):
        if report.problem is not None:
            lines.append(f"{name} could not start: {one_line(discretion.text(report.problem.message))}")
    return "\n".join(lines)


def _cells(one: Difference, discretion: Discretion) -> tuple[str, str, str, str, str]:
    a, b = _shown(one.a, discretion), _shown(one.b, discretion)
    if one.in_value and a == b and a != FRESH_DIRECTORY:
        b = f"{b} differs"
    return (one_line(one.key), a, _layer(one.a), b, _layer(one.b))


def _shown(row: Row | None, discretion: Discretion) -> str:
    return ABSENT if row is None else shown_text(row, discretion)


def _layer(row: Row | None) -> str:
    if row is None:
        return ABSENT
    return f"{row.layer} ({row.on})" if row.on else row.layer
