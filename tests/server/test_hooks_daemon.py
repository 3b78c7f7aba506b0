"""Hooks under the daemon: each one runs exactly once, whoever of engine and daemon has to run it."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.hooked import PATIENCE, start, told_at_the_end
from tests.support.project import FLOWS, Project

pytestmark = [pytest.mark.timeout(400), pytest.mark.thorough]


@pytest.fixture(scope="module")
def hasty(module_daemon: StartWorker, module_project: Project) -> Worker:
    """A daemon that waits two seconds between SIGTERM and SIGKILL."""
    return module_daemon(pool=module_project.pool, env={"HEADRACE_KILL_GRACE_SECONDS": "2"})


@pytest.fixture
def project(module_project: Project, hasty: Worker) -> Project:
    assert hasty.service.returncode is None
    return module_project


def test_a_killed_flow_is_crashed_and_then_its_hook_runs(
    api: PrefectApi, project: Project, hasty: Worker
) -> None:
    run_id, pid = start(project, "hooked")
    os.kill(pid, signal.SIGKILL)
    run = api.wait_for_state(run_id, "CRASHED")
    (hook,) = told_at_the_end(project, hasty, run_id)
    assert hook == {"hook": "crashed", "state": "Crashed", "message": run["state"]["message"]}
    assert api.state_names(run_id).count("Crashed") == 1


@pytest.mark.parametrize("ignoring", [True, False], ids=["never acknowledged", "acknowledged"])
def test_a_deaf_flow_is_killed_and_its_hooks_run_before_it_is_cancelled(
    api: PrefectApi, project: Project, hasty: Worker, ignoring: bool
) -> None:
    run_id, _ = start(project, "deaf", parameters={"ignoring": ignoring})
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED", timeout=PATIENCE)
    hooks = told_at_the_end(project, hasty, run_id)
    assert [hook["hook"] for hook in hooks] == ["plain", "awaited", "broken", "last"]
    assert hooks[0]["state"] == "Cancelling"
    assert "Crashed" not in api.state_names(run_id)


def test_hooks_that_cannot_be_run_are_a_line_in_the_run_s_log(
    api: PrefectApi, project: Project, hasty: Worker, tmp_path: Path
) -> None:
    copy = shutil.copy(FLOWS / "hooked.py", tmp_path)
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    run_id, pid = start(project, "hooked", pull_steps=[step])
    Path(copy).unlink()
    os.kill(pid, signal.SIGKILL)
    api.wait_for_state(run_id, "CRASHED")
    api.wait_for_log(
        run_id,
        lambda line: "on_crashed hooks could not be run" in line,
        description="the reason",
        timeout=PATIENCE,
    )
    assert told_at_the_end(project, hasty, run_id) == []
