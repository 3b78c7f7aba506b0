"""A daemon is killed, at any moment: the next one adopts, reports or gives back, and every run ends once."""

import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support import leaks
from tests.support.api import PrefectApi
from tests.support.bare_jobs import BareJobs
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.wait import wait_for
from worker.processes.process_table import Marker, carries
from worker.runs.journal_entry import Phase

pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).parents[2]
# Each write of an attempt that goes well, in order; the last one is its entry's removal.
WRITES = [*Phase, "settled"]


def crash(write: int, when: str, signals: str = "SIGKILL") -> dict[str, str]:
    """What makes the crashing daemon crash there."""
    return {
        "CRASH_AT": str(write),
        "CRASH_WHEN": when,
        "CRASH_SIGNALS": signals,
        "PYTHONPATH": str(REPOSITORY),
    }


def killed(worker: Worker) -> Worker:
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait_exit() == -signal.SIGKILL
    return worker


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(1, len(WRITES) + 1), ids=WRITES)
def test_killed_at_any_write_of_the_journal(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker, write: int, when: str
) -> None:
    run = jobs.run()
    first = daemon(
        pool=pool,
        program="tests.support.crashing_daemon",
        env=crash(write, when),
        wait=False,
    )
    assert first.wait_exit() == -signal.SIGKILL
    daemon(pool=pool, successor_of=first)
    ended = api.wait_for_final(run)
    assert ended["state_type"] == "COMPLETED", api.story(run)
    assert len(jobs.begun(run)) == 1, "started once, by whichever daemon"
    assert Counter(name for name in api.state_names(run) if name == "Completed") == {"Completed": 1}


@pytest.mark.parametrize(
    ("write", "when"),
    [(2, "before"), (2, "after"), (3, "before"), (3, "after")],
    ids=str,
)
def test_killed_at_any_write_of_a_warm_start(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker, write: int, when: str
) -> None:
    run = project.run()
    first = daemon(pool=pool, program="tests.support.crashing_daemon", env=crash(write, when), wait=False)
    assert first.wait_exit() == -signal.SIGKILL
    launched = first.events("flow_run.launched")
    assert [event["start_method"] for event in launched] == ["warm"] * (write == WRITES.index("launched") + 1)
    daemon(pool=pool, successor_of=first)
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)
    assert len(project.facts(run, "seen")) == 1, "started once, by whichever daemon"


def test_killed_while_a_forked_process_waits_for_the_word(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    run = project.run()
    first = daemon(pool=pool, program="tests.support.crashing_daemon", env=crash(0, "held"), wait=False)
    assert first.wait_exit() == -signal.SIGKILL
    second = daemon(pool=pool, successor_of=first)
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)
    assert len(project.facts(run, "seen")) == 1
    assert second.events("flow_run.given_back"), "nothing had begun"
    assert "Crashed" not in api.state_names(run)


@pytest.mark.parametrize("write", range(1, len(WRITES) + 1), ids=WRITES)
def test_told_to_stop_at_any_write_of_the_journal(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker, write: int
) -> None:
    run = jobs.run()
    worker = daemon(
        pool=pool, program="tests.support.crashing_daemon", env=crash(write, "before", "SIGTERM"), wait=False
    )
    assert worker.wait_exit() == 0
    assert api.flow_run(run)["state_type"] == "COMPLETED", api.story(run)
    assert len(jobs.begun(run)) == 1
    assert leaks.entries(worker.journal) == []


@pytest.mark.parametrize("write", range(1, 4), ids=WRITES[:3])
def test_told_to_stop_at_once_at_any_write_of_the_journal(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker, write: int
) -> None:
    run = jobs.run(gated=True)
    worker = daemon(
        pool=pool,
        program="tests.support.crashing_daemon",
        env=crash(write, "before", "SIGTERM SIGINT"),
        wait=False,
    )
    assert worker.wait_exit() == 0
    state = api.flow_run(run)["state_type"]
    launched = worker.events("flow_run.launched")
    assert state == ("CRASHED" if launched else "SCHEDULED"), api.story(run)
    # Nothing is waited for between the record that it is launching and its start: a signal amid them can be a moment late.
    if write != list(Phase).index(Phase.LAUNCHING) + 1:
        assert bool(launched) is (write == len(Phase) - 1), "started only if it was under way already"
    assert leaks.entries(worker.journal) == []


def test_living_runs_are_adopted_and_their_ends_reported(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    well, badly = jobs.run(gated=True), jobs.run(gated=True)
    first = daemon(pool=pool)
    for run in (well, badly):
        jobs.wait_begun(run)
        api.wait_for_state(run, "RUNNING")
    killed(first)
    second = daemon(pool=pool, successor_of=first, args=("--limit", "2"))
    pids = {event["flow_run_id"]: event["pid"] for event in second.events("flow_run.adopted")}
    assert pids.keys() == {well, badly}
    story = [event["event"] for event in second.logs()]
    assert story.index("interpreter.found") > max(
        at for at, event in enumerate(story) if event == "flow_run.adopted"
    )
    os.killpg(pids[badly], signal.SIGKILL)
    crashed = api.wait_for_final(badly)
    assert crashed["state_type"] == "CRASHED", api.story(badly)
    other = jobs.run(gated=True)
    jobs.wait_begun(other)  # the slot of the crashed one is free again
    jobs.gate.touch()
    for run in (well, other):
        assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)


def test_what_ended_while_nobody_looked_is_reported(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    run = project.run("sleeps", parameters={"deaf": True})
    first = daemon(pool=pool)
    fact = project.wait_for_fact(run, "sleeping")
    api.wait_for_state(run, "RUNNING")
    killed(first)
    os.kill(fact["pid"], signal.SIGKILL)
    daemon(pool=pool, successor_of=first)
    assert api.wait_for_final(run)["state_type"] == "CRASHED", api.story(run)
    wait_for(
        lambda: not psutil.pid_exists(fact["grandchild"]), description="its deaf grandchild ends with it"
    )


def test_an_adopted_run_can_be_cancelled(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    run = project.run("sleeps")
    first = daemon(pool=pool)
    project.wait_for_fact(run, "sleeping")
    api.wait_for_state(run, "RUNNING")
    killed(first)
    second = daemon(pool=pool, successor_of=first)
    second.wait_for_event("flow_run.adopted")
    api.cancel(run)
    # Its engine has lost the channel on which it would be told why it is ended, and first takes it for a crash.
    api.wait_for_state(run, "CANCELLED")


def test_a_process_that_hides_its_mark_is_adopted_by_its_pid(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker
) -> None:
    run = project.run(job_variables={"command": "env -i sleep 600"})
    first = daemon(pool=pool)
    pid = first.wait_for_event("flow_run.launched", flow_run_id=run)["pid"]
    wait_for(
        lambda: not carries(pid, Marker("PREFECT__FLOW_RUN_ID", run)), description="env has replaced itself"
    )
    wait_for(lambda: '"launched"' in "".join(leaks.entries(first.journal)), description="its pid on record")
    killed(first)
    second = daemon(pool=pool, successor_of=first)
    assert second.wait_for_event("flow_run.adopted", flow_run_id=run)["pid"] == pid
    api.cancel(run)
    assert api.wait_for_final(run)["state_type"] == "CANCELLED", api.story(run)
    assert not psutil.pid_exists(pid)


def test_detached_runs_go_on_and_are_adopted(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    run = jobs.run(gated=True)
    first = daemon(pool=pool, args=("--detach-on-stop",))
    jobs.wait_begun(run)
    api.wait_for_state(run, "RUNNING")
    assert first.stop() == 0
    assert leaks.entries(first.journal), "it is on record for the next daemon"
    second = daemon(pool=pool, successor_of=first)
    second.wait_for_event("flow_run.adopted", flow_run_id=run)
    jobs.gate.touch()
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)
    assert len(jobs.begun(run)) == 1


def test_a_damaged_journal_is_set_aside(
    api: PrefectApi, jobs: BareJobs, pool: str, daemon: StartWorker
) -> None:
    first = daemon(pool=pool)
    assert first.stop() == 0
    first.journal.write_bytes(b"this is no database" * 1000)
    second = daemon(pool=pool, successor_of=first)
    assert second.events("journal.damaged")
    assert list(first.journal.parent.glob("journal.db.damaged-*"))
    run = jobs.run()
    assert api.wait_for_final(run)["state_type"] == "COMPLETED", api.story(run)


def test_one_daemon_per_state_directory(pool: str, daemon: StartWorker) -> None:
    first = daemon(pool=pool)
    second = daemon(pool=pool, successor_of=first, wait=False)
    assert second.wait_exit() == 7
    assert f"another headrace (pid {first.pid})" in second.stderr()
    elsewhere = daemon(pool=pool, name=first.name, wait=False)
    assert elsewhere.wait_exit() == 7, "another state directory does not make it another worker"
    assert first.service.returncode is None
