"""Job variables set through the API: pool default, deployment and flow run, as the UI and Terraform post them.

The flow itself proves the environment it saw. All runs are created first and executed side by side.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project

SECRET = "open-sesame-5f1d"
POOL_ENV = {"LAYER": "pool", "ONLY_POOL": "pool"}


@dataclass(frozen=True, slots=True)
class Case:
    """Job variables of two layers, and what the flow must then see; None means: not set."""

    deployment: Json = field(default_factory=dict[str, object])
    run: Json = field(default_factory=dict[str, object])
    sees: Mapping[str, str | None] = field(default_factory=dict[str, str | None])


# The layers of DESIGN part 5 as `layered` resolves them, on a pool whose template has `POOL_ENV` as default.
CASES = {
    "the pool's default": Case(sees=POOL_ENV),
    "a deployment as the Terraform provider posts it": Case(
        deployment={"env": {"LAYER": "deployment", "ONLY_DEPLOYMENT": "yes"}},
        sees={"LAYER": "deployment", "ONLY_POOL": "pool", "ONLY_DEPLOYMENT": "yes"},
    ),
    "a custom run as the UI posts it": Case(
        deployment={"env": {"LAYER": "deployment", "ONLY_DEPLOYMENT": "yes"}},
        run={"env": {"LAYER": "run", "ONLY_RUN": "1"}},
        sees={"LAYER": "run", "ONLY_POOL": "pool", "ONLY_DEPLOYMENT": "yes", "ONLY_RUN": "1"},
    ),
    "a dotted key of the run over the deployment's env": Case(
        deployment={"env": {"LAYER": "deployment"}}, run={"env.LAYER": "run"}, sees={"LAYER": "run"}
    ),
    "undeclared names of environment variables": Case(
        run={"MY_NEW_ENV_VAR": 42, "HELLO": "THERE", "lower_case": "x"},
        sees={"MY_NEW_ENV_VAR": "42", "HELLO": "THERE", "lower_case": None},
    ),
    "an undeclared name over the deployment's env": Case(
        deployment={"env": {"LAYER": "deployment"}}, run={"LAYER": "run"}, sees={"LAYER": "run"}
    ),
    "block and variable references": Case(
        deployment={
            "env": {
                "FROM_BLOCK": "{{ prefect.blocks.secret.e2e-token }}",
                "FROM_VARIABLE": "{{ prefect.variables.e2e_greeting }}",
                "EMBEDDED": "token={{ prefect.blocks.secret.e2e-token }}",
                "NO_SUCH": "[{{ prefect.variables.no_such_variable }}]",
            }
        },
        sees={
            "FROM_BLOCK": SECRET,
            "FROM_VARIABLE": "good morning",
            "EMBEDDED": f"token={SECRET}",
            "NO_SUCH": "[]",
        },
    ),
    "another layer wins over Prefect's own settings": Case(
        deployment={"env": {"PREFECT_LOGGING_LEVEL": "WARNING"}}, sees={"PREFECT_LOGGING_LEVEL": "WARNING"}
    ),
    "odd values": Case(
        run={"env": {"UMLAUT": "schön 日本 😀", "EMPTY": "", "QUOTES": "a 'b' \"c\"", "LINES": "1\n2"}},
        sees={"UMLAUT": "schön 日本 😀", "EMPTY": "", "QUOTES": "a 'b' \"c\"", "LINES": "1\n2"},
    ),
}


@pytest.fixture(scope="module")
def layered_project(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Project:
    api.create_secret("e2e-token", SECRET)
    api.create_variable("e2e_greeting", "good morning")
    pool = api.create_pool(template=api.template(defaults={"env": POOL_ENV}))
    return Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def layered_worker(module_daemon: StartWorker, layered_project: Project) -> Worker:
    return module_daemon(pool=layered_project.pool, args=("--limit", "4"))


@pytest.fixture(scope="module")
def runs(layered_project: Project, layered_worker: Worker) -> Iterator[dict[str, str]]:
    """All cases' runs, created before the first is waited for, and ended before the module is."""
    created = {
        name: layered_project.run(
            name=f"jv-{number}",
            job_variables=case.deployment,
            run={"job_variables": case.run},
            parameters={"greeting": name},
        )
        for number, (name, case) in enumerate(CASES.items())
    }
    layered_project.api.wait_for_all(created.values())
    yield created
    assert layered_worker.stop() == 0


@pytest.mark.parametrize("name", CASES)
def test_the_flow_sees(name: str, layered_project: Project, runs: dict[str, str]) -> None:
    seen = layered_project.seen(runs[name])
    expected = CASES[name].sees
    assert {variable: seen["env"].get(variable) for variable in expected} == expected
    assert seen["greeting"] == name
    assert len(layered_project.facts(runs[name], "seen")) == 1


def test_the_run_log_says_where_the_result_differs_from_stock(api: PrefectApi, runs: dict[str, str]) -> None:
    undeclared = api.wait_for_log(
        runs["undeclared names of environment variables"],
        lambda message: "lower_case" in message,
        description="a warning about the undeclared variable",
    )
    assert "env" in undeclared
    api.wait_for_log(
        runs["a dotted key of the run over the deployment's env"],
        lambda message: "LAYER" in message,
        description="a line saying that the flow run's value was taken",
    )
    worker_lines = api.log_messages(runs["the pool's default"], logger="prefect.flow_runs.worker")
    assert not [line for line in worker_lines if "LAYER" in line]


def test_a_secret_reaches_the_flow_and_no_log(
    api: PrefectApi, layered_worker: Worker, runs: dict[str, str]
) -> None:
    run_id = runs["block and variable references"]
    assert SECRET not in layered_worker.output()
    assert all(SECRET not in message for message in api.log_messages(run_id))
    kept = [path for path in layered_worker.home.rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def unresolvable(layered_project: Project, layered_worker: Worker, runs: dict[str, str]) -> dict[str, str]:
    cases: dict[str, Json] = {
        "nope": {"env": {"A": "{{ prefect.blocks.secret.nope }}"}},
        "command": {"command": {"not": "a string"}},
        "env": {"env": {"$ref": "x"}},
    }
    created: dict[str, str] = {}
    layered_project.api.update_pool(layered_project.pool, is_paused=True)
    for name, variables in cases.items():
        # The server validates what a deployment and a run are created with, but not what a deployment is
        # changed to (PROTOCOL 3.5): this is how a bad value reaches a worker.
        deployment = layered_project.deploy(name=f"unresolvable-{name}")
        created[name] = layered_project.api.create_flow_run(deployment)
        layered_project.api.patch(f"/deployments/{deployment}", {"job_variables": variables})
    layered_project.api.update_pool(layered_project.pool, is_paused=False)
    return created


@pytest.mark.parametrize("named", ["nope", "command", "env"])
def test_what_cannot_be_resolved_crashes_its_run_with_the_reason(
    named: str, api: PrefectApi, unresolvable: dict[str, str], layered_project: Project
) -> None:
    run = api.wait_for_state(unresolvable[named], "CRASHED")
    message = run["state"]["message"]
    assert message.startswith("Failed to submit flow run to infrastructure: ")
    assert named in message
    assert api.state_names(unresolvable[named])[:2] == ["Scheduled", "Pending"]
    assert not layered_project.facts(unresolvable[named], "seen")
