"""How early a run is claimed, and when the next question is due."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from worker.api.models import FlowRun
from worker.runs.lookahead import (
    DEPLOYMENTS,
    FIRST_LEAD,
    PAUSES_AFTER_HINT,
    SAMPLES,
    SCHEDULER_ROUND,
    Agenda,
    Leads,
    later,
    start_time,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SLOW, QUICK = UUID(int=1), UUID(int=2)


def due(seconds: float | None, **fields: Any) -> FlowRun:
    time = None if seconds is None else (NOW + timedelta(seconds=seconds)).isoformat()
    return FlowRun.read(
        {
            "id": str(uuid4()),
            "name": "r",
            "state_type": "SCHEDULED",
            "state_name": "Scheduled",
            "next_scheduled_start_time": time,
            **fields,
        }
    )


def seconds(delta: timedelta) -> float:
    return delta.total_seconds()


def test_the_quickest_of_the_last_starts_of_the_deployment_counts() -> None:
    leads = Leads(most=10)
    assert seconds(leads.of(SLOW)) == FIRST_LEAD
    for took in (6.0, 4.0, 5.0):
        leads.measured(SLOW, took)
    assert seconds(leads.of(SLOW)) == 4.0
    assert seconds(leads.of(QUICK)) == 4.0, "what is not known is guessed"
    leads.measured(QUICK, 0.3)
    assert seconds(leads.of(QUICK)) == 0.3
    assert seconds(leads.of(SLOW)) == 4.0
    assert seconds(leads.longest) == 4.0
    for _ in range(SAMPLES):
        leads.measured(SLOW, 7.0)
    assert seconds(leads.of(SLOW)) == 7.0, "what was long ago does not count"


@pytest.mark.parametrize(("most", "lead"), [(10, 5.0), (2, 2.0), (0, 0.0)])
def test_prefetch_bounds_the_lead(most: float, lead: float) -> None:
    leads = Leads(most=most)
    leads.measured(SLOW, 5.0)
    assert (seconds(leads.of(SLOW)), seconds(leads.longest)) == (lead, lead)


def test_a_fixed_lead_is_that_whatever_starts_take() -> None:
    leads = Leads(most=10, fixed=True)
    leads.measured(SLOW, 5.0)
    assert (seconds(leads.of(SLOW)), seconds(leads.longest)) == (10, 10)


def test_the_memory_of_deployments_is_bounded() -> None:
    leads = Leads(most=10)
    leads.measured(SLOW, 9.0)
    for number in range(DEPLOYMENTS):
        leads.measured(UUID(int=100 + number), 1.0)
    assert seconds(leads.longest) == 1.0


@pytest.mark.parametrize(
    ("flow_run", "expected"),
    [
        (due(None), None),
        (due(10), 8),
        (due(-10), -12),
        (due(10, state_name="AwaitingRetry"), 8),
        (due(10, state_name="AwaitingConcurrencySlot"), 10),
    ],
)
def test_when_a_run_is_claimed(flow_run: FlowRun, expected: float | None) -> None:
    leads = Leads(most=10)
    leads.measured(None, 2.0)
    time = start_time(flow_run, leads)
    assert time == (None if expected is None else NOW + timedelta(seconds=expected))


def test_only_runs_that_are_not_to_be_claimed_yet_are_later() -> None:
    leads = Leads(most=10)
    leads.measured(None, 2.0)
    found = later([due(None), due(-5), due(2), due(3), due(60)], now=NOW, leads=leads)
    assert found == [NOW + timedelta(seconds=1), NOW + timedelta(seconds=58)]


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def agenda(clock: Clock, *, interval: float = 10) -> Agenda:
    """One that has looked ahead once; its next look is due in `interval`."""
    made = Agenda(interval=interval, random=lambda: 0.5, monotonic=clock)
    assert made.look_is_due
    made.begin(now=NOW)
    made.looked()
    return made


@pytest.mark.parametrize(("interval", "delay"), [(10, 10), (1, 1), (45, 45), (300, 45)])
def test_the_queues_are_kept_ready_whatever_the_interval(interval: float, delay: float) -> None:
    assert agenda(Clock(), interval=interval).delay(now=NOW) == pytest.approx(delay)


def test_a_look_ahead_reaches_beyond_the_next_one() -> None:
    planned = Agenda(interval=10, random=lambda: 0.999, monotonic=Clock())
    planned.looked()
    assert planned.reach > timedelta(seconds=planned.delay(now=NOW))


def test_it_is_asked_again_when_a_run_is_to_be_claimed() -> None:
    clock = Clock()
    planned = agenda(clock)
    planned.note([NOW + timedelta(seconds=7), NOW + timedelta(seconds=3), NOW + timedelta(seconds=99)])
    assert planned.delay(now=NOW) == pytest.approx(3, abs=0.01)
    assert planned.delay(now=NOW) > 3, "surely not too early"
    clock.seconds = 3.01
    now = NOW + timedelta(seconds=3.01)
    planned.begin(now=now)
    assert not planned.look_is_due
    assert planned.delay(now=now) == pytest.approx(3.99, abs=0.01)


def test_questions_after_a_hint_are_few_however_many_hints_there_are() -> None:
    planned = agenda(Clock())
    assert planned.hint()
    assert not planned.hint(), "the question is put at once in any case"
    planned.begin(now=NOW)
    assert planned.delay(now=NOW) == PAUSES_AFTER_HINT[0]
    assert not planned.hint(), "and again soon"
    planned.begin(now=NOW)
    assert planned.delay(now=NOW) == PAUSES_AFTER_HINT[0]
    planned.begin(now=NOW)
    assert planned.delay(now=NOW) == PAUSES_AFTER_HINT[1]
    assert planned.hint(), "half a second is long"
    for _ in range(3):
        assert not planned.look_is_due
        planned.begin(now=NOW)
    assert planned.look_is_due, "it may be a run of which the time has not come"
    planned.looked()
    assert planned.delay(now=NOW) == pytest.approx(10)


def test_as_many_runs_as_hints_answer_them() -> None:
    planned = agenda(Clock())
    planned.hint()
    planned.hint()
    planned.begin(now=NOW)
    planned.found(1)
    assert planned.delay(now=NOW) == PAUSES_AFTER_HINT[0]
    planned.begin(now=NOW)
    planned.found(1)
    assert planned.delay(now=NOW) == pytest.approx(10)


def test_one_hint_can_be_answered_without_a_question() -> None:
    planned = agenda(Clock())
    assert not planned.one_hint
    planned.hint()
    assert planned.one_hint
    planned.answered()
    assert not planned.one_hint
    assert planned.delay(now=NOW) == pytest.approx(10)
    assert planned.hint(), "the next one rings"
    planned.begin(now=NOW)
    planned.found(0)
    planned.hint()
    assert not planned.one_hint, "the one before was not found"


def test_when_a_run_that_was_found_is_to_be_claimed() -> None:
    planned = agenda(Clock())
    planned.note([NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)])
    assert not planned.is_time(now=NOW)
    assert planned.is_time(now=NOW + timedelta(seconds=1))
    planned.begin(now=NOW + timedelta(seconds=1))
    assert not planned.is_time(now=NOW + timedelta(seconds=1))


def test_a_hint_during_a_question_has_it_put_again() -> None:
    planned = agenda(Clock())
    planned.hint()
    planned.begin(now=NOW)
    planned.hint()
    planned.found(2)
    assert planned.delay(now=NOW) == PAUSES_AFTER_HINT[0]


def test_the_scheduler_is_given_time_and_then_looked_after() -> None:
    clock = Clock()
    planned = agenda(clock)
    planned.expect()
    assert planned.delay(now=NOW) == pytest.approx(SCHEDULER_ROUND)
    clock.seconds = 9.0
    planned.expect()
    assert planned.look_is_due, "an expectation is not put off by the next"
