"""From results to rows: medians side by side, ratios, and whether targets are met."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from bench.metrics import STYLES, TARGETS, Ceiling, Factor, Metric, Target
from bench.results import Result, Series
from bench.workers import Candidate

TIMES = "\N{MULTIPLICATION SIGN}"
OURS = (Candidate.OURS, Candidate.COLD)
STOCK = (Candidate.STOCK, Candidate.TUNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A target, in words, and whether it is met."""

    text: str
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric in one case: each candidate's values, how many times better ours is, the targets."""

    metric: Metric
    case: str
    series: dict[Candidate, Series]
    times_better: dict[Candidate, float]
    verdicts: tuple[Verdict, ...]

    @property
    def ours(self) -> Series | None:
        """The values of headrace, whichever way it was started."""
        return next((self.series[candidate] for candidate in OURS if candidate in self.series), None)

    @property
    def title(self) -> str:
        """Metric and case."""
        return f"{self.metric}, {self.case}" if self.case else str(self.metric)


def rows(results: Iterable[Result]) -> list[Row]:
    """All figures, in the order of the metrics; cases in the order they were measured."""
    grouped: dict[tuple[Metric, str], dict[Candidate, Series]] = {}
    for result in results:
        for series in result.series:
            grouped.setdefault((series.metric, series.case), {})[series.candidate] = series
    ordered = sorted(grouped.items(), key=lambda item: list(Metric).index(item[0][0]))
    return [_row(metric, case, by_candidate) for (metric, case), by_candidate in ordered]


def unmeasured(found: Sequence[Row]) -> list[Target]:
    """Targets that no row has a figure for."""
    there = {(row.metric, row.case): row.series.keys() for row in found}
    missing: list[Target] = []
    for target in TARGETS:
        candidates = there.get((target.metric, target.case), set[Candidate]())
        needed = {target.against} if isinstance(target, Factor) else set[Candidate]()
        if not needed <= candidates or not candidates & set(OURS):
            missing.append(target)
    return missing


def describe(target: Target) -> str:
    """A target in words."""
    match target:
        case Factor():
            against = "shipped" if target.against is Candidate.STOCK else "tuned"
            return f"≥ {target.times:g}{TIMES} {against}"
        case Ceiling():
            return f"≤ {target.most:g} {STYLES[target.metric].unit}"
        case _:
            assert_never(target)


def _row(metric: Metric, case: str, series: dict[Candidate, Series]) -> Row:
    ours = next((series[candidate] for candidate in OURS if candidate in series), None)
    better: dict[Candidate, float] = {}
    if ours is not None:
        for candidate in STOCK:
            if candidate in series and (factor := _times_better(metric, series[candidate], ours)) is not None:
                better[candidate] = factor
    verdicts: list[Verdict] = []
    for target in TARGETS:
        if (target.metric, target.case) == (metric, case):
            met = _met(target, ours, better)
            if met is not None:
                verdicts.append(Verdict(text=describe(target), met=met))
    return Row(metric=metric, case=case, series=series, times_better=better, verdicts=tuple(verdicts))


def _times_better(metric: Metric, stock: Series, ours: Series) -> float | None:
    """The ratio of the medians, above 1 where ours is better; None where a ratio means nothing."""
    if not STYLES[metric].ratio or stock.middle <= 0 or ours.middle <= 0:
        return None
    ratio = stock.middle / ours.middle
    return 1 / ratio if STYLES[metric].more_is_better else ratio


def _met(target: Target, ours: Series | None, better: dict[Candidate, float]) -> bool | None:
    match target:
        case Factor():
            factor = better.get(target.against)
            return None if factor is None else factor >= target.times
        case Ceiling():
            return None if ours is None else ours.middle <= target.most
        case _:
            assert_never(target)
