"""What `/metrics` says of runs that really ended in each way, read by Prometheus's own parser."""

import math
import os
import signal
from dataclasses import dataclass

import httpx
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.scrapes import OPENMETRICS, Scraped
from tests.support.server import free_port
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]


@dataclass(frozen=True, slots=True)
class Served:
    worker: Worker
    port: int

    def scrape(self) -> Scraped:
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/metrics", headers={"Accept": OPENMETRICS}, timeout=30
        )
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        return Scraped.openmetrics(answer.text)


@pytest.fixture(scope="module")
def served(module_daemon: StartWorker, module_project: Project) -> Served:
    port = free_port()
    worker = module_daemon(
        pool=module_project.pool,
        args=("--limit", "8", "--with-healthcheck"),
        env={"PREFECT_WORKER_WEBSERVER_PORT": str(port)},
    )
    return Served(worker, port)


def test_runs_are_counted_by_how_they_ended(api: PrefectApi, module_project: Project, served: Served) -> None:
    project = module_project
    before = served.scrape()
    assert before.value("headrace_exits_total", cause="completed") == 0
    assert before.value("headrace_slots_free") == 8
    completed = project.run()
    failed = project.run("fails")
    broken = project.run("crashes", parameters={"code": 7})
    killed, cancelled = project.run("sleeps"), project.run("sleeps")
    for run in (killed, cancelled):
        project.wait_for_fact(run, "sleeping")
        api.wait_for_state(run, "RUNNING")

    running = served.scrape()
    assert running.value("headrace_runs_in_flight") >= 1
    assert running.value("headrace_slots_free") <= 7
    assert running.value("headrace_run_memory_bytes", flow_run_id=cancelled) > 1 << 20
    assert running.value("headrace_runs_memory_bytes") >= running.value(
        "headrace_run_memory_bytes", flow_run_id=cancelled
    )

    os.kill(served.worker.wait_for_event("flow_run.launched", flow_run_id=killed)["pid"], signal.SIGKILL)
    api.cancel(cancelled)
    ends = {
        completed: "COMPLETED",
        failed: "FAILED",
        broken: "CRASHED",
        killed: "CRASHED",
        cancelled: "CANCELLED",
    }
    for run, state in ends.items():
        api.wait_for_state(run, state)
        served.worker.wait_for_event("flow_run.reported", flow_run_id=run)
    after = wait_for(
        lambda: seen if (seen := served.scrape()).value("headrace_runs_in_flight") == 0 else None,
        description="a scrape with nothing in flight",
    )
    exits = after.by("cause", "headrace_exits_total")
    assert {cause: count for cause, count in exits.items() if count} == {
        "completed": 1,
        "failed": 1,
        "error": 1,
        "killed": 1,
        "cancelled": 1,
    }
    reports = after.by("outcome", "headrace_reports_total")
    assert sum(reports.values()) == 5
    assert reports["crashed"] == 2
    assert after.value("headrace_claims_total", result="won") == 5
    assert sum(after.by("method", "headrace_starts_total").values()) == 5
    assert after.value("headrace_startup_seconds_count") == 5
    assert after.value("headrace_startup_seconds_sum") > 0
    assert after.value("headrace_lateness_seconds_count") == 5
    assert after.value("headrace_api_requests_total") > before.value("headrace_api_requests_total")
    assert after.value("headrace_server_reachable") == 1
    assert after.value("headrace_ready") == 1
    assert after.value("headrace_draining") == 0
    assert after.value("headrace_outage_seconds_total") == 0
    assert after.value("headrace_slots") == 8
    assert after.by("flow_run_id", "headrace_run_memory_bytes") == {}
    assert after.value("headrace_info", work_pool=project.pool, worker=served.worker.name) == 1


def test_prometheus_text_for_those_who_do_not_ask_for_openmetrics(served: Served) -> None:
    answer = httpx.get(f"http://127.0.0.1:{served.port}/metrics", timeout=30)
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "headrace_slots" in Scraped.text(answer.text).families


def test_health_is_on_loopback_unless_told_otherwise(served: Served) -> None:
    (event,) = served.worker.events("health.serving")
    assert event["host"] == "127.0.0.1"


def test_live_and_ready(served: Served) -> None:
    base = f"http://127.0.0.1:{served.port}"
    assert httpx.get(f"{base}/health").json() == {"message": "OK"}
    assert httpx.get(f"{base}/livez").json() == {"message": "OK"}
    ready = httpx.get(f"{base}/readyz")
    assert ready.status_code == 200
    answer = ready.json()
    assert answer["ready"] is True
    assert answer["draining"] is False
    assert answer["last_contact_seconds"] < 300
    assert httpx.get(f"{base}/elsewhere").status_code == 404


def test_a_server_that_is_away_is_an_outage_and_no_reason_to_restart(pool: str, daemon: StartWorker) -> None:
    port = free_port()
    worker = daemon(
        pool=pool,
        args=("--with-healthcheck",),
        env={
            "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        },
        wait=False,
    )
    worker.wait_for_event("api.unreachable")
    scraped = wait_for(
        lambda: (
            seen if (seen := Served(worker, port).scrape()).value("headrace_outage_seconds_total") else None
        ),
        description="an outage that lasts",
    )
    assert scraped.value("headrace_server_reachable") == 0
    assert scraped.value("headrace_ready") == 0
    assert scraped.value("headrace_slots") == math.inf
    assert scraped.value("headrace_last_contact_timestamp_seconds") == 0
    assert (
        0
        < scraped.value("headrace_api_errors_total", status="none")
        <= scraped.value("headrace_api_requests_total")
    )
    base = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{base}/livez").status_code == 200
    ready = httpx.get(f"{base}/readyz")
    assert (ready.status_code, ready.json()["message"]) == (503, "starting")


def test_a_draining_daemon_says_so(api: PrefectApi, project: Project, pool: str, daemon: StartWorker) -> None:
    port = free_port()
    worker = daemon(pool=pool, args=("--with-healthcheck",), env={"PREFECT_WORKER_WEBSERVER_PORT": str(port)})
    gate = project.gate()
    run = project.run("waits_for_file", parameters={"gate": str(gate)})
    api.wait_for_state(run, "RUNNING")
    worker.service.signal(signal.SIGTERM)
    worker.wait_for_event("worker.draining")
    scraped = Served(worker, port).scrape()
    assert scraped.value("headrace_draining") == 1
    assert scraped.value("headrace_ready") == 0
    gate.touch()
    assert worker.wait_exit() == 0


def test_a_daemon_that_nobody_watches_imports_nothing_for_it(
    module_daemon: StartWorker, module_project: Project
) -> None:
    """Python's own list of imports, from a daemon that polls once and ends."""
    worker = module_daemon(
        pool=module_project.pool, args=("--run-once",), env={"PYTHONPROFILEIMPORTTIME": "1"}
    )
    assert worker.wait_exit() == 0
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in worker.stderr().splitlines() if "import time:" in line
    }
    assert "worker.observers" in imported
    assert not {name for name in imported if name.startswith(("prometheus_client", "http.server", "shtab"))}
    assert "worker.exposition" not in imported
