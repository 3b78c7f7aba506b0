"""What a run shows of its worker afterwards: labels, pid, events, log lines; and the worker in its pool."""

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.wait import wait_for

WORKER_LOGGER = "prefect.flow_runs.worker"


@pytest.fixture(scope="module")
def run(module_project: Project, worker: Worker) -> Json:
    """One completed run with two tags."""
    run_id = module_project.run(
        name="traced", tags=["nightly", "red"], job_variables={"labels": {"team": "blue"}}
    )
    module_project.seen(run_id)
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    return module_project.api.flow_run(run_id)


def test_labels_name_the_worker_and_its_pool(api: PrefectApi, run: Json, worker: Worker) -> None:
    expected = {
        "prefect.worker.name": worker.name,
        "prefect.worker.type": "process",
        "prefect.work-pool.name": worker.pool,
        "prefect.work-pool.id": api.pool(worker.pool)["id"],
    }
    api.wait_for_label(run["id"], "prefect.worker.name")
    assert expected.items() <= api.flow_run(run["id"])["labels"].items()


def test_the_infrastructure_pid_is_the_process_of_a_run_that_goes_on(
    api: PrefectApi, module_project: Project, worker: Worker
) -> None:
    run_id = module_project.run("sleeps")
    pid = module_project.wait_for_fact(run_id, "sleeping")["pid"]
    noted = wait_for(lambda: api.flow_run(run_id)["infrastructure_pid"], description="the run's pid")
    assert noted.rpartition(":")[2] == str(pid)
    api.wait_for_label(run_id, "prefect.worker.name")
    api.cancel(run_id)
    api.wait_for_state(run_id, "CANCELLED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)


def test_the_worker_lines_are_in_the_run_log(api: PrefectApi, run: Json, worker: Worker) -> None:
    for line in (
        f"Worker '{worker.name}' submitting flow run '{run['id']}'",
        f"Flow run '{run['name']}' submitted to infrastructure",
    ):
        api.wait_for_log(run["id"], line.__eq__, description=line)
    names = {log["name"] for log in api.logs(run["id"])}
    assert {WORKER_LOGGER, "prefect.flow_runs"} <= names


def test_the_worker_events(api: PrefectApi, run: Json, worker: Worker, module_project: Project) -> None:
    submitted = api.wait_for_event(run["id"], "prefect.worker.submitted-flow-run")
    executed = api.wait_for_event(run["id"], "prefect.worker.executed-flow-run")
    assert executed["follows"] == submitted["id"]
    for event in (submitted, executed):
        assert event["resource"]["prefect.resource.id"] == f"prefect.worker.process.{worker.name}"
        assert event["resource"]["prefect.resource.name"] == worker.name
        assert event["resource"]["prefect.worker-type"] == "process"
        roles = {related["prefect.resource.role"] for related in event["related"]}
        assert {"deployment", "flow", "flow-run", "tag", "work-pool"} <= roles
        tags = {
            related["prefect.resource.id"]
            for related in event["related"]
            if related["prefect.resource.role"] == "tag"
        }
        assert {"prefect.tag.nightly", "prefect.tag.red"} <= tags
    (flow_run,) = [one for one in executed["related"] if one["prefect.resource.role"] == "flow-run"]
    assert flow_run["prefect.infrastructure.status-code"] == "0"
    pid = module_project.seen(run["id"])["pid"]
    assert flow_run["prefect.infrastructure.identifier"].rpartition(":")[2] == str(pid)


def test_the_worker_is_online_in_its_pool(api: PrefectApi, run: Json, worker: Worker) -> None:
    (shown,) = [one for one in api.workers(worker.pool) if one["name"] == worker.name]
    assert shown["status"] == "ONLINE"
    assert api.pool(worker.pool)["status"] == "READY"
    assert api.deployment(run["deployment_id"])["status"] == "READY"


def test_the_daemon_tells_the_story_of_the_run(run: Json, worker: Worker) -> None:
    told = [event["event"] for event in worker.logs() if event.get("flow_run_id") == run["id"]]
    story = [name for name in told if name.startswith("flow_run.")]
    assert [name for name in story if name in STORY] == STORY


STORY = ["flow_run.claimed", "flow_run.launched", "flow_run.exited", "flow_run.reported"]
