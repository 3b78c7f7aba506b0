"""What a flow does when it is started warm is what it does when it is started cold: states, log, output, files, exit.

Every scenario runs once under both methods. What the flows wrote down must be equal without any list.
"""

import os
import signal
from typing import Any

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.start_methods import Pair, Place, Run, Scenario, run_side_by_side
from tests.support.start_methods_differences import difference

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def cancel(run: Run) -> bool:
    """Ask for the run's cancellation once its flow waits."""
    if not run.facts("waiting"):
        return False
    state = run.state()["type"]
    if state == "RUNNING":
        run.side.api.cancel(run.id)
    return state not in {"RUNNING", "PENDING"}


def terminate(run: Run) -> bool:
    """SIGTERM to the flow's process, which nobody announced."""
    waiting = run.facts("waiting")
    if not waiting or run.state()["type"] != "RUNNING":
        return False
    os.kill(waiting[0]["pid"], signal.SIGTERM)
    return True


def resume(run: Run) -> bool:
    """Resume it when it has left."""
    if run.state()["name"] != "Suspended":
        return bool(run.facts("resumed"))
    if run.is_settled():
        run.side.api.resume(run.id)
    return False


def edit(run: Run) -> bool:
    """Change the flow's file and the module it imports after the first run, and start another."""
    if run.earlier:
        return True
    if run.state()["type"] == "COMPLETED":
        for name in ("changing.py", "helper.py"):
            path = run.project / name
            path.write_text(path.read_text().replace(": first", ": the second"))
        run.start()
    return False


SCENARIOS = (
    Scenario(name="threads", entrypoint="behave.py:threads"),
    Scenario(name="process pool", entrypoint="behave.py:process_pool"),
    Scenario(name="multiprocessing", entrypoint="behave.py:multiprocesses"),
    Scenario(name="subflows", entrypoint="behave.py:subflows"),
    Scenario(name="generator", entrypoint="behave.py:generates"),
    Scenario(name="async generator", entrypoint="behave.py:generates_async"),
    Scenario(name="raises", entrypoint="behave.py:raises"),
    Scenario(name="sys.exit", entrypoint="behave.py:exits"),
    Scenario(name="os._exit", entrypoint="behave.py:dies"),
    Scenario(name="killed", entrypoint="behave.py:is_killed"),
    Scenario(name="lingers", entrypoint="behave.py:lingers"),
    Scenario(name="prints", entrypoint="behave.py:prints"),
    Scenario(name="retries", entrypoint="behave.py:retries"),
    Scenario(name="suspends", entrypoint="behave.py:suspends", meanwhile=resume),
    Scenario(name="cancelled", entrypoint="behave.py:waits", meanwhile=cancel),
    Scenario(name="cancelled async", entrypoint="behave.py:waits_async", meanwhile=cancel),
    Scenario(name="terminated", entrypoint="behave.py:waits", meanwhile=terminate),
    Scenario(name="times out", entrypoint="behave.py:times_out"),
    Scenario(name="signal handlers", entrypoint="behave.py:handles_signals"),
    Scenario(name="children", entrypoint="behave.py:has_children"),
    Scenario(name="relative paths", entrypoint="behave.py:relative_paths"),
    Scenario(name="relative paths copied", entrypoint="behave.py:relative_paths", place=Place.COPIED),
    Scenario(
        name="module with a colon", entrypoint="package.module:seen_in_package", place=Place.WORKING_DIRECTORY
    ),
    Scenario(
        name="module with a dot", entrypoint="package.module.seen_in_package", place=Place.WORKING_DIRECTORY
    ),
    Scenario(name="modules of the user", entrypoint="collides.py:collides", subdirectory="collide"),
    Scenario(
        name="modules in the directory",
        entrypoint="collides.py:collides",
        subdirectory="collide",
        place=Place.WORKING_DIRECTORY,
        cold_because="would be imported in place of an installed module",
    ),
    Scenario(
        name="modules in the directory but none installed",
        entrypoint="collides.py:collides",
        subdirectory="collide",
        place=Place.WORKING_DIRECTORY,
        prepare=lambda run: (run.project / "collide" / "yaml.py").unlink(),
    ),
    Scenario(name="changed code", entrypoint="changing.py:changing", meanwhile=edit),
    Scenario(name="no such flow", entrypoint="behave.py:nobody"),
    Scenario(name="no such file", entrypoint="nowhere.py:flow"),
)
WORKER_LOGGER = "prefect.flow_runs.worker"
NAMES = tuple(scenario.name for scenario in SCENARIOS)
NAMES_OF_COLLISIONS = tuple(name for name in NAMES if name.startswith("modules "))
EXITS = {
    "os._exit": "exit code 7",
    "killed": "signal SIGKILL",
    "lingers": "exit code 0",
    "raises": "exit code 0",
}
FINAL_STATES = {
    "raises": "FAILED",
    "sys.exit": "CRASHED",
    "os._exit": "CRASHED",
    "killed": "CRASHED",
    "cancelled": "CANCELLED",
    "cancelled async": "CANCELLED",
    "terminated": "CRASHED",
    "times out": "FAILED",
    "no such flow": "CRASHED",
    "no such file": "CRASHED",
}


@pytest.fixture(scope="module")
def pair(api: PrefectApi, module_daemon: StartWorker, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """All scenarios' runs under both methods."""
    return run_side_by_side(
        SCENARIOS, api=api, start=module_daemon, directory=tmp_path_factory.mktemp("start-methods")
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_was_started_as_it_should_be(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    assert cold.launched()["start_method"] == "cold"
    reason = warm.launched()["cold_because"]
    if warm.scenario.cold_because is None:
        assert (warm.launched()["start_method"], reason) == ("warm", None)
    else:
        assert warm.launched()["start_method"] == "cold"
        assert warm.scenario.cold_because in reason


@pytest.mark.parametrize("name", NAMES)
def test_states(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    assert warm.history() == cold.history()
    expected = FINAL_STATES.get(name, "COMPLETED")
    assert warm.state()["type"] == expected, warm.story()


@pytest.mark.parametrize("name", NAMES)
def test_how_the_process_ended(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    assert warm.exits() == cold.exits()
    if name in EXITS:
        assert warm.exits() == [EXITS[name]]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_flow_wrote_down(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    found = list(difference(written(warm), written(cold)))
    assert not found, "\n".join(map(str, found))
    assert warm.kinds() or name.startswith("no such"), warm.story()


def written(run: Run) -> dict[str, Any]:
    """The facts of the run, those of pids replaced by what they are pids of."""
    facts: dict[str, Any] = {}
    for kind in run.kinds():
        for number, fact in enumerate(run.facts(kind)):
            if fact.get("same_parent") is not None:
                fact["same_parent"] = fact["same_parent"] == run.side.worker.pid
            fact.pop("pid", None)
            facts[f"{kind} {number}"] = fact
    return run.neutral(facts)


@pytest.mark.parametrize("name", NAMES)
def test_the_log_of_the_run(name: str, pair: Pair) -> None:
    """Of a process that dies at once the lines that Prefect had not sent yet are lost, so only the daemon's are compared."""
    warm, cold = pair.both(name)
    died = name in {"os._exit", "killed", "terminated"}
    logs = [[line for line in run.log() if not died or line[1] == WORKER_LOGGER] for run in (warm, cold)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_process_printed(name: str, pair: Pair) -> None:
    warm, cold = pair.both(name)
    assert warm.output() == cold.output()


def test_changed_code_is_what_runs(pair: Pair) -> None:
    """Both runs of one fork server: each has what was on disk when it started."""
    run = pair.warm["changed code"]
    (before,) = Run.facts_of(run.side, run.earlier[0], "body")
    after = run.fact("body")
    assert (before["flow"], before["helper"]) == ("flow: first", "helper: first")
    assert (after["flow"], after["helper"]) == ("flow: the second", "helper: the second")


def test_hooks_run_in_the_flow(pair: Pair) -> None:
    for name, kind in (
        ("cancelled", "cancellation"),
        ("cancelled async", "cancellation"),
        ("terminated", "crashed"),
    ):
        assert pair.warm[name].facts(kind), pair.warm[name].story()


def test_the_users_modules_are_the_users(pair: Pair) -> None:
    for name in NAMES_OF_COLLISIONS:
        (facts,) = pair.warm[name].facts("body")
        assert all(
            value and value.endswith("of the user")
            for module, value in facts["mine"].items()
            if module != "yaml"
        ), facts
