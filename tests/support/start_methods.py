"""The same flow runs started warm (by the fork server) and cold (`python -m prefect.engine`), side by side.

Owns: two daemons that differ in `--start-method` only, the runs of all scenarios on both, what is done to a run while it
runs, and taking what names a run, a daemon or a directory out of what they show. Does not own: what must be equal
(`start_methods_differences`, the tests).
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.support.api import FINAL, Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import FLOWS
from tests.support.start_methods_words import OF_A_SLOW_SERVER, of_any_process, replaced
from tests.support.wait import wait_for

STARTS = FLOWS / "starts"
WARM, COLD = "warm", "cold"
# Cold starts of a whole module, on a machine that does other things, too.
ALL_RUNS_TIMEOUT = 900.0
# What opens and closes a process of a run in the daemon's log.
_LIFE = {"flow_run.launched": 1, "flow_run.reported": -1}
# States that tell how long something took, not what happened.
_OF_TIME = frozenset({"Late"})
# What in a flow's environment is the run's or the daemon's own, beside what the API can tell.
_OWN_VARIABLES = (
    *("HEADRACE_EXECUTION_ID", "PREFECT__CONTROL_TOKEN", "PREFECT__CONTROL_PORT", "PREFECT__WORKER_ID"),
    *("TEST_SERVICE_MARK", "PREFECT__FLOW_ID"),
)


class Place(StrEnum):
    """How a run comes to its project."""

    PULL_STEP = "a pull step goes there"
    COPIED = "it is copied from the deployment's path"
    WORKING_DIRECTORY = "it is the working directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run to make on both sides.

    `prepare` changes the project's copy before; `meanwhile` is called again and again until it answers True.
    `cold_because` is a pattern of the reason why the warm side starts it cold, too.
    """

    name: str
    entrypoint: str
    variables: Json = field(default_factory=dict[str, Any])
    place: Place = Place.PULL_STEP
    subdirectory: str = ""
    prepare: Callable[["Run"], None] | None = None
    meanwhile: "Callable[[Run], bool] | None" = None
    cold_because: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One daemon, and where its runs write."""

    api: PrefectApi
    method: str
    worker: Worker
    directory: Path

    @property
    def out(self) -> Path:
        """Where its flows write down what they see."""
        return self.directory / "out"

    @property
    def shared(self) -> Path:
        """A directory that is the same for both sides."""
        return self.directory.parent


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a scenario on one side."""

    side: Side
    scenario: Scenario
    project: Path
    deployment_id: str = ""
    id: str = ""
    earlier: list[str] = field(default_factory=list[str])
    helped: bool = False

    def facts(self, kind: str) -> list[Json]:
        """What the run's flow wrote down of this kind, oldest first."""
        return self.facts_of(self.side, self.id, kind)

    @staticmethod
    def facts_of(side: Side, run_id: str, kind: str) -> list[Json]:
        """The same of any run of the side."""
        found = sorted(side.out.glob(f"{run_id}.{kind}.*json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in found]

    def is_settled(self) -> bool:
        """Whether each process that the daemon started for it has ended and is reported."""
        return self.id in settled([self.side])

    def kinds(self) -> list[str]:
        """The kinds of everything that the run wrote down."""
        return sorted(path.name.split(".")[1] for path in self.side.out.glob(f"{self.id}.*.json"))

    def fact(self, kind: str) -> Json:
        """The one of this kind."""
        found = self.facts(kind)
        assert len(found) == 1, f"{len(found)} facts {kind}: {self.story()}"
        return found[0]

    def events(self, name: str) -> list[Json]:
        return self.side.worker.events(name, flow_run_id=self.id)

    def launched(self) -> Json:
        """The daemon's word on how the run's process was started, the last one if there were several."""
        return self.events("flow_run.launched")[-1]

    def state(self) -> Json:
        return self.side.api.flow_run(self.id)["state"]

    def story(self) -> str:
        output = [event["line"] for event in self.events("flow_run.output")]
        return f"{self.side.method}, {self.scenario.name}: {self.side.api.story(self.id)}\n" + "\n".join(
            output
        )

    def start(self) -> None:
        """Start it; once more when it has been started before."""
        if self.id:
            self.earlier.append(self.id)
        self.id = self.side.api.create_flow_run(self.deployment_id, name=f"run-of-{self.label}")

    def neutral(self, value: Any) -> Any:
        """`value` (JSON) without what differs from run to run, daemon to daemon, and directory to directory."""
        return replaced(value, self.words())

    def words(self) -> dict[str, str]:
        """What names this run, its daemon and its directories, the longest first, each with a word for it."""
        run = self.side.api.flow_run(self.id)
        variables = self.environment()
        fresh = {name: variables[name] for name in _OWN_VARIABLES if name in variables}
        words = {text: f"<{name}>" for name, text in fresh.items()} | {
            str(self.project): "<PROJECT>",
            str(self.side.out): "<OUT>",
            str(self.side.worker.home): "<HOME>",
            self.side.worker.name: "<WORKER>",
            self.side.worker.pool: "<POOL>",
            self.id: "<RUN>",
            run["name"]: "<NAME>",
            self.deployment_id: "<DEPLOYMENT>",
            self.label: "<DEPLOYMENT NAME>",
        }
        return dict(sorted(words.items(), key=lambda pair: -len(pair[0])))

    def environment(self) -> dict[str, str]:
        """The environment that the process had at its start and later, if it told."""
        for facts in self.facts("body"):
            if "facts" in facts:
                return facts["facts"]["first_environment"] | facts["facts"]["environment"]
            if "environment" in facts:
                return facts["environment"]
        return {}

    @property
    def label(self) -> str:
        """What its deployment and its flow run are called."""
        return re.sub(r"\W+", "-", self.scenario.name) + "-" + self.side.method

    def log(self) -> list[tuple[int, str, str]]:
        """The run's log: level, logger, message; in order of its text, as two writers have no order."""
        lines = [
            (one["level"], one["name"], self.text(one["message"])) for one in self.side.api.logs(self.id)
        ]
        return sorted(line for line in lines if OF_A_SLOW_SERVER not in line[2])

    def output(self) -> list[str]:
        """What the process printed, by line."""
        lines = [self.text(event["line"]) for event in self.events("flow_run.output")]
        return [line for line in lines if OF_A_SLOW_SERVER not in line]

    def text(self, text: str) -> str:
        """A line for people without names, times and addresses."""
        return of_any_process(self.neutral(text))

    def history(self) -> list[tuple[str, str, str]]:
        """Type, name and message of every state."""
        return [
            (state["type"], state["name"], self.text(state["message"] or "").partition("\n")[0])
            for state in self.side.api.states(self.id)
            if state["name"] not in _OF_TIME
        ]

    def exits(self) -> list[str]:
        """How its processes ended, as the daemon saw it."""
        return [event["exit"] for event in self.events("flow_run.exited")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """All runs, by side and scenario, all of them over."""

    warm: Mapping[str, Run]
    cold: Mapping[str, Run]

    def both(self, name: str) -> tuple[Run, Run]:
        """The scenario's run on both sides: (warm, cold)."""
        return self.warm[name], self.cold[name]


def run_side_by_side(
    scenarios: Sequence[Scenario], *, api: PrefectApi, start: StartWorker, directory: Path
) -> Pair:
    """Make every scenario's run on two daemons, one per start method, all at the same time, and wait for all of them."""
    home = directory / "prefect-home"
    sides = [
        start_side(method, api=api, start=start, directory=directory / method, home=home)
        for method in (WARM, COLD)
    ]
    runs = [create(scenario, side) for scenario in scenarios for side in sides]
    remaining = {id(run): run for run in runs}

    def progress() -> bool:
        over = settled(sides) & final(api, remaining.values())
        for key, run in list(remaining.items()):
            if not run.helped:
                run.helped = run.scenario.meanwhile is None or run.scenario.meanwhile(run)
            if run.helped and run.id in over:
                del remaining[key]
        return not remaining

    wait_for(
        progress,
        timeout=ALL_RUNS_TIMEOUT,
        interval=0.5,
        description=lambda: "the end of every run:\n" + "\n".join(run.story() for run in remaining.values()),
    )
    warm, cold = ({run.scenario.name: run for run in runs if run.side is side} for side in sides)
    return Pair(warm=warm, cold=cold)


def start_side(method: str, *, api: PrefectApi, start: StartWorker, directory: Path, home: Path) -> Side:
    """One daemon; the Prefect `home` is the same for both, as settings that depend on it are compared by their digest."""
    directory.mkdir()
    pool = api.create_pool()
    worker = start(
        pool=pool,
        args=("--limit", "2", "--start-method", method),
        env={"PREFECT_HOME": str(home), "PREFECT_CLIENT_MAX_RETRIES": "12"},
    )
    if method == WARM:
        # On a slow machine the first runs would not wait for it, and start cold.
        worker.wait_for_event("forkserver.started", timeout=180)
    return Side(api=api, method=method, worker=worker, directory=directory)


def create(scenario: Scenario, side: Side) -> Run:
    """The run, due now, of a deployment with a copy of the flows of its own, so that no run changes another's."""
    project = side.directory / re.sub(r"\W+", "-", scenario.name) / "project"
    shutil.copytree(STARTS, project, ignore=shutil.ignore_patterns("__pycache__"))
    run = Run(side=side, scenario=scenario, project=project)
    if scenario.prepare is not None:
        scenario.prepare(run)
    where = project / scenario.subdirectory
    variables = dict(scenario.variables)
    fields: Json = {}
    match scenario.place:
        case Place.PULL_STEP:
            fields["pull_steps"] = [
                {"prefect.deployments.steps.set_working_directory": {"directory": str(where)}}
            ]
        case Place.COPIED:
            fields["path"] = str(where)
        case Place.WORKING_DIRECTORY:
            variables["working_dir"] = str(where)
    run.deployment_id = side.api.create_deployment(
        pool=side.worker.pool,
        entrypoint=scenario.entrypoint,
        flow=re.split(r"[.:]", scenario.entrypoint)[-1].replace("_", "-"),
        name=run.label,
        parameters={"out": str(side.out)},
        job_variables=json.loads(
            json.dumps(variables).replace("<PROJECT>", str(project)).replace("<SHARED>", str(side.shared))
        ),
        **fields,
    )
    run.start()
    return run


def final(api: PrefectApi, runs: Iterable[Run]) -> set[str]:
    """The ids of those that are in a terminal state."""
    wanted = [run.id for run in runs]
    found = api.flow_runs(flow_runs={"id": {"any_": wanted}})
    return {run["id"] for run in found if run["state_type"] in FINAL}


def settled(sides: Iterable[Side]) -> set[str]:
    """The ids of the runs all of whose processes have ended and been reported."""
    counts: Counter[str] = Counter()
    for side in sides:
        for event in side.worker.logs():
            counts[event.get("flow_run_id", "")] += _LIFE.get(event["event"], 0)
    return {run_id for run_id, open_ends in counts.items() if open_ends == 0}
