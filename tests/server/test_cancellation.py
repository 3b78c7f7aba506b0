"""Cancelling runs: while they run, before their process has begun, and with children that will not go."""

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import FLOWS, Project
from tests.support.proxy import Mode, Request, outage_proxy
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)

GRACE = 2.0


class Impatient(NamedTuple):
    project: Project
    worker: Worker


def at(event: dict[str, Any]) -> float:
    """When it was logged, in seconds."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


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


@pytest.fixture(scope="module")
def impatient(
    module_daemon: StartWorker, api: PrefectApi, tmp_path_factory: pytest.TempPathFactory
) -> Impatient:
    """A daemon with one slot that gives a cancelled run `GRACE` seconds, and the project on its pool."""
    project = Project(api=api, pool=api.create_pool(), out=tmp_path_factory.mktemp("impatient"))
    worker = module_daemon(
        pool=project.pool, args=("--limit", "1"), env={"HEADRACE_KILL_GRACE_SECONDS": str(GRACE)}
    )
    return Impatient(project, worker)


def family_command(project: Project, *arguments: str) -> str:
    return shlex.join([sys.executable, str(FLOWS / "families.py"), str(project.out), *arguments])


def family(project: Project, run_id: str) -> list[int]:
    """Wait for the run's leader and the daemon it has left behind; their pids."""
    return [
        wait_for(
            lambda kind=kind: next(
                (int(path.read_text()) for path in project.out.glob(f"{run_id}.{kind}.*.pid")), None
            ),
            timeout=120,
            description=f"the {kind} of run {run_id}",
        )
        for kind in ("leader", "daemon")
    ]


def test_a_run_cancelled_while_it_is_prepared_is_not_started(
    prefect_server: PrefectServer, api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    def looks() -> list[Request]:
        """The questions about this very run; each begins when the one before is done with."""
        return [
            request
            for request in proxy.requests(path="/flow_runs/filter")
            if run_id.encode() in request.body and b'"offset":0' in request.body
        ]

    with outage_proxy(prefect_server.api_url) as proxy:
        worker = daemon(pool=project.pool, args=("--limit", "1"), env={"PREFECT_API_URL": proxy.api_url})
        proxy.switch(Mode.HANG, only="/deployments/")
        run_id = project.run()
        worker.wait_for_event("flow_run.claimed", flow_run_id=run_id)
        wait_for(lambda: proxy.requests(Mode.HANG), description="the preparation")
        api.cancel(run_id)
        before = len(looks())
        wait_for(lambda: len(looks()) >= before + 2, description="the daemon's look")
        proxy.switch(Mode.PASS)
        run = api.wait_for_state(run_id, "CANCELLED")
        assert "before execution started" in run["state"]["message"]
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
        assert not worker.events("flow_run.launched", flow_run_id=run_id)
        assert api.state_names(run_id) == ["Scheduled", "Pending", "Cancelling", "Cancelled"]
        project.seen(project.run())
        assert worker.stop() == 0


def test_a_run_cancelled_right_after_its_launch_is_cancelled(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    run_id = module_project.run("sleeps")
    launched = worker.wait_for_event("flow_run.launched", flow_run_id=run_id)
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert gone(launched["pid"])
    assert "Crashed" not in api.state_names(run_id)


@pytest.mark.parametrize("command", [None, f"{sys.executable} -m prefect.engine"], ids=["plain", "command"])
def test_a_daemon_that_a_flow_has_left_behind_ends_with_its_run(
    api: PrefectApi, module_project: Project, worker: Worker, command: str | None
) -> None:
    variables = {"command": command} if command is not None else {}
    run_id = module_project.run("daemonizes", file="families.py", job_variables=variables)
    pids = family(module_project, run_id)
    api.wait_for_state(run_id, "RUNNING")
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert [pid for pid in pids if not gone(pid)] == []
    assert "Crashed" not in api.state_names(run_id)


def test_a_command_is_called_cancelled_only_when_it_and_its_daemon_are_gone(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    run_id = module_project.run(job_variables={"command": family_command(module_project)})
    pids = family(module_project, run_id)
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    assert [pid for pid in pids if not gone(pid)] == []
    assert api.state_names(run_id) == ["Scheduled", "Pending", "Cancelling", "Cancelled"]


def test_a_process_that_is_deaf_to_sigterm_is_killed_after_its_grace(
    api: PrefectApi, impatient: Impatient
) -> None:
    project, worker = impatient
    run_id = project.run(job_variables={"command": family_command(project, "deaf")})
    pids = family(project, run_id)
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    assert [pid for pid in pids if not gone(pid)] == []
    told = worker.wait_for_event("flow_run.cancelling", flow_run_id=run_id)
    exited = worker.wait_for_event("flow_run.exited", flow_run_id=run_id)
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id, outcome="cancelled")
    assert "SIGKILL" in exited["exit"]
    # The grace begins a moment before the log line, with the asking.
    assert GRACE / 2 <= at(exited) - at(told) <= GRACE + 30


def test_a_run_deleted_while_it_is_being_cancelled_still_ends(api: PrefectApi, impatient: Impatient) -> None:
    project, worker = impatient
    run_id = project.run(job_variables={"command": family_command(project, "deaf")})
    pids = family(project, run_id)
    api.cancel(run_id)
    worker.wait_for_event("flow_run.cancelling", flow_run_id=run_id)
    api.call("DELETE", f"/flow_runs/{run_id}")
    reported = worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert (reported["outcome"], reported["reason"]) == ("settled", "the run was deleted")
    assert [pid for pid in pids if not gone(pid)] == []
    project.seen(project.run())


def test_a_run_whose_deployment_was_deleted_meanwhile_is_cancelled(
    api: PrefectApi, impatient: Impatient
) -> None:
    project, worker = impatient
    deployment = project.deploy("sleeps")
    run_id = api.create_flow_run(deployment)
    sleeping = project.wait_for_fact(run_id, "sleeping")
    api.wait_for_state(run_id, "RUNNING")
    api.delete_deployment(deployment)
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert gone(sleeping["pid"])
    project.seen(project.run())


def test_a_cancelled_run_of_another_daemon_is_left_alone(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    api.update_pool(module_project.pool, is_paused=True)
    try:
        theirs = module_project.run("sleeps")
        # Another daemon's claim, and its process.
        api.set_state(theirs, "PENDING")
        api.patch(f"/flow_runs/{theirs}", {"infrastructure_pid": "elsewhere:1"})
        api.set_state(theirs, "RUNNING")
    finally:
        api.update_pool(module_project.pool, is_paused=False)
    api.cancel(theirs)
    ours = module_project.run("sleeps")
    module_project.wait_for_fact(ours, "sleeping")
    api.wait_for_state(ours, "RUNNING")
    api.cancel(ours)
    api.wait_for_state(ours, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=ours)
    assert api.flow_run(theirs)["state_name"] == "Cancelling"
    assert not [event for event in worker.logs() if event.get("flow_run_id") == theirs]
    api.set_state(theirs, "CANCELLED")
