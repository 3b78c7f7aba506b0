"""Runs start when they are due, in the server's order, no more at once than may, and a slot is handed on at once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300)]


def later(seconds: float) -> tuple[datetime, dict[str, object]]:
    due = datetime.now(UTC) + timedelta(seconds=seconds)
    return due, {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}


def time_of(api: PrefectApi, run_id: str, name: str) -> datetime:
    """When the run first entered the state of this name."""
    states = api.states(run_id)
    return next(datetime.fromisoformat(one["timestamp"]) for one in states if one["name"] == name)


def wait_reported(worker: Worker, *runs: str, timeout: float = 120) -> None:
    for run_id in runs:
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id, timeout=timeout)


@pytest.mark.long
def test_with_no_prefetch_a_run_is_not_claimed_before_it_is_due_and_others_are(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    worker = daemon(pool=project.pool, args=("--prefetch-seconds", "0"))
    deployment = project.deploy()
    due, state = later(15)
    waiting = api.create_flow_run(deployment, state=state)
    other = api.create_flow_run(deployment)
    wait_reported(worker, other, waiting)
    assert time_of(api, waiting, "Pending") >= due
    assert time_of(api, other, "Pending") < due
    assert worker.stop() == 0


def test_a_schedule_is_kept(api: PrefectApi, project: Project, daemon: StartWorker) -> None:
    worker = daemon(pool=project.pool)
    schedule = {"schedule": {"interval": 5}, "active": True}
    deployment = project.deploy(schedules=[schedule])

    def done() -> list[dict[str, object]]:
        return [one for one in api.runs_of_deployment(deployment) if one["state_type"] == "COMPLETED"]

    wait_for(lambda: len(done()) >= 2, timeout=120, description="two runs of the schedule")
    api.patch(f"/deployments/{deployment}", {"paused": True})
    for one in done():
        due = datetime.fromisoformat(str(one["expected_start_time"]))
        assert datetime.fromisoformat(str(one["start_time"])) >= due - timedelta(seconds=0.5)
        assert time_of(api, str(one["id"]), "Pending") > due - timedelta(seconds=10)
    api.delete_deployment(deployment)
    assert worker.stop() == 0


def test_runs_of_an_urgent_queue_go_first_and_those_not_due_do_not_push_out_others(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    """The pool lets one run in at a time, so what the server says of the next minute is the urgent run that is not due."""
    api.update_pool(project.pool, concurrency_limit=1)
    api.create_queue(project.pool, "urgent", priority=1)
    api.create_queue(project.pool, "patient", priority=2)
    urgent = project.deploy(work_queue_name="urgent")
    patient = project.deploy(work_queue_name="patient")
    due, state = later(25)
    waiting = api.create_flow_run(urgent, state=state)
    late = api.create_flow_run(patient)
    first = api.create_flow_run(urgent)
    worker = daemon(pool=project.pool, args=("--limit", "1"), env={"PREFECT_WORKER_QUERY_SECONDS": "30"})
    wait_reported(worker, first, late, waiting)
    assert time_of(api, first, "Pending") < time_of(api, late, "Pending") < time_of(api, waiting, "Pending")
    assert time_of(api, late, "Pending") < due
    assert worker.stop() == 0


def test_no_more_runs_start_at_once_than_may_and_all_of_a_burst_complete(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    deployment = project.deploy()
    runs = [api.create_flow_run(deployment) for _ in range(10)]
    worker = daemon(pool=project.pool, args=("--max-starting", "2"))
    wait_reported(worker, *runs)
    assert {api.flow_run(run_id)["state_type"] for run_id in runs} == {"COMPLETED"}
    starting = [one["starting"] for one in worker.events("poll.done") if "starting" in one]
    assert max(starting) == 2
    going: set[str] = set()
    for one in worker.logs():
        if one["event"] == "flow_run.claimed":
            going.add(one["flow_run_id"])
        elif one["event"] in {"flow_run.started", "flow_run.concluded", "flow_run.exited"}:
            # That it has ended can be heard before its engine's greeting is read.
            going.discard(one["flow_run_id"])
        assert len(going) <= 2
    assert worker.stop() == 0


def test_run_once_starts_all_that_is_due_however_few_may_start_at_once(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    deployment = project.deploy()
    runs = [api.create_flow_run(deployment) for _ in range(4)]
    worker = daemon(pool=project.pool, args=("--run-once", "--max-starting", "1"))
    assert worker.wait_exit(timeout=240) == 0
    assert {api.flow_run(run_id)["state_type"] for run_id in runs} == {"COMPLETED"}


def test_a_slot_is_handed_on_when_the_end_is_known(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    """A process that stays is not ended, and takes its slot again after a while."""
    gate = project.gate()
    worker = daemon(pool=project.pool, args=("--limit", "1"))
    lingering = project.run("lingers", file="lingering.py", parameters={"gate": str(gate)})
    other = project.run()
    wait_reported(worker, other)
    (attempt,) = project.facts(lingering, "attempt")
    assert psutil.pid_exists(attempt["pid"]), "the first process still lives"
    assert not worker.events("flow_run.exited", flow_run_id=lingering)
    worker.wait_for_event("flow_run.lingering", flow_run_id=lingering)
    third = project.run()
    polls = len(worker.events("poll.done"))
    wait_for(
        lambda: len(worker.events("poll.done")) >= polls + 2, timeout=60, description="polls without room"
    )
    assert api.flow_run(third)["state_type"] == "SCHEDULED"
    Path(gate).touch()
    wait_reported(worker, lingering, third)
    assert api.flow_run(lingering)["state_type"] == "COMPLETED"
    assert worker.stop() == 0


@pytest.mark.long
def test_a_run_that_is_retried_waits_for_its_own_process(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    gate = project.gate()
    worker = daemon(pool=project.pool, args=("--limit", "2"))
    lingering = project.run("lingers", file="lingering.py", parameters={"gate": str(gate)})
    api.wait_for_state(lingering, "COMPLETED")
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    assert api.post(f"/flow_runs/{lingering}/set_state", again)["status"] == "ACCEPT"
    worker.wait_for_event(
        "flow_run.left", flow_run_id=lingering, reason="its previous attempt is still ending here"
    )
    assert len(project.facts(lingering, "attempt")) == 1
    Path(gate).touch()
    wait_for(
        lambda: len(worker.events("flow_run.reported", flow_run_id=lingering)) == 2,
        timeout=120,
        description=lambda: f"both reports: {api.story(lingering)}",
    )
    assert len(project.facts(lingering, "attempt")) == 2
    assert api.flow_run(lingering)["state_type"] == "COMPLETED"
    assert worker.stop() == 0
