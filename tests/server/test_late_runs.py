"""Runs that a schedule made while no worker was there: all run, or only those that are not too late, or the latest."""

from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project

pytestmark = pytest.mark.timeout(400)

SUPERSEDED = "Skipped: a later run of its schedule is due (--only-latest)."
MANUAL_AGE = timedelta(days=2)


def every_minute(project: Project, *, parameters: Collection[Json] = ({},)) -> str:
    """A deployment with a schedule of every minute for each of these parameters; its id.

    It is paused, so that the server's scheduler makes no runs beside those a test asks for.
    """
    schedules = [
        {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "parameters": one}
        for one in parameters
    ]
    return project.deploy("interval", parameters={"seconds": 0}, schedules=schedules, paused=True)


def miss(api: PrefectApi, deployment: str, count: int, *, minutes_ago: int = 1) -> list[Json]:
    """Have runs made for `count` minutes that have passed, the last one about `minutes_ago`; the latest first."""
    end = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    api.post(
        f"/deployments/{deployment}/schedule",
        {
            "start_time": (end - timedelta(minutes=count)).isoformat(),
            "end_time": end.isoformat(),
            "min_runs": count,
            "max_runs": count,
        },
    )
    runs = api.flow_runs(
        deployments={"id": {"any_": [deployment]}},
        flow_runs={"expected_start_time": {"before_": end.isoformat()}},
        sort="EXPECTED_START_TIME_DESC",
    )
    made = [run for run in runs if run["auto_scheduled"] and run["state_type"] == "SCHEDULED"]
    assert len(made) >= count
    return made


def manual(api: PrefectApi, deployment: str) -> str:
    """A run that a user made for a time long gone, as the UI's custom run posts it; its id."""
    then = (datetime.now(UTC) - MANUAL_AGE).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": then}}
    return api.create_flow_run(deployment, state=state)


def executions(project: Project) -> Counter[str]:
    """How often each run was executed, by the flows' own word."""
    return Counter(fact["run"] for fact in project.all_facts("interval"))


def assert_skipped(api: PrefectApi, runs: Collection[Json], message: str) -> None:
    for run in runs:
        final = api.wait_for_state(run["id"], "CANCELLED", timeout=240)
        assert final["state"]["message"] == message
        assert final["run_count"] == 0


@pytest.mark.long
def test_of_sixty_missed_minutes_two_daemons_run_the_latest_once(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    deployment = every_minute(project)
    by_hand = manual(api, deployment)
    latest, *others = miss(api, deployment, 60)
    for _ in range(2):
        daemon(pool=pool, args=("--only-latest",))
    api.wait_for_all([latest["id"], by_hand])
    assert_skipped(api, others, SUPERSEDED)
    assert executions(project) == Counter([latest["id"], by_hand])


def test_the_latest_run_is_found_where_an_answer_is_cut_off_and_after_it_has_been_run(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    """The pool's limit leaves the two oldest runs in an answer; run-once sees no second one."""
    api.update_pool(pool, concurrency_limit=2)
    latest, *others = miss(api, every_minute(project), 8)
    once = daemon(pool=pool, args=("--only-latest", "--run-once"))
    assert once.wait_exit(timeout=150) == 0
    assert api.flow_run(latest["id"])["state_type"] == "COMPLETED"
    left = [run for run in others if api.flow_run(run["id"])["state_type"] == "SCHEDULED"]
    assert left, "what is left must be judged by the next daemon, whose latest run has already been run"
    daemon(pool=pool, args=("--only-latest",))
    assert_skipped(api, others, SUPERSEDED)
    assert executions(project) == Counter([latest["id"]])


@pytest.mark.long
def test_every_schedule_of_a_deployment_keeps_its_latest_run(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    """Their parameters differ, so no run of one schedule does the work of another's."""
    deployment = every_minute(project, parameters=[{"seconds": 0.1}, {"seconds": 0.2}])
    runs = miss(api, deployment, 4)
    kept: dict[float, Json] = {}
    for run in runs:
        kept.setdefault(run["parameters"]["seconds"], run)
    assert set(kept) == {0.1, 0.2}
    ids = [run["id"] for run in kept.values()]
    daemon(pool=pool, args=("--only-latest", "--limit", "1"))
    api.wait_for_all(ids)
    assert_skipped(api, [run for run in runs if run["id"] not in ids], SUPERSEDED)
    assert executions(project) == Counter(ids)


@pytest.mark.long
def test_a_deployment_at_its_concurrency_limit_runs_the_latest_only(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    """While its one slot is taken the server puts every claim off, those of the runs to skip as well."""
    gate = project.gate()
    deployment = project.deploy(
        "waits_for_file",
        parameters={"gate": str(gate)},
        schedules=[{"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True}],
        paused=True,
        concurrency_limit=1,
    )
    by_hand = api.create_flow_run(deployment)
    worker = daemon(pool=pool, args=("--only-latest",))
    project.wait_for_fact(by_hand, "waiting")
    latest, *others = miss(api, deployment, 4)
    api.wait_for_state(others[0]["id"], "AwaitingConcurrencySlot")
    gate.touch()
    api.wait_for_all([by_hand, latest["id"]])
    assert_skipped(api, others, SUPERSEDED)
    assert {fact["run"] for fact in project.all_facts("finished")} == {by_hand, latest["id"]}
    assert worker.service.returncode is None


def test_what_is_too_late_is_skipped_unless_a_user_made_it(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    deployment = every_minute(project)
    by_hand = manual(api, deployment)
    (too_late, older) = miss(api, deployment, 2, minutes_ago=192)
    fresh = miss(api, deployment, 1)[0]
    daemon(pool=pool, args=("--max-late", "2h"))
    api.wait_for_all([by_hand, fresh["id"]])
    for run in (too_late, older):
        message = api.wait_for_state(run["id"], "CANCELLED")["state"]["message"]
        assert message.startswith("Skipped: it was due 3 h ")
        assert message.endswith(" min ago, more than --max-late 2h.")
    assert executions(project) == Counter([by_hand, fresh["id"]])


def test_without_the_options_every_missed_run_is_run(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    runs = [run["id"] for run in miss(api, every_minute(project), 3, minutes_ago=500)]
    daemon(pool=pool)
    api.wait_for_all(runs)
    assert executions(project) == Counter(runs)
