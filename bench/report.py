"""The page: tables and plot between two markers of docs/performance.md; the prose around them is left alone."""

from collections.abc import Sequence
from pathlib import Path

from bench.comparison import TIMES, Row, describe, rows, unmeasured
from bench.metrics import STYLES
from bench.plot import svg
from bench.processes import BenchError
from bench.results import Result, Series
from bench.workers import TITLES, TUNING, Candidate

BEGIN = "<!-- figures: begin (rendered by `python -m bench --render`) -->"
END = "<!-- figures: end -->"
_HEADINGS = ("", "stock, as shipped", "stock, tuned", "headrace", "vs shipped", "vs tuned", "target")


def render(results: Sequence[Result], page: Path) -> None:
    """Write figures into the page and the plot beside it. Raises BenchError where there are no results or no markers."""
    if not results:
        raise BenchError("there are no results to render: run `make bench` first")
    found = rows(results)
    picture = page.with_suffix(".svg")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page} lacks the lines `{BEGIN}` and `{END}`, between which the figures go")
    picture.write_text(svg(found))
    parts = [
        f"![How many times better headrace is than stock, on a logarithmic scale]({picture.name})",
        *_place(results),
        _table(found),
        *_missing(found),
        *_outcomes(results),
        *_sessions(results),
    ]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def _place(results: Sequence[Result]) -> list[str]:
    """Machine and versions; several lines where the results come from several."""
    places: dict[str, list[str]] = {}
    for result in results:
        facts = ", ".join(f"{name} {value}" for name, value in {**result.machine, **result.versions}.items())
        places.setdefault(facts, []).append(result.scenario)
    if len(places) == 1:
        lines = [f"Measured with {next(iter(places))}."]
    else:
        lines = [f"- {', '.join(scenarios)}: measured with {facts}" for facts, scenarios in places.items()]
    tuning = ", ".join(f"`{name}={value}`" for name, value in TUNING.items())
    legend = "Each figure is the median, with (minimum to maximum, number of values) behind it. MB are 10⁶ bytes of PSS."
    return ["\n".join(lines), f"{legend} Stock is tuned with {tuning}."]


def _table(found: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = [_HEADINGS, ("---", *("---:",) * (len(_HEADINGS) - 2), "---")]
    for row in found:
        cells = [_values(row.series.get(candidate)) for candidate in (Candidate.STOCK, Candidate.TUNED)]
        factors = [
            _factor(row.times_better.get(candidate)) for candidate in (Candidate.STOCK, Candidate.TUNED)
        ]
        verdicts = "; ".join(f"{'✅' if v.met else '❌ not met:'} {v.text}" for v in row.verdicts)
        lines.append((row.title, *cells, _values(row.ours), *factors, verdicts))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _values(series: Series | None) -> str:
    if series is None:
        return ""
    style = STYLES[series.metric]
    middle = f"{series.middle:.{style.decimals}f} {style.unit}".rstrip()
    low, high = (f"{value:.{style.decimals}f}" for value in (min(series.values), max(series.values)))
    spread = (
        f"n={len(series.values)}" if len(series.values) == 1 else f"{low} to {high}, n={len(series.values)}"
    )
    return f"**{middle}** ({spread})"


def _factor(factor: float | None) -> str:
    return "" if factor is None else f"{factor:.1f}{TIMES}"


def _missing(found: Sequence[Row]) -> list[str]:
    missing = [
        f"- {target.metric}{f', {target.case}' if target.case else ''}: {describe(target)}"
        for target in unmeasured(found)
    ]
    return ["\n".join(["Targets that were not measured:", "", *missing])] if missing else []


def _outcomes(results: Sequence[Result]) -> list[str]:
    lines = [
        f"- {TITLES[seen.candidate]}: {seen.what} {seen.outcome} ({seen.count} of {result.rounds})"
        for result in results
        for seen in result.observations
    ]
    return ["\n".join(lines)] if lines else []


def _sessions(results: Sequence[Result]) -> list[str]:
    lines = ["| scenario | measured at (UTC) | rounds | seconds |", "| --- | --- | ---: | ---: |"]
    lines += [
        f"| {result.scenario} | {result.measured_at.removesuffix('+00:00')} | {result.rounds} | {result.wall_seconds:.0f} |"
        for result in results
    ]
    return ["\n".join(lines)]
