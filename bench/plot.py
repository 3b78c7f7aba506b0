"""The plot, as SVG: how many times better headrace is, on a logarithmic scale. The same figures give the same bytes."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

from bench.comparison import TIMES, Row
from bench.metrics import TARGETS, Factor
from bench.workers import TITLES, Candidate

_COLOURS = {Candidate.STOCK: "#2f6f8f", Candidate.TUNED: "#d08b2c"}
_TARGET = "#b3261e"
_LEFT, _RIGHT, _TOP, _BOTTOM = 300, 70, 66, 40
_WIDTH = 860
_BAR, _GAP = 13, 12
_FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def svg(rows: Sequence[Row]) -> str:
    """Bars to the right of 1 are in headrace's favour; a red mark is a target."""
    shown = [row for row in rows if row.times_better]
    factors = [factor for row in shown for factor in row.times_better.values()]
    scale = _Scale([*factors, *(target.times for target in TARGETS if isinstance(target, Factor))])
    body: list[str] = []
    top = _TOP
    for row in shown:
        height = _BAR * len(row.times_better)
        body.append(_text(_LEFT - 10, top + height / 2 + 4, row.title, anchor="end"))
        for candidate, factor in row.times_better.items():
            body += _bar(scale, row, candidate, factor, top)
            top += _BAR
        top += _GAP
    height = top + _BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(20, 24, "How many times better than stock (ratio of medians, logarithmic)", weight="bold"),
            *_legend(),
            *_axis(scale, top),
            *body,
            "</svg>\n",
        ]
    )


class _Scale:
    """Factors to horizontal positions."""

    def __init__(self, factors: Sequence[float]) -> None:
        self._low = floor(log10(min(1.0, *factors)) * 2) / 2
        self._high = ceil(log10(max(2.0, *factors)) * 2) / 2

    def x(self, factor: float) -> float:
        share = (log10(factor) - self._low) / (self._high - self._low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def ticks(self) -> list[float]:
        return [tick for tick in _TICKS if self._low <= log10(tick) <= self._high]


def _bar(scale: _Scale, row: Row, candidate: Candidate, factor: float, top: float) -> list[str]:
    left, right = sorted((scale.x(1), scale.x(factor)))
    thick = _BAR - 2
    drawn = [
        f'<rect x="{left}" y="{top}" width="{max(right - left, 1):.1f}" height="{thick}" fill="{_COLOURS[candidate]}"/>',
        _text(right + 5, top + thick - 1, f"{factor:.1f}{TIMES}", size=10),
    ]
    for target in TARGETS:
        if isinstance(target, Factor) and (target.metric, target.case, target.against) == (
            row.metric,
            row.case,
            candidate,
        ):
            x = scale.x(target.times)
            drawn.append(
                f'<line x1="{x}" y1="{top - 2}" x2="{x}" y2="{top + thick + 2}" stroke="{_TARGET}" stroke-width="2.5"/>'
            )
    return drawn


def _legend() -> list[str]:
    parts: list[str] = []
    x = 20
    for candidate, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 46, f"against {TITLES[candidate]}"))
        x += 190
    parts.append(f'<line x1="{x + 6}" y1="34" x2="{x + 6}" y2="50" stroke="{_TARGET}" stroke-width="2.5"/>')
    parts.append(_text(x + 18, 46, "target"))
    return parts


def _axis(scale: _Scale, bottom: float) -> list[str]:
    parts: list[str] = []
    for tick in scale.ticks():
        x = scale.x(tick)
        colour = "#444444" if tick == 1 else "#dddddd"
        parts.append(f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{bottom}" stroke="{colour}"/>')
        parts.append(_text(x, bottom + 16, f"{tick:g}{TIMES}", anchor="middle"))
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 12
) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style} fill="#222222">{escape(text)}</text>'
