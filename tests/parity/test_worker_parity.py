"""The same runs under `prefect worker start` and under our daemon, side by side.

This is the definition of "drop-in": what differs must be listed here with its reason. Scenarios are data, each
with the Prefect release it holds for.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import FLOWS, Project
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(400)

WORKER_LOGGER = "prefect.flow_runs.worker"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run to make under both workers; `holds_for` is the Prefect release it was compared with."""

    name: str
    flow: str = "probe"
    variables: Json = field(default_factory=dict[str, object])
    run_variables: Json = field(default_factory=dict[str, object])
    deployment: Json = field(default_factory=dict[str, object])
    # Our message for the Crashed state names the thing and the fix where stock's does not.
    own_message: bool = False
    holds_for: str = "3.8.8"


SCENARIOS = (
    Scenario("ok"),
    Scenario("copied from a path", deployment={"path": str(FLOWS)}),
    Scenario("custom command", variables={"command": f"{sys.executable} -X utf8 -m prefect.engine"}),
    Scenario(
        "environment",
        variables={
            "env": {"LAYER": "deployment", "KEPT": "1", "GONE": None, "PREFECT_LOGGING_LEVEL": "WARNING"}
        },
        run_variables={"env": {"LAYER": "run"}, "env.DOTTED": "yes"},
    ),
    Scenario("imports", flow="imports", deployment={"file": "nested/imports.py"}),
    Scenario(
        "imports from a copy", flow="imports", deployment={"file": "nested/imports.py", "path": str(FLOWS)}
    ),
    Scenario("fail", flow="fails"),
    Scenario("crash", flow="crashes"),
    Scenario("retry", flow="retries"),
    Scenario("no such command", variables={"command": "no-such-program"}, own_message=True),
    Scenario("no such directory", variables={"working_dir": "/no/such/directory"}, own_message=True),
    Scenario(
        "no such block",
        variables={"env": {"A": "{{ prefect.blocks.secret.no-such }}"}},
        own_message=True,
    ),
)
FLOW_SEES = ("ok", "copied from a path", "custom command", "environment")
NAMES = tuple(scenario.name for scenario in SCENARIOS)

# Per process, per run, or the harness's own: never equal, and no promise of anybody.
OWN_TO_EACH = {
    *("HOME", "TMPDIR", "PREFECT_HOME", "PWD", "OLDPWD", "TEST_SERVICE_MARK", "TEST_SERVICE_ROLE"),
    *("PREFECT__FLOW_RUN_ID", "PREFECT__DEPLOYMENT_ID", "PREFECT__DEPLOYMENT_NAME", "PREFECT__WORKER_NAME"),
}
# What stock sets and we do not, or differently, with the reason.
DOCUMENTED = {
    "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "the engine runs its own hooks (DESIGN part 5)",
    "PREFECT__FLOW_ENTRYPOINT": "set by stock's workspace supervisor, which we do without (PROTOCOL 4.1)",
    "HEADRACE_EXECUTION_ID": "ours, to find every process of a run (DESIGN promise 7)",
    "PYTHONPATH": "what it does for a flow is compared in test_what_a_flow_can_import",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "spares each of an engine's clients a request (PROTOCOL 4.2)",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "leaks out of Prefect's bundled default profile (PROTOCOL 1.7)",
}
# Lines of stock that ours replaces, with what it replaces them by.
REPLACED_LINES = (
    ("Check the flow run logs", "the last lines of the process's output"),
    ("Reported flow run '", "the same line with our message"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two workers, the project on its pool, and its runs by scenario."""

    worker: Worker
    project: Project
    runs: Mapping[str, str]

    def neutral(self, run_id: str, text: str) -> str:
        """`text` without what differs from run to run."""
        run = self.project.api.flow_run(run_id)
        for value, word in (
            (run_id, "RUN"),
            (run["name"], "NAME"),
            (run["deployment_id"], "DEPLOYMENT"),
            (self.worker.name, "WORKER"),
            (self.worker.pool, "POOL"),
            (str(self.worker.home), "HOME"),
        ):
            text = text.replace(value, word)
        return text


@dataclass(frozen=True, slots=True)
class Pair:
    stock: Side
    ours: Side

    def both(self, look: Callable[[Side], Any]) -> tuple[Any, Any]:
        """The same question to both: (ours, stock)."""
        return look(self.ours), look(self.stock)


@pytest.fixture(scope="module")
def pair(
    api: PrefectApi,
    module_daemon: StartWorker,
    module_stock_worker: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """All scenarios' runs under both workers, all in a terminal state."""
    sides: list[Side] = []
    for start in (module_stock_worker, module_daemon):
        # Both find a pool without a template, and give it one. Both find the runs waiting.
        pool = api.create_pool(template={})
        project = Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))
        runs = {scenario.name: start_run(project, scenario) for scenario in SCENARIOS}
        worker = start(pool=pool, args=("--limit", "3"), job_variables="stock")
        sides.append(Side(worker=worker, project=project, runs=runs))
    for side in sides:
        for run_id in side.runs.values():
            api.wait_for_final(run_id, timeout=300)
    return Pair(stock=sides[0], ours=sides[1])


def start_run(project: Project, scenario: Scenario) -> str:
    return project.run(
        scenario.flow,
        name=scenario.name.replace(" ", "-"),
        job_variables=scenario.variables,
        tags=["parity"],
        run={"job_variables": scenario.run_variables, "tags": ["of-the-run"]},
        **scenario.deployment,
    )


def test_the_scenarios_hold_for_the_installed_release() -> None:
    assert {scenario.holds_for for scenario in SCENARIOS} == {version("prefect")}


def test_both_give_a_pool_the_same_template_but_for_python(pair: Pair) -> None:
    """Texts for the UI aside, which carry no meaning for the protocol."""

    def template(side: Side) -> Any:
        return without_texts(side.project.api.pool(side.worker.pool)["base_job_template"])

    ours, stock = pair.both(template)
    # Ours alone: a stock worker serves a pool that declares it (tests/server/test_interpreters.py).
    assert ours["job_configuration"].pop("python") == "{{ python }}"
    assert ours["variables"]["properties"].pop("python")["default"] is None
    assert ours == stock


def without_texts(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {
            key: without_texts(inner)
            for key, inner in members.items()
            if not (key in {"description", "title"} and isinstance(inner, str))
        }
    return value


@pytest.mark.parametrize("name", NAMES)
def test_final_state_and_history(name: str, pair: Pair) -> None:
    """The same states in the same order; `Submitting` only tells that stock prepares, `Late` that time passed."""

    def history(side: Side) -> list[str]:
        names = side.project.api.state_names(side.runs[name])
        return [state for state in names if state not in {"Submitting", "InfrastructurePending", "Late"}]

    ours, stock = pair.both(history)
    assert ours == stock


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS if not scenario.own_message])
def test_final_message(name: str, pair: Pair) -> None:
    """Crashes say the same up to the first full stop; the explanation after it is ours."""

    def message(side: Side) -> str:
        state = side.project.api.flow_run(side.runs[name])["state"]
        text = side.neutral(side.runs[name], state["message"] or "")
        return text.partition(". ")[0].partition("\n")[0]

    ours, stock = pair.both(message)
    assert ours == stock


@pytest.mark.parametrize("name", NAMES)
def test_run_count_tags_and_creator(name: str, pair: Pair) -> None:
    def facts(side: Side) -> Json:
        run = side.project.api.flow_run(side.runs[name])
        return {key: run[key] for key in ("run_count", "tags", "auto_scheduled", "work_queue_name")}

    ours, stock = pair.both(facts)
    assert ours == stock


@pytest.mark.parametrize("name", NAMES)
def test_labels(name: str, pair: Pair) -> None:
    def labels(side: Side) -> set[str]:
        return set(side.project.api.flow_run(side.runs[name])["labels"])

    wait_for(
        lambda: labels(pair.ours) == labels(pair.stock),
        description=lambda: f"{labels(pair.ours)} to be {labels(pair.stock)}",
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_infrastructure_pid_is_there_or_not(name: str, pair: Pair) -> None:
    """Never where stock has none; a process that is gone within seconds is not noted (docs/migrating.md)."""
    ours, stock = pair.both(
        lambda side: side.project.api.flow_run(side.runs[name])["infrastructure_pid"] is not None
    )
    assert stock or not ours


@pytest.mark.parametrize("name", NAMES)
def test_worker_lines_in_the_run_log(name: str, pair: Pair) -> None:
    """Stock's lines are all there, in its order; tracebacks of its internals are cut to their first line."""

    def lines(side: Side) -> list[tuple[int, str]]:
        logs = side.project.api.logs(side.runs[name])
        return [
            (log["level"], side.neutral(side.runs[name], log["message"].partition("\n")[0]))
            for log in logs
            if log["name"] == WORKER_LOGGER and not is_replaced(log["message"])
        ]

    def settled() -> list[tuple[int, str]] | None:
        ours, stock = pair.both(lines)
        missing = [line for line in stock if line not in ours]
        return None if missing else ours

    wait_for(
        settled,
        timeout=20,
        interval=0.5,
        description=lambda: "every worker line of stock: ours {}, stock {}".format(*pair.both(lines)),
    )
    ours, stock = pair.both(lines)
    assert [line for line in ours if line in stock] == stock


def is_replaced(message: str) -> bool:
    """Whether this line, ours or stock's, is one of those that need not be equal."""
    starts = tuple(start for start, _ in REPLACED_LINES)
    return message.startswith(starts)


@pytest.mark.parametrize("name", NAMES)
def test_worker_events(name: str, pair: Pair) -> None:
    """The same worker events with the same facts about the run."""

    def shapes(side: Side) -> list[Json]:
        events = side.project.api.events(
            any_resource=f"prefect.flow-run.{side.runs[name]}",
            names=["prefect.worker.submitted-flow-run", "prefect.worker.executed-flow-run"],
        )
        return [shape(event) for event in sorted(events, key=lambda event: event["occurred"])]

    wait_for(
        lambda: len(shapes(pair.ours)) == len(shapes(pair.stock)),
        timeout=20,
        interval=0.5,
        description=lambda: "the same worker events: ours {}, stock {}".format(*pair.both(shapes)),
    )
    ours, stock = pair.both(shapes)
    assert ours == stock


def shape(event: Json) -> Json:
    """An event's facts that do not differ from worker to worker."""
    related = sorted(
        (one["prefect.resource.role"], *sorted(set(one) - {"prefect.resource.role"}))
        for one in event["related"]
    )
    (run,) = [one for one in event["related"] if one["prefect.resource.role"] == "flow-run"]
    return {
        "event": event["event"],
        "resource": sorted(event["resource"]),
        "type": event["resource"]["prefect.worker-type"],
        "related": related,
        "status": run.get("prefect.infrastructure.status-code"),
        "follows": event["follows"] is not None,
    }


@pytest.mark.parametrize("name", FLOW_SEES)
def test_environment(name: str, pair: Pair) -> None:
    def environment(side: Side) -> dict[str, str]:
        env: dict[str, str] = side.project.seen(side.runs[name])["env"]
        hidden = OWN_TO_EACH | set(DOCUMENTED)
        return {key: side.neutral(side.runs[name], value) for key, value in env.items() if key not in hidden}

    ours, stock = pair.both(environment)
    assert ours == stock


@pytest.mark.parametrize("name", FLOW_SEES)
def test_attribution_names_the_right_things(name: str, pair: Pair) -> None:
    def attribution(side: Side) -> dict[str, str | None]:
        env = side.project.seen(side.runs[name])["env"]
        return {
            key: side.neutral(side.runs[name], env[key]) if key in env else None
            for key in sorted(OWN_TO_EACH)
            if key.startswith("PREFECT__")
        }

    ours, stock = pair.both(attribution)
    assert ours == stock


@pytest.mark.parametrize("name", FLOW_SEES)
@pytest.mark.parametrize("fact", ["argv", "umask", "sigterm_ignored", "greeting"])
def test_process_facts(name: str, fact: str, pair: Pair) -> None:
    ours, stock = pair.both(lambda side: side.project.seen(side.runs[name])[fact])
    assert ours == stock


@pytest.mark.parametrize("name", FLOW_SEES)
def test_command_line(name: str, pair: Pair) -> None:
    """The same arguments to the same interpreter, which has more than one name in an environment."""

    def command(side: Side) -> tuple[Path, list[str]]:
        program, *arguments = side.project.seen(side.runs[name])["command_line"]
        return Path(program).resolve(), arguments

    ours, stock = pair.both(command)
    assert ours == stock


@pytest.mark.parametrize("name", ["imports", "imports from a copy"])
@pytest.mark.parametrize("fact", ["early", "late", "child here"])
def test_what_a_flow_can_import(name: str, fact: str, pair: Pair) -> None:
    ours, stock = pair.both(lambda side: side.project.seen(side.runs[name])[fact])
    assert ours == stock


@pytest.mark.parametrize("name", ["imports", "imports from a copy"])
def test_only_under_stock_a_child_elsewhere_finds_the_project(name: str, pair: Pair) -> None:
    """A documented difference: stock's workspace supervisor puts the project into PYTHONPATH."""
    ours, stock = pair.both(lambda side: side.project.seen(side.runs[name])["child elsewhere"])
    assert any(stock.values())
    assert not any(ours.values())


@pytest.mark.parametrize("name", FLOW_SEES)
def test_the_kind_of_directory(name: str, pair: Pair) -> None:
    """The project itself, or a fresh directory outside of it that is gone when the run is over."""

    def kind(side: Side) -> tuple[bool, bool, bool]:
        seen = side.project.seen(side.runs[name])
        cwd = Path(seen["cwd"])
        return cwd == FLOWS, "probe.py" in seen["files"], cwd.exists()

    wait_for(
        lambda: kind(pair.ours) == kind(pair.stock),
        timeout=20,
        description=lambda: "the same kind of directory: ours {}, stock {}".format(*pair.both(kind)),
    )


@pytest.mark.parametrize("name", ["ok", "fail"])
def test_what_the_worker_prints_of_the_flow(name: str, pair: Pair) -> None:
    """Every line of the flow's output that stock prints, we print."""

    def printed(side: Side) -> set[str]:
        run = side.project.api.flow_run(side.runs[name])
        wanted = re.compile(rf"Flow run '{re.escape(run['name'])}' - (.*)|(std(?:out|err) of {run['id']})")
        found = [wanted.search(line) for line in side.worker.output().splitlines()]
        texts = [match.group(1) or match.group(2) for match in found if match]
        return {side.neutral(side.runs[name], text.partition('", "')[0])[:60] for text in texts}

    wait_for(
        lambda: printed(pair.ours) >= printed(pair.stock),
        timeout=20,
        description=lambda: "the flow's output: ours {}, stock {}".format(*pair.both(printed)),
    )
