"""Results of scenarios: collected value by value, kept as one JSON file per scenario, read back for the page."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.metrics import Metric
from bench.processes import BenchError
from bench.workers import Candidate


class Series(BaseModel):
    """The values of one metric of one candidate, in the metric's unit, in the order they were measured."""

    model_config = ConfigDict(frozen=True)

    metric: Metric
    candidate: Candidate
    case: str = ""
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)


class Observation(BaseModel):
    """What became of something, where that is not a number; counted."""

    model_config = ConfigDict(frozen=True)

    what: str
    candidate: Candidate
    outcome: str
    count: int


class Result(BaseModel):
    """One scenario, as measured in one session."""

    model_config = ConfigDict(frozen=True)

    scenario: str
    measured_at: str
    wall_seconds: float
    rounds: int
    sizes: Mapping[str, int | float | tuple[int, ...]]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    series: tuple[Series, ...]
    observations: tuple[Observation, ...] = ()


class Recorder:
    """Collects what a scenario measures, round after round."""

    def __init__(self) -> None:
        self._values: dict[tuple[Metric, str, Candidate], list[float]] = {}
        self._outcomes: dict[tuple[str, Candidate, str], int] = {}

    def add(self, metric: Metric, candidate: Candidate, value: float, *, case: str = "") -> None:
        """One value, in the metric's unit."""
        self._values.setdefault((metric, case, candidate), []).append(round(value, 4))

    def observe(self, what: str, candidate: Candidate, outcome: str) -> None:
        """One outcome that is not a number."""
        key = (what, candidate, outcome)
        self._outcomes[key] = self._outcomes.get(key, 0) + 1

    def series(self) -> tuple[Series, ...]:
        """All values so far."""
        return tuple(
            Series(metric=metric, case=case, candidate=candidate, values=tuple(values))
            for (metric, case, candidate), values in self._values.items()
        )

    def observations(self) -> tuple[Observation, ...]:
        """All outcomes so far."""
        return tuple(
            Observation(what=what, candidate=candidate, outcome=outcome, count=count)
            for (what, candidate, outcome), count in self._outcomes.items()
        )


def save(result: Result, directory: Path) -> Path:
    """Write the scenario's file, in place of an earlier one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.scenario}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(result.model_dump_json(indent=2) + "\n")
    partial.replace(path)
    return path


def load(directory: Path) -> list[Result]:
    """The results in the directory, by name of scenario. Raises BenchError for a file that is none."""
    found: list[Result] = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(Result.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise BenchError(f"{path} is not a result of this benchmark: {error}") from error
    return found
