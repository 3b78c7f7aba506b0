"""Hooks that an engine runs itself, because it is told to cancel and is given the time to."""

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.hooked import PATIENCE, start, told_at_the_end
from tests.support.project import Project

pytestmark = [pytest.mark.timeout(400), pytest.mark.thorough]


@pytest.fixture(scope="module")
def patient(module_daemon: StartWorker, module_project: Project) -> Worker:
    """A daemon that gives an engine all the time it needs, however slow the server is."""
    return module_daemon(pool=module_project.pool, env={"HEADRACE_KILL_GRACE_SECONDS": f"{PATIENCE:g}"})


@pytest.mark.parametrize("flow", ["hooked", "hooked_async"])
def test_a_flow_that_obeys_runs_its_hooks_itself(
    api: PrefectApi, module_project: Project, patient: Worker, flow: str
) -> None:
    run_id, _ = start(module_project, flow)
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED", timeout=PATIENCE)
    hooks = told_at_the_end(module_project, patient, run_id)
    assert [hook["hook"] for hook in hooks] == ["plain", "awaited", "broken", "last"]
    assert "Crashed" not in api.state_names(run_id)
