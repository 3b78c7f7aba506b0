"""Stopping the daemon while flows run: they finish, or are ended in time and reported, or go on without it."""

import os
import signal

import httpx
import pytest

from tests.support import leaks
from tests.support.api import PrefectApi
from tests.support.bare_jobs import BareJobs
from tests.support.daemons import StartWorker
from tests.support.project import Project
from tests.support.server import free_port
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)


def answers(port: int) -> dict[str, tuple[int, str]]:
    """What the daemon says of its health and its readiness."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        found = {route: client.get(route) for route in ("/health", "/readyz")}
    return {route: (answer.status_code, answer.json()["message"]) for route, answer in found.items()}


def test_heartbeats_and_cancellation_go_on_while_it_drains(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    port = free_port()
    settings = {"PREFECT_WORKER_HEARTBEAT_SECONDS": "1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    worker = daemon(pool=pool, args=("--with-healthcheck",), env=settings)
    assert answers(port) == {"/health": (200, "OK"), "/readyz": (200, "OK")}
    run = project.run("sleeps")
    project.wait_for_fact(run, "sleeping")
    api.wait_for_state(run, "RUNNING")
    worker.service.signal(signal.SIGTERM)
    worker.wait_for_event("worker.draining")
    (before,) = [one["last_heartbeat_time"] for one in api.workers(pool) if one["name"] == worker.name]
    wait_for(
        lambda: any(one["last_heartbeat_time"] > before for one in api.workers(pool)),
        description="a heartbeat of the draining daemon",
    )
    assert answers(port) == {"/health": (200, "OK"), "/readyz": (503, "draining")}
    api.cancel(run)
    assert worker.wait_exit() == 0
    assert api.flow_run(run)["state_type"] == "CANCELLED", api.story(run)


def test_the_drain_timeout_ends_runs_and_reports_them(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    worker = daemon(pool=pool, args=("--drain-timeout", "1s"))
    run = jobs.run(gated=True)
    jobs.wait_begun(run)
    api.wait_for_state(run, "RUNNING")
    assert worker.stop() == 0
    crashed = api.flow_run(run)
    assert crashed["state_type"] == "CRASHED", api.story(run)
    assert "told to stop" in crashed["state"]["message"]
    assert leaks.entries(worker.journal) == []


@pytest.mark.parametrize("flow", ["engine", "bare"])
def test_rescheduled_runs_start_again_elsewhere_once_they_are_dead_here(
    api: PrefectApi, project: Project, jobs: BareJobs, pool: str, daemon: StartWorker, flow: str
) -> None:
    gate = project.gate()
    if flow == "engine":
        run = project.run("waits_for_file", parameters={"gate": str(gate)})
    else:
        run = jobs.run(gated=True)
    worker = daemon(pool=pool, args=("--drain-timeout", "0", "--on-timeout", "reschedule"))
    api.wait_for_state(run, "RUNNING")
    if flow == "engine":
        project.wait_for_fact(run, "waiting")
    pid = worker.wait_for_event("flow_run.launched", flow_run_id=run)["pid"]
    assert worker.stop() == 0
    again = api.flow_run(run)
    assert (again["state_type"], again["state_name"]) == ("SCHEDULED", "AwaitingRetry"), api.story(run)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (gate if flow == "engine" else jobs.gate).touch()
    daemon(pool=pool)
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)
    assert "Crashed" not in api.state_names(run)


def test_adopted_runs_are_rescheduled_too(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    gate = project.gate()
    run = project.run("waits_for_file", parameters={"gate": str(gate)})
    first = daemon(pool=pool, args=("--detach-on-stop",))
    project.wait_for_fact(run, "waiting")
    api.wait_for_state(run, "RUNNING")
    assert first.stop() == 0
    second = daemon(
        pool=pool, successor_of=first, args=("--drain-timeout", "0", "--on-timeout", "reschedule")
    )
    second.wait_for_event("flow_run.adopted")
    assert second.stop() == 0
    assert api.flow_run(run)["state_name"] == "AwaitingRetry", api.story(run)
