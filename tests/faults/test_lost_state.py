"""The journal is gone, old, or tells of another boot; the server is away when the last word is due. Nothing is lost."""

import json
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.support import leaks
from tests.support.api import PrefectApi
from tests.support.bare_jobs import BareJobs
from tests.support.daemons import StartWorker, Worker
from tests.support.proxy import outage_proxy
from tests.support.proxy_modes import Mode
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = pytest.mark.timeout(300)

HASTY = {"PYTHONPATH": str(Path(__file__).parents[2])}


def kill(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait_exit()


def lose_journal(worker: Worker, *, directories: bool) -> None:
    state = worker.journal.parent
    for file in state.glob("journal.db*"):
        file.unlink()
    if directories:
        shutil.rmtree(state / "runs")


def running(api: PrefectApi, jobs: BareJobs, worker: Worker, *, gated: bool = True) -> tuple[str, int]:
    """A run in progress on the worker, known to the server as its own, and its pid."""
    run = jobs.run(gated=gated)
    jobs.wait_begun(run)
    api.wait_for_state(run, "RUNNING")
    api.wait_for_label(run, "prefect.worker.name")
    wait_for(lambda: api.flow_run(run)["infrastructure_pid"], description="its pid on the server")
    return run, int(worker.wait_for_event("flow_run.launched", flow_run_id=run)["pid"])


@pytest.mark.parametrize("directories", [False, True], ids=["journal", "whole state directory"])
def test_runs_of_a_lost_journal_are_found_on_the_server(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker, *, directories: bool
) -> None:
    first = daemon(pool=pool)
    living, _ = running(api, jobs, first)
    dead, pid = running(api, jobs, first)
    kill(first)
    os.kill(pid, signal.SIGKILL)
    lose_journal(first, directories=directories)
    second = daemon(pool=pool, successor_of=first, program="tests.support.hasty_daemon", env=HASTY)
    second.wait_for_event("flow_run.adopted", flow_run_id=living)
    assert api.wait_for_final(dead)["state_type"] == "CRASHED", api.story(dead)
    jobs.gate.touch()
    assert api.wait_for_final(living)["state_type"] == "COMPLETED", api.story(living)
    assert len(jobs.begun(living)) == len(jobs.begun(dead)) == 1


def test_runs_of_others_are_left_alone_by_a_daemon_without_a_journal(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    other = daemon(pool=pool)
    run, _ = running(api, jobs, other)
    hasty = daemon(pool=pool, program="tests.support.hasty_daemon", env=HASTY)
    polls = len(hasty.events("poll.done"))
    wait_for(lambda: len(hasty.events("poll.done")) > polls + 5, description="some looks of the other daemon")
    assert hasty.events("flow_run.found") == []
    assert api.flow_run(run)["state_type"] == "RUNNING"
    jobs.gate.touch()
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)


@pytest.mark.parametrize(
    "change",
    [{"boot": "another boot"}, {"process": [os.getpid(), 1.0]}],
    ids=["reboot", "reused pid"],
)
def test_a_process_of_before_is_not_mistaken(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker, change: dict[str, object]
) -> None:
    first = daemon(pool=pool)
    run, pid = running(api, jobs, first)
    kill(first)
    os.kill(pid, signal.SIGKILL)
    with closing(sqlite3.connect(first.journal)) as connection, connection:
        ((entry,),) = connection.execute("SELECT entry FROM attempts").fetchall()
        connection.execute("UPDATE attempts SET entry = ?", (json.dumps(json.loads(entry) | change),))
    daemon(pool=pool, successor_of=first)
    assert api.wait_for_final(run)["state_type"] == "CRASHED", api.story(run)
    assert psutil.Process().status() != psutil.STATUS_STOPPED, "we were not taken for the run"


def test_an_end_that_could_not_be_reported_is_reported_by_the_next_daemon(
    api: PrefectApi, prefect_server: PrefectServer, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    with outage_proxy(prefect_server.api_url) as proxy:
        through = {"PREFECT_API_URL": proxy.api_url}
        first = daemon(pool=pool, program="tests.support.hasty_daemon", env=through | HASTY)
        run, pid = running(api, jobs, first)
        proxy.switch(Mode.REFUSE)
        os.kill(pid, signal.SIGKILL)
        first.wait_for_event("flow_run.exited", flow_run_id=run)
        assert api.flow_run(run)["state_type"] == "RUNNING", "nobody could say otherwise yet"
        first.service.signal(signal.SIGTERM)
        first.wait_for_event("worker.draining")
        first.service.signal(signal.SIGTERM)
        assert first.wait_exit(timeout=120) == 0
        assert leaks.entries(first.journal), "what is unreported stays on record"
        proxy.switch(Mode.PASS)
        daemon(pool=pool, successor_of=first, env=through)
        assert api.wait_for_final(run)["state_type"] == "CRASHED", api.story(run)
        assert "-9" in api.flow_run(run)["state"]["message"], "with the exit that the first one saw"
