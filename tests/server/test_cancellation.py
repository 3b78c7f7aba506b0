"""Cancelling runs: while they run, before their process has begun, and with children that will not go."""

import sys
from pathlib import Path

import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_running_run_is_cancelled_with_its_hook_and_its_whole_tree(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    run_id = module_project.run("sleeps", parameters={"deaf": True})
    sleeping = module_project.wait_for_fact(run_id, "sleeping")
    api.wait_for_state(run_id, "RUNNING")
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    hook = module_project.out / f"{run_id}.cancelled.hook"
    assert hook.read_text() == "Cancelling"
    for pid in (sleeping["pid"], sleeping["grandchild"]):
        wait_for(lambda pid=pid: gone(pid), description=f"the end of process {pid}")
    assert "Crashed" not in api.state_names(run_id)
    assert not module_project.facts(run_id, "woke")


def test_a_run_whose_engine_has_not_begun_is_cancelled(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    program = (
        "import pathlib,signal,sys,time; signal.signal(signal.SIGTERM, signal.SIG_DFL);"
        f" pathlib.Path({str(module_project.out)!r}, 'pending').touch(); time.sleep(600)"
    )
    run_id = module_project.run(job_variables={"command": f'{sys.executable} -c "{program}"'})
    marker = Path(module_project.out, "pending")
    wait_for(marker.exists, timeout=60, description="the command's start")
    assert api.flow_run(run_id)["state_type"] == "PENDING"
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    assert "Crashed" not in api.state_names(run_id)
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)


def test_a_run_cancelled_before_anybody_took_it_is_never_started(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    api.update_pool(module_project.pool, is_paused=True)
    try:
        run_id = module_project.run()
        api.cancel(run_id)
        api.wait_for_state(run_id, "CANCELLED")
    finally:
        api.update_pool(module_project.pool, is_paused=False)
    after = module_project.run()
    module_project.seen(after)
    assert not module_project.facts(run_id, "seen")
    assert "Pending" not in api.state_names(run_id)
    assert worker.service.returncode is None
