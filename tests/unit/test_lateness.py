"""Which runs lateness may skip, which run of a schedule stays, and what a skipped run is told."""

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from worker.api.models import FlowRun
from worker.runs.lateness import SUPERSEDED, Plan, all_due, due, latest_of_each, plan

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEPLOYMENT, ANOTHER = UUID(int=101), UUID(int=102)
SCHEDULE, ANOTHER_SCHEDULE = UUID(int=201), UUID(int=202)
HOUR = timedelta(hours=1)


def run(number: int, *, late: timedelta = timedelta(minutes=5), **fields: Any) -> FlowRun:
    """A run of the schedule that was due `late` ago."""
    time = NOW - late
    return FlowRun.model_validate(
        {
            "id": UUID(int=number),
            "deployment_id": DEPLOYMENT,
            "auto_scheduled": True,
            "created_by": {"type": "SCHEDULE", "id": SCHEDULE},
            "state_type": "SCHEDULED",
            "state_name": "Late",
            "expected_start_time": time,
            "next_scheduled_start_time": time,
            **fields,
        }
    )


def minutes(count: int) -> timedelta:
    return timedelta(minutes=count)


def outcome(planned: Plan) -> tuple[list[int], list[int]]:
    """The numbers of the runs to start and of those to skip."""
    return [one.id.int for one in planned.starts], [one.flow_run.id.int for one in planned.skips]


def only_latest(*flow_runs: FlowRun, known: tuple[FlowRun, ...] = (), **arguments: Any) -> Plan:
    latest = latest_of_each(all_due([*flow_runs, *known], now=NOW))
    return plan(flow_runs, now=NOW, latest=latest, **arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"state_name": "Scheduled"},
        # Put off by the server: moved, but by nobody who wanted it so.
        {"state_name": "AwaitingConcurrencySlot", "next_scheduled_start_time": NOW + timedelta(seconds=30)},
        {"created_by": None},
        {"late": timedelta()},
    ],
)
def test_untouched_runs_of_a_schedule_are_missed(fields: dict[str, Any]) -> None:
    found = due(run(1, **fields), now=NOW)
    assert found is not None
    assert found.missed


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_scheduled": False},
        {"auto_scheduled": False, "created_by": {"type": "AUTOMATION"}},
        {"deployment_id": None},
        {"expected_start_time": None},
        {"late": timedelta(microseconds=-1)},
    ],
)
def test_runs_that_no_schedule_made_or_whose_time_has_not_come_are_not_due(fields: dict[str, Any]) -> None:
    assert due(run(1, **fields), now=NOW) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"run_count": 1},
        {"state_name": "AwaitingRetry"},
        {"state_name": "Resuming"},
        {"state_name": "my own name"},
        {"state_name": None},
        {"state_name": "AwaitingConcurrencySlot", "run_count": 1},
        {"state_type": "RUNNING", "state_name": "Running"},
        # "Run now" of a user, or a worker that gave it back: it has been moved.
        {"state_name": "Scheduled", "next_scheduled_start_time": NOW},
        {"next_scheduled_start_time": None},
    ],
)
def test_runs_that_somebody_has_touched_are_not_missed_and_never_skipped(fields: dict[str, Any]) -> None:
    touched = run(1, late=HOUR, **fields)
    found = due(touched, now=NOW)
    assert found is not None
    assert not found.missed
    planned = only_latest(touched, run(2), max_late=minutes(10))
    assert outcome(planned) == ([1, 2], [])


@pytest.mark.parametrize(
    ("late", "max_late", "message"),
    [
        (HOUR, HOUR, None),
        (HOUR + timedelta(microseconds=1), HOUR, "Skipped: it was due 1 h ago, more than --max-late 1h."),
        (minutes(192), HOUR, "Skipped: it was due 3 h 12 min ago, more than --max-late 1h."),
        (minutes(90), minutes(75), "Skipped: it was due 1 h 30 min ago, more than --max-late 75m."),
        (
            timedelta(days=2, hours=4, minutes=9),
            timedelta(days=1),
            "Skipped: it was due 2 d 4 h ago, more than --max-late 1d.",
        ),
        (
            timedelta(days=2, minutes=9),
            timedelta(hours=36),
            "Skipped: it was due 2 d ago, more than --max-late 36h.",
        ),
        (
            timedelta(seconds=100),
            timedelta(seconds=90),
            "Skipped: it was due 1 min 40 s ago, more than --max-late 90s.",
        ),
        (
            timedelta(seconds=45),
            timedelta(seconds=1.5),
            "Skipped: it was due 45 s ago, more than --max-late 1.5s.",
        ),
        (
            timedelta(seconds=0.5),
            timedelta(),
            "Skipped: it was due less than a second ago, more than --max-late 0s.",
        ),
        (timedelta(days=900), None, None),
    ],
)
def test_too_late(late: timedelta, max_late: timedelta | None, message: str | None) -> None:
    planned = plan([run(1, late=late)], now=NOW, max_late=max_late)
    assert [one.message for one in planned.skips] == ([] if message is None else [message])
    assert len(planned.starts) == (1 if message is None else 0)


def test_without_options_all_runs_are_started_in_order() -> None:
    flow_runs = [run(3), run(1, late=HOUR), run(2, auto_scheduled=False), run(4, late=timedelta(days=9))]
    assert outcome(plan(flow_runs, now=NOW)) == ([3, 1, 2, 4], [])


def test_only_the_latest_of_a_schedule_stays() -> None:
    flow_runs = [run(number, late=minutes(10 - number)) for number in range(1, 6)]
    planned = only_latest(*flow_runs)
    assert outcome(planned) == ([5], [1, 2, 3, 4])
    assert {one.message for one in planned.skips} == {SUPERSEDED}


def test_runs_of_others_stay_and_a_run_ahead_of_its_time_supersedes_none() -> None:
    flow_runs = [
        run(1, late=minutes(9)),
        run(2, late=minutes(9), auto_scheduled=False),
        run(3, late=minutes(9), created_by={"id": ANOTHER_SCHEDULE}),
        run(4, late=minutes(9), deployment_id=ANOTHER),
        run(5, late=minutes(9), work_queue_id=UUID(int=301)),
        run(6, late=-minutes(1), state_name="Scheduled"),
    ]
    assert outcome(only_latest(*flow_runs)) == ([1, 2, 3, 4, 5, 6], [])


def test_of_two_runs_due_at_the_same_time_the_same_one_stays_in_any_order() -> None:
    for flow_runs in permutations([run(1), run(2), run(3, late=HOUR)]):
        started, skipped = outcome(only_latest(*flow_runs))
        assert (started, sorted(skipped)) == ([2], [1, 3])


def test_the_latest_that_is_not_in_the_answer_takes_the_place_of_the_first_it_supersedes() -> None:
    flow_runs = [
        run(1, auto_scheduled=False),
        run(2, late=minutes(9)),
        run(3, late=minutes(8)),
        run(4, auto_scheduled=False),
    ]
    planned = only_latest(*flow_runs, known=(run(9, late=minutes(1)),))
    assert outcome(planned) == ([1, 9, 4], [2, 3])
    planned = only_latest(*flow_runs, known=(run(9, late=minutes(1)),), stand_in=False)
    assert outcome(planned) == ([1, 4], [2, 3])


@pytest.mark.parametrize(
    "begun",
    [
        {"state_type": "PENDING", "state_name": "Pending", "next_scheduled_start_time": None},
        {"state_type": "COMPLETED", "state_name": "Completed", "run_count": 1},
        {"state_type": "SCHEDULED", "state_name": "AwaitingRetry", "run_count": 1},
    ],
)
def test_a_later_run_that_has_begun_supersedes_and_is_not_begun_again(begun: dict[str, Any]) -> None:
    planned = only_latest(run(1, late=HOUR), known=(run(2, **begun),))
    assert outcome(planned) == ([], [1])


def test_a_missed_run_of_an_unknown_series_waits_for_the_next_poll() -> None:
    flow_runs = [run(1), run(2, auto_scheduled=False)]
    assert outcome(plan(flow_runs, now=NOW, latest={})) == ([2], [])


def test_too_late_is_said_first_and_holds_for_the_latest_as_well() -> None:
    planned = only_latest(run(1, late=3 * HOUR), run(2, late=2 * HOUR), max_late=HOUR)
    assert outcome(planned) == ([], [1, 2])
    assert all("--max-late 1h" in one.message for one in planned.skips)
