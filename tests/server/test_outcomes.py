"""How runs end: completed, failed, retried, suspended and resumed, crashed, impossible to start.

The runs of this module are created first and executed side by side by one daemon.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import Worker
from tests.support.project import FLOWS, Project
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Start:
    """A run to create: its flow, and what is special about it."""

    flow: str = "probe"
    variables: Json = field(default_factory=dict[str, object])
    parameters: Json = field(default_factory=dict[str, object])
    deployment: Json = field(default_factory=dict[str, object])


def starts(directory: Path) -> dict[str, Start]:
    return {
        "parameters": Start(parameters={"greeting": "grüß 'dich' {{ nobody }} $HOME"}),
        "fails": Start("fails"),
        "retries": Start("retries"),
        "suspends": Start("suspends"),
        "crashes": Start("crashes", parameters={"code": 7}),
        "copied": Start(deployment={"path": str(FLOWS)}),
        "working_dir": Start(
            variables={"working_dir": str(directory)}, deployment={"path": str(FLOWS), "pull_steps": None}
        ),
        "silent": Start(variables={"stream_output": False}),
        "custom": Start(
            variables={
                "command": f"{sys.executable} -X utf8 -m prefect.engine",
                "env": {"GREETING": "from the job"},
            }
        ),
        "no directory": Start(variables={"working_dir": str(directory / "missing")}),
        "no command": Start(variables={"command": "no-such-program --at all"}),
        "unbalanced": Start(variables={"command": 'sh -c "never closed'}),
        "does nothing": Start(variables={"command": "true"}),
        "no code": Start(deployment={"path": str(directory), "entrypoint": "nowhere.py:probe"}),
    }


@pytest.fixture(scope="module")
def working_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("working-dir")


@pytest.fixture(scope="module")
def runs(module_project: Project, worker: Worker, working_directory: Path) -> dict[str, str]:
    created: dict[str, str] = {}
    for number, (name, start) in enumerate(starts(working_directory).items()):
        deployment = dict(start.deployment)
        entrypoint = deployment.pop("entrypoint", None)
        deployment_id = module_project.deploy(
            start.flow,
            name=f"outcome-{number}",
            parameters=start.parameters,
            job_variables=start.variables,
            **deployment,
        )
        if entrypoint is not None:
            module_project.api.patch(f"/deployments/{deployment_id}", {"entrypoint": entrypoint})
        created[name] = module_project.api.create_flow_run(deployment_id)
    return created


def test_parameters_arrive(module_project: Project, runs: dict[str, str]) -> None:
    assert module_project.seen(runs["parameters"])["greeting"] == "grüß 'dich' {{ nobody }} $HOME"


def test_a_completed_run_has_the_usual_states(
    api: PrefectApi, module_project: Project, runs: dict[str, str]
) -> None:
    module_project.seen(runs["parameters"])
    names = [name for name in api.state_names(runs["parameters"]) if name not in {"Late", "Submitting"}]
    assert names == ["Scheduled", "Pending", "Running", "Completed"]


def test_a_failing_flow_is_failed_after_one_attempt(
    api: PrefectApi, module_project: Project, runs: dict[str, str]
) -> None:
    run = api.wait_for_state(runs["fails"], "FAILED")
    assert "this flow fails on purpose" in run["state"]["message"]
    assert run["run_count"] == 1
    assert len(module_project.facts(runs["fails"], "attempt")) == 1


def test_retries_happen_in_one_process(
    api: PrefectApi, module_project: Project, runs: dict[str, str]
) -> None:
    run = api.wait_for_state(runs["retries"], "COMPLETED")
    attempts = module_project.facts(runs["retries"], "attempt")
    assert sorted(attempt["run_count"] for attempt in attempts) == [1, 2]
    assert len({attempt["pid"] for attempt in attempts}) == 1
    assert run["run_count"] == 2
    assert "AwaitingRetry" in api.state_names(runs["retries"])


def test_a_suspended_run_ends_its_process_and_is_resumed_in_another(
    api: PrefectApi, module_project: Project, runs: dict[str, str], worker: Worker
) -> None:
    run_id = runs["suspends"]
    api.wait_for_state(run_id, "Suspended")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    api.resume(run_id)
    api.wait_for_state(run_id, "COMPLETED")
    attempts = {attempt["pid"] for attempt in module_project.facts(run_id, "attempt")}
    (resumed,) = module_project.facts(run_id, "resumed")
    assert len(attempts) == 2
    assert resumed["pid"] in attempts
    assert "Crashed" not in api.state_names(run_id)


def test_a_process_that_dies_crashes_its_run(
    api: PrefectApi, module_project: Project, runs: dict[str, str]
) -> None:
    run = api.wait_for_state(runs["crashes"], "CRASHED")
    assert run["state"]["message"].startswith("Process exited with status code: 7.")
    assert len(module_project.facts(runs["crashes"], "attempt")) == 1


def test_a_deployment_with_a_path_runs_in_a_fresh_copy(module_project: Project, runs: dict[str, str]) -> None:
    seen = module_project.seen(runs["copied"])
    assert "probe.py" in seen["files"]
    assert not Path(seen["cwd"]).is_relative_to(FLOWS)
    wait_for(lambda: not Path(seen["cwd"]).exists(), description="the copy ends with its run")


def test_working_dir_is_where_the_flow_runs(
    module_project: Project, runs: dict[str, str], working_directory: Path
) -> None:
    assert Path(module_project.seen(runs["working_dir"])["cwd"]) == working_directory
    assert working_directory.is_dir(), "the user's directory is not ours to remove"


def test_a_custom_command_is_what_runs(module_project: Project, runs: dict[str, str]) -> None:
    seen = module_project.seen(runs["custom"])
    assert seen["command_line"] == [sys.executable, "-X", "utf8", "-m", "prefect.engine"]
    assert seen["env"]["GREETING"] == "from the job"


def test_output_is_printed_unless_it_is_not_to_be(
    module_project: Project, runs: dict[str, str], worker: Worker
) -> None:
    loud, silent = runs["parameters"], runs["silent"]
    for run_id in (loud, silent):
        module_project.seen(run_id)
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    printed = worker.output()
    assert f"stdout of {loud}" in printed
    assert f"stderr of {loud}" in printed
    assert f"stdout of {silent}" not in printed
    assert f"stderr of {silent}" not in printed


@pytest.mark.parametrize(
    ("run", "names"),
    [
        ("no directory", "missing"),
        ("no command", "no-such-program"),
        ("unbalanced", "quotation"),
        ("does nothing", "status code: 0"),
        ("no code", "status code: 1"),
    ],
)
def test_what_cannot_start_is_crashed_with_the_reason(
    run: str, names: str, api: PrefectApi, runs: dict[str, str], module_project: Project
) -> None:
    message = api.wait_for_state(runs[run], "CRASHED")["state"]["message"]
    assert names in message
    assert not module_project.facts(runs[run], "seen")


def test_code_that_is_not_there_is_named_in_the_run_log(api: PrefectApi, runs: dict[str, str]) -> None:
    api.wait_for_state(runs["no code"], "CRASHED")
    api.wait_for_log(
        runs["no code"],
        lambda message: "nowhere.py" in message,
        description="the missing file's name in the run's log",
    )


def test_a_deleted_deployment_hurts_neither_its_running_run_nor_the_daemon(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    gate = module_project.gate()
    deployment_id = module_project.deploy("waits_for_file", parameters={"gate": str(gate)})
    running = api.create_flow_run(deployment_id)
    module_project.wait_for_fact(running, "waiting")
    api.delete_deployment(deployment_id)
    gate.touch()
    api.wait_for_state(running, "COMPLETED")
    assert worker.service.returncode is None


def test_a_run_of_a_deployment_deleted_before_the_start_is_cancelled(
    api: PrefectApi, pool: str, daemon: Callable[..., Worker], project_on: Callable[[str], Project]
) -> None:
    project = project_on(pool)
    deployment_id = project.deploy()
    # Deleting a deployment deletes the runs it scheduled; one that was retried meanwhile is kept.
    run_id = api.create_flow_run(deployment_id, state={"type": "COMPLETED"})
    api.delete_deployment(deployment_id)
    api.set_state(run_id, "SCHEDULED", name="AwaitingRetry")
    assert daemon(pool=pool, args=("--run-once",)).wait_exit() == 0
    run = api.flow_run(run_id)
    assert run["state_type"] == "CANCELLED", api.story(run_id)
    assert "no longer exists" in run["state"]["message"]
