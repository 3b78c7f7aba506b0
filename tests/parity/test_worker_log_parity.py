"""What Prefect's own pages show of a worker: its lines in the runs' logs, and its events, against stock's.

The same runs under both workers, asked of the server's API as the UI does. What differs on purpose is listed here with
its reason; everything else is equal, value for value, once names and ids are made neutral.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.wait import wait_for
from worker.runs.worker_events import slug

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LOGGER = "prefect.flow_runs.worker"
NAMES = (
    "prefect.worker.started",
    "prefect.worker.submitted-flow-run",
    "prefect.worker.executed-flow-run",
    "prefect.worker.stopped",
)
RUNS: Mapping[str, Json] = {
    "ends well": {},
    "crashes": {"flow": "crashes"},
    "cannot start": {"job_variables": {"command": "no-such-program"}},
}

# What only one of the two writes into a run's log, as patterns, with the reason.
ONLY_OURS = {
    r"The process ended with .*": "the last lines of its output are where people look for them",
    r"Reported flow run 'RUN' as crashed: .*": "the same line with our message, which names cause and fix",
    r"Failed to submit flow run 'NAME' to infrastructure\.": "the same line; below it our message instead of a traceback",
}
ONLY_STOCK = {
    r"Check the flow run logs and infrastructure logs for more details\.": "ours shows the lines it sends people to",
    r"Failed to submit flow run 'NAME' to infrastructure\.": "see above",
}
# Fields of an event whose values are each worker's own.
OWN = {
    "prefect.version": "the version of the program that runs: Prefect's there, headrace's here",
    "prefect.infrastructure.identifier": "a pid",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One worker that has served its pool and stopped, and its runs by name."""

    api: PrefectApi
    worker: Worker
    runs: Mapping[str, str]

    def neutral(self, text: str) -> str:
        """`text` without names and ids that differ between the two sides."""
        words = {
            self.api.pool(self.worker.pool)["id"]: "POOL-ID",
            self.worker.pool: "POOL",
            slug(self.worker.name): "WORKER-SLUG",
            self.worker.name: "WORKER",
        }
        for run_id in self.runs.values():
            run = self.api.flow_run(run_id)
            deployment = self.api.deployment(run["deployment_id"])
            words |= {
                run_id: "RUN",
                run["name"]: "NAME",
                run["deployment_id"]: "DEPLOYMENT-ID",
                deployment["name"]: "DEPLOYMENT",
                run["flow_id"]: "FLOW-ID",
            }
        for value, word in words.items():
            text = text.replace(value, word)
        return text

    def lines(self, run: str) -> list[tuple[str, int, str]]:
        """The worker's lines in the run's log: logger, level, the first line of the message."""
        return [
            (log["name"], log["level"], self.neutral(log["message"].partition("\n")[0]))
            for log in self.api.logs(self.runs[run])
            if log["name"] == LOGGER
        ]

    def events(self, run: str | None = None) -> list[Json]:
        """The worker's events in their order: those about a run, or those about itself."""
        about = self.runs[run] if run is not None else None
        resource = (
            f"prefect.flow-run.{about}" if about else f"prefect.worker.process.{slug(self.worker.name)}"
        )
        found = self.api.events(any_resource=resource, names=NAMES)
        of_itself = [event for event in found if about or "flow-run" not in event["event"]]
        return sorted(of_itself, key=lambda event: event["occurred"])

    def shown(self, event: Json) -> Json:
        """An event's facts as the UI shows them, made neutral."""

        def resource(one: Json) -> Json:
            return {key: "OWN" if key in OWN else self.neutral(value) for key, value in one.items()}

        related = [resource(one) for one in event["related"]]
        return {
            "event": event["event"],
            "resource": resource(event["resource"]),
            "related": sorted(
                related, key=lambda one: (one["prefect.resource.role"], one["prefect.resource.id"])
            ),
            "payload": event["payload"],
            "follows": event["follows"] is not None,
        }


@dataclass(frozen=True, slots=True)
class Pair:
    ours: Side
    stock: Side

    def both(self, look: Callable[[Side], Any]) -> tuple[Any, Any]:
        return look(self.ours), look(self.stock)


@pytest.fixture(scope="module")
def pair(
    api: PrefectApi,
    module_daemon: StartWorker,
    module_stock_worker: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """Both workers have run everything and have been stopped, and what they told has arrived."""
    sides: list[Side] = []
    for start in (module_daemon, module_stock_worker):
        pool = api.create_pool()
        project = Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))
        worker = start(pool=pool, args=("--limit", "2"))
        runs = {name: project.run(tags=["parity"], **fields) for name, fields in RUNS.items()}
        sides.append(Side(api=api, worker=worker, runs=runs))
    for side in sides:
        for run in side.runs.values():
            api.wait_for_final(run, timeout=200)
    ours, stock = sides
    for side in sides:
        for run in ("ends well", "crashes"):
            api.wait_for_event(side.runs[run], NAMES[2])
        assert side.worker.stop() == 0
        wait_for(
            lambda side=side: any(event["event"] == NAMES[3] for event in side.events()),
            timeout=60,
            description=lambda side=side: f"the event of the stop: {side.events()}",
        )
    return Pair(ours=ours, stock=stock)


def unlisted(lines: list[tuple[str, int, str]], listed: Mapping[str, str]) -> list[tuple[str, int, str]]:
    return [line for line in lines if not any(re.fullmatch(pattern, line[2]) for pattern in listed)]


@pytest.mark.parametrize("run", RUNS)
def test_the_lines_in_a_runs_log(run: str, pair: Pair) -> None:
    ours, stock = pair.both(lambda side: side.lines(run))
    assert unlisted(ours, ONLY_OURS) == unlisted(stock, ONLY_STOCK)
    assert ours


@pytest.mark.parametrize("run", RUNS)
def test_the_events_of_a_run(run: str, pair: Pair) -> None:
    ours, stock = pair.both(lambda side: [side.shown(event) for event in side.events(run)])
    assert ours == stock


def test_the_events_of_the_worker(pair: Pair) -> None:
    """Started and stopped, by the same kind of worker, in the same pool, the second following the first."""
    ours, stock = pair.both(lambda side: [side.shown(event) for event in side.events()])
    assert [event["event"] for event in stock] == [NAMES[0], NAMES[3]]
    assert ours == stock


def test_what_follows_what(pair: Pair) -> None:
    """The UI draws them as one: executed follows submitted, stopped follows started."""
    for side in (pair.ours, pair.stock):
        for first, second in (side.events("ends well"), side.events()):
            assert second["follows"] == first["id"]


def test_every_listed_difference_is_one(pair: Pair) -> None:
    """A list of exceptions that nothing needs would hide the next difference."""
    for side, listed in ((pair.ours, ONLY_OURS), (pair.stock, ONLY_STOCK)):
        texts = [text for run in RUNS for _, _, text in side.lines(run)]
        unused = [pattern for pattern in listed if not any(re.fullmatch(pattern, text) for text in texts)]
        assert not unused


def test_the_page_of_the_worker(pair: Pair, api: PrefectApi) -> None:
    """The worker is listed in its pool under its name, with the same facts and the same keys."""

    def listed(side: Side) -> Json:
        (worker,) = api.workers(side.worker.pool)
        assert worker["name"] == side.worker.name
        return {
            key: worker[key] if key == "heartbeat_interval_seconds" else type(worker[key]) for key in worker
        }

    ours, stock = pair.both(listed)
    assert ours == stock
