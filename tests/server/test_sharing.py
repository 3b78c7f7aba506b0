"""Who runs what, when and how many at a time: several daemons, limits, queues, priorities, pauses."""

from collections import Counter
from datetime import datetime
from itertools import pairwise

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)

SHARED_RUNS = 20


def timestamp_of(api: PrefectApi, run_id: str, name: str) -> datetime:
    """When the run first came to the state of this name, on the server's clock."""
    found = next(state for state in api.states(run_id) if state["name"] == name)
    return datetime.fromisoformat(found["timestamp"])


def test_two_daemons_execute_each_run_of_a_pool_exactly_once(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    workers = [daemon(pool=pool, args=("--limit", "3")) for _ in range(2)]
    deployment = project.deploy("interval", parameters={"seconds": 0})
    runs = [api.create_flow_run(deployment) for _ in range(SHARED_RUNS)]
    finished = api.wait_for_all(runs, timeout=240)
    ledger = Counter(fact["run"] for fact in project.all_facts("interval"))
    assert ledger == Counter(runs)
    assert {run["run_count"] for run in finished} == {1}
    labels = [api.wait_for_label(run_id, "prefect.worker.name") for run_id in runs]
    assert set(labels) == {one.name for one in workers}
    for run_id in runs:
        assert api.state_names(run_id).count("Running") == 1


def test_a_limit_of_one_keeps_one_running_at_most(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    deployment = project.deploy("interval", parameters={"seconds": 0.2})
    runs = [api.create_flow_run(deployment) for _ in range(3)]
    daemon(pool=pool, args=("--limit", "1"))
    api.wait_for_all(runs)
    held = sorted((timestamp_of(api, run, "Pending"), timestamp_of(api, run, "Completed")) for run in runs)
    for (_, ended), (began, _) in pairwise(held):
        assert began >= ended, "a slot is free only when its run has ended"


def test_queues_are_served_by_priority(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    api.create_queue(pool, "urgent", priority=1)
    api.create_queue(pool, "whenever", priority=2)
    runs = {
        queue: api.create_flow_run(project.deploy("interval", name=queue, work_queue_name=queue))
        for queue in ("whenever", "urgent")
    }
    daemon(pool=pool, args=("--limit", "1", "--work-queue", "whenever", "--work-queue", "urgent"))
    api.wait_for_all(runs.values())
    assert timestamp_of(api, runs["urgent"], "Completed") <= timestamp_of(api, runs["whenever"], "Pending")


def test_run_once_takes_what_is_due_in_its_queue_and_ends(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    api.create_queue(pool, "ours")
    ours = [api.create_flow_run(project.deploy(name="ours", work_queue_name="ours")) for _ in range(2)]
    theirs = api.create_flow_run(project.deploy(name="theirs"))
    once = daemon(pool=pool, args=("--run-once", "--work-queue", "ours"))
    assert once.wait_exit(timeout=150) == 0
    assert {api.flow_run(run)["state_type"] for run in ours} == {"COMPLETED"}
    assert api.state_names(theirs)[-1] in {"Scheduled", "Late"}
    assert f"Worker '{once.name}' stopped!" in once.stdout()


def test_paused_pools_and_queues_hold_their_runs_back(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    api.create_queue(pool, "held")
    api.update_queue(pool, "held", is_paused=True)
    held = api.create_flow_run(project.deploy(name="held", work_queue_name="held"))
    # The pool is read with the heartbeat.
    worker = daemon(pool=pool, env={"PREFECT_WORKER_HEARTBEAT_SECONDS": "1"})
    project.seen(project.run(name="free"))
    assert "Pending" not in api.state_names(held), "its queue is paused"

    api.update_pool(pool, is_paused=True)
    worker.wait_for_event("work_pool.paused")
    api.update_queue(pool, "held", is_paused=False)
    polls = len(worker.events("poll.done"))
    wait_for(lambda: len(worker.events("poll.done")) >= polls + 2, description="two more polls")
    assert "Pending" not in api.state_names(held), "its pool is paused"

    api.update_pool(pool, is_paused=False)
    project.seen(held)


def test_a_misspelt_work_queue_is_named_and_works_once_it_exists(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    worker = daemon(pool=pool, args=("--work-queue", "reprots"))
    said = worker.wait_for_event("poll.refused")
    assert "reprots" in str(said)
    assert said["level"] == "warning"
    run_id = api.create_flow_run(project.deploy(work_queue_name="reprots"))
    project.seen(run_id)
    assert len(worker.events("poll.refused")) == 1, "said once, not with every poll"


def test_a_schedule_is_kept(api: PrefectApi, module_project: Project, worker: Worker) -> None:
    """Runs made by the server's scheduler, ahead of time, start when they are due and not before."""
    deployment = module_project.deploy(
        schedules=[{"schedule": {"cron": "* * * * * */15", "timezone": "UTC"}, "active": True}]
    )

    def completed() -> list[str]:
        runs = module_project.api.runs_of_deployment(deployment)
        return [run["id"] for run in runs if run["state_type"] == "COMPLETED"]

    wait_for(completed, timeout=120, interval=0.3, description="a completed run of the schedule")
    api.patch(f"/deployments/{deployment}", {"paused": True})
    for run_id in completed():
        run = api.flow_run(run_id)
        due = datetime.fromisoformat(run["expected_start_time"])
        # The server lets a run begin up to half a second early (PROTOCOL 2.6).
        assert (timestamp_of(api, run_id, "Running") - due).total_seconds() > -0.6
        assert run["auto_scheduled"]
    for run in api.runs_of_deployment(deployment):
        if run["state_type"] not in {"SCHEDULED", "COMPLETED"}:
            api.wait_for_final(run["id"])
    assert worker.service.returncode is None
