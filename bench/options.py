"""The command line of `python -m bench`."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.scenarios import SCENARIOS
from bench.sizes import FULL, QUICK, USUAL, Sizes
from bench.workers import Candidate

_ROOT = Path(__file__).resolve().parent.parent
_DESCRIPTION = "Measure stock Prefect workers and headrace side by side, and render docs/performance.md."


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    measure: bool
    scenarios: tuple[str, ...]
    named: bool
    """Whether the scenarios were asked for by name: none of them may be left out then."""
    candidates: tuple[Candidate, ...] | None
    """Instead of those of each scenario."""
    sizes: Sizes
    results: Path
    page: Path


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; ends the process with a message where they make no sense."""
    given = _parser().parse_args(arguments)
    directory = _ROOT / ".bench" / "quick" if given.quick else None
    return Options(
        measure=not given.render,
        scenarios=tuple(name for name in SCENARIOS if given.only is None or name in given.only),
        named=given.only is not None,
        candidates=given.candidates and tuple(given.candidates),
        sizes=_sizes(given),
        results=given.results or directory or _ROOT / "bench" / "results",
        page=given.page or (directory or _ROOT / "docs") / "performance.md",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=_DESCRIPTION)
    names = ", ".join(SCENARIOS)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="NAME", help=f"of {names}")
    parser.add_argument(
        "--candidates",
        nargs="+",
        type=Candidate,
        metavar="NAME",
        help=f"instead of each scenario's own: {', '.join(Candidate)}",
    )
    parser.add_argument("--render", action="store_true", help="measure nothing, render what there is")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="tiny numbers and a page of its own, in .bench/quick"
    )
    size.add_argument(
        "--full", action="store_true", help="100 flows, 2,000 runs, more rounds: two to three hours"
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="instead of each scenario's own number")
    parser.add_argument("--burst-runs", type=_positive, metavar="N")
    parser.add_argument("--burst-limits", type=_positive, nargs="+", metavar="N")
    parser.add_argument("--flows", type=_positive, nargs="+", metavar="N", help="of the scenario memory")
    parser.add_argument("--growth-runs", type=_positive, metavar="N")
    parser.add_argument("--growth-stock-runs", type=_positive, metavar="N", help="default: stock is left out")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: bench/results")
    parser.add_argument("--page", type=Path, metavar="FILE", help="default: docs/performance.md")
    return parser


def _sizes(given: argparse.Namespace) -> Sizes:
    sizes = QUICK if given.quick else FULL if given.full else USUAL
    numbers = ("burst_runs", "burst_limits", "flows", "growth_runs", "growth_stock_runs")
    asked: dict[str, Any] = {name: getattr(given, name) for name in numbers}
    for name in ("burst_limits", "flows"):
        # Flows are added to those that run already: the counts must rise.
        asked[name] = asked[name] and tuple(sorted(asked[name]))
    if given.rounds is not None:
        asked["rounds"] = dict.fromkeys(SCENARIOS, given.rounds)
    return dataclasses.replace(sizes, **{name: value for name, value in asked.items() if value is not None})


def _positive(text: str) -> int:
    """A whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number
