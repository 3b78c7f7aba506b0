"""What a daemon starts at once because it has heard of it, with a poll so rare that it cannot be the reason."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.proxy import Mode, outage_proxy
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300)]

RARELY = {"PREFECT_WORKER_QUERY_SECONDS": "3600"}


@pytest.fixture(scope="module")
def listener(module_daemon: StartWorker, module_project: Project) -> Worker:
    """A daemon that has polled once and hears of the rest."""
    worker = module_daemon(pool=module_project.pool, env=RARELY)
    worker.wait_for_event("push.connected")
    return worker


def woken(worker: Worker) -> bool:
    """Whether a run was found by a poll that was not due by the interval."""
    return any(one["started"] for one in worker.events("poll.done", ahead=False))


def test_a_run_made_by_hand_is_heard_of(module_project: Project, listener: Worker) -> None:
    """A poll that is due may find it first, but not again and again."""
    for _ in range(5):
        run_id = module_project.run()
        module_project.seen(run_id)
        listener.wait_for_event("flow_run.reported", flow_run_id=run_id)
        if woken(listener):
            break
    assert woken(listener)
    assert "prefect.flow-run.Scheduled" in [one["name"] for one in listener.events("push.event")]


def unasked(worker: Worker) -> int:
    """How many runs were started without a question for runs."""
    return sum(one["started"] for one in worker.events("poll.done", asked=False))


def test_one_run_at_a_time_is_claimed_without_asking_for_runs(
    api: PrefectApi, module_project: Project, listener: Worker
) -> None:
    """A poll that is due may find it first, but not again and again; that there is a deployment is news, too."""
    before, deployment = unasked(listener), module_project.deploy()
    for _ in range(6):
        run_id = api.create_flow_run(deployment)
        module_project.seen(run_id)
        listener.wait_for_event("flow_run.reported", flow_run_id=run_id)
        if unasked(listener) > before:
            break
    assert unasked(listener) > before


def test_where_a_queue_holds_runs_back_the_server_is_asked(
    api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    api.create_queue(project.pool, "narrow", concurrency_limit=1)
    api.create_queue(project.pool, "paused", is_paused=True)
    worker = daemon(pool=project.pool)
    worker.wait_for_event("push.connected")
    wait_for(lambda: worker.events("poll.done", found=0), timeout=60, description="the first polls are over")
    waits = project.run(work_queue_name="paused")
    run_id = project.run(work_queue_name="narrow")
    project.seen(run_id)
    assert "Pending" not in api.state_names(waits)
    api.update_queue(project.pool, "paused", is_paused=False)
    project.seen(waits)
    for one in (run_id, waits):
        worker.wait_for_event("flow_run.reported", flow_run_id=one)
    assert not unasked(worker), "in a pool that holds runs back the server gives them out"


def test_a_run_that_is_retried_by_hand_is_heard_of(
    api: PrefectApi, module_project: Project, listener: Worker
) -> None:
    run_id = module_project.run("fails")
    api.wait_for_state(run_id, "FAILED")
    listener.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert api.set_state(run_id, "SCHEDULED", name="AwaitingRetry")["status"] == "ACCEPT"
    wait_for(
        lambda: len(module_project.facts(run_id, "attempt")) == 2,
        timeout=120,
        description=lambda: f"the second attempt: {api.story(run_id)}",
    )
    wait_for(
        lambda: len(listener.events("flow_run.reported", flow_run_id=run_id)) == 2,
        timeout=60,
        description="its report",
    )


def test_many_runs_made_at_once_are_all_started(
    api: PrefectApi, module_project: Project, listener: Worker
) -> None:
    deployment = module_project.deploy()
    for _ in range(5):
        runs = [api.create_flow_run(deployment, name=f"burst-{uuid.uuid4().hex[:6]}") for _ in range(8)]
        for run_id in runs:
            module_project.seen(run_id)
            listener.wait_for_event("flow_run.reported", flow_run_id=run_id)
        if listener.events("arrivals.held"):
            break  # They may have come too slowly to be a stream.
    assert listener.events("arrivals.held"), "who makes them is let finish"


def test_a_run_made_for_later_is_heard_of_and_started_when_it_is_due(
    api: PrefectApi, module_project: Project, listener: Worker
) -> None:
    due = datetime.now(UTC) + timedelta(seconds=8)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    run_id = api.create_flow_run(module_project.deploy(), state=state)
    module_project.seen(run_id)
    started = datetime.fromisoformat(api.flow_run(run_id)["start_time"])
    assert started >= due - timedelta(seconds=0.5), "the server takes nothing that is earlier"
    listener.wait_for_event("flow_run.reported", flow_run_id=run_id)


def test_without_events_runs_are_found_by_polling(
    prefect_server: PrefectServer, project: Project, daemon: StartWorker
) -> None:
    with outage_proxy(prefect_server.api_url) as proxy:
        proxy.switch(Mode.NO_WEBSOCKET)
        worker = daemon(pool=project.pool, env={"PREFECT_API_URL": proxy.api_url})
        run_id = project.run()
        project.seen(run_id)
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
        assert not worker.events("push.connected")
        assert worker.stop() == 0
