"""When a server is left alone because somebody makes many runs."""

from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from worker.runs.arrivals import (
    BUDGET,
    CALM_EACH,
    EARNED,
    LONGEST_CALM,
    LONGEST_WITH_RETRIES,
    WINDOW,
    Arrivals,
    Stream,
    ended,
    heard,
    hold,
)

RUN = UUID(int=1)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        pytest.param([], 0, id="nothing was heard"),
        pytest.param([100], 0, id="one run starts at once"),
        pytest.param([100, 100.1], CALM_EACH, id="of two, one waits for a moment"),
        pytest.param([100, 101], 0, id="two with a pause between them"),
        pytest.param([100, 101, 101.1], 2 * CALM_EACH, id="three"),
        pytest.param([100, 101, 102, 103], 0, id="one now and then"),
        pytest.param([100 + n / 10 for n in range(20)], LONGEST_CALM, id="many"),
        pytest.param([100, 100.1, 102.2, 102.3], 3 * CALM_EACH, id="the client may have tried again"),
        pytest.param([100, 100.1, 100.2, 102.3], 3 * CALM_EACH, id="the client has tried again"),
        pytest.param(
            [100, 100.1, 100.2, *(102.3 + n / 10 for n in range(20))],
            LONGEST_WITH_RETRIES,
            id="the next time he tries again is waited for, too",
        ),
        pytest.param([100, 100 + WINDOW + 0.1], 0, id="two that have nothing to do with each other"),
    ],
)
def test_how_long_nothing_is_begun(times: list[float], seconds: float) -> None:
    stream = Stream()
    for time in times:
        stream = heard(stream, uuid4(), now=time)
    now = times[-1] if times else 100.0
    assert hold(stream, now=now) == pytest.approx(seconds)
    assert hold(stream, now=now + seconds / 2) == pytest.approx(seconds / 2)
    assert hold(stream, now=now + seconds) == pytest.approx(0)


@pytest.mark.parametrize("apart", [0.02, 0.1, 0.3, 0.7], ids=str)
def test_who_makes_runs_all_day_is_waited_for_now_and_then(apart: float) -> None:
    stream, held, seconds = Stream(), 0.0, 600.0
    for number in range(int(seconds / apart)):
        stream = heard(stream, uuid4(), now=number * apart)
        held += min(apart, hold(stream, now=number * apart))
    assert 0 < held <= BUDGET + EARNED * seconds + LONGEST_WITH_RETRIES


@pytest.mark.parametrize("apart", [0.9, 1.4, 2.0, 5.0], ids=str)
def test_who_makes_one_now_and_then_is_never_held(apart: float) -> None:
    stream = Stream()
    for number in range(50):
        stream = heard(stream, uuid4(), now=number * apart)
        assert hold(stream, now=number * apart) == 0


@pytest.mark.parametrize("apart", [0.02, 0.3, 1.0], ids=str)
def test_who_waits_for_each_run_before_making_the_next_is_never_held(apart: float) -> None:
    stream = Stream()
    for number in range(50):
        run = uuid4()
        stream = heard(stream, run, now=number * apart)
        assert hold(stream, now=number * apart) == 0
        stream = ended(stream, run)


def test_whose_runs_end_at_once_is_held_all_the_same_when_he_makes_several_at_a_time() -> None:
    stream, runs = Stream(), [uuid4() for _ in range(3)]
    for number, run in enumerate(runs):
        stream = heard(stream, run, now=100 + number / 10)
    for run in runs:
        stream = ended(stream, run)
    stream = heard(stream, uuid4(), now=102.3)
    assert hold(stream, now=102.3) == pytest.approx(3 * CALM_EACH)


def test_a_run_that_is_heard_of_twice_is_one() -> None:
    stream = heard(heard(Stream(), RUN, now=100), RUN, now=100.1)
    assert hold(stream, now=100.1) == 0


def test_after_a_rest_all_is_waited_for_again() -> None:
    stream = Stream()
    for number in range(1000):
        stream = heard(stream, uuid4(), now=number / 10)
    rested = heard(stream, uuid4(), now=100 + BUDGET / EARNED)
    assert rested.budget == BUDGET


def test_each_stream_is_told_of_once() -> None:
    clock = 100.0
    arrivals = Arrivals(retried=lambda: None, monotonic=lambda: clock)
    with capture_logs() as logs:
        for _ in range(20):
            arrivals.heard(uuid4())
            clock += 0.05
        assert arrivals.pause() > 0
        clock += 100
        assert arrivals.pause() == 0
        arrivals.heard(uuid4())
        arrivals.heard(uuid4())
    assert [entry["event"] for entry in logs] == ["arrivals.held"] * 2


def test_what_may_have_been_missed_is_no_run() -> None:
    """At every new connection all bells are rung, without a run."""
    arrivals = Arrivals(retried=lambda: None, monotonic=lambda: 1.0)
    for _ in range(3):
        arrivals.heard(None)
        arrivals.ended(None)
    assert arrivals.pause() == 0


def test_a_run_that_was_made_at_a_second_try_is_told_of() -> None:
    clock, retried = 100.0, list[float]()
    arrivals = Arrivals(retried=lambda: retried.append(clock), monotonic=lambda: clock)
    for pause in (0.1, 0.1, 0.1, 2.1, 0.1, 0.1, 2.1):
        arrivals.heard(uuid4())
        clock += pause
    assert retried == [pytest.approx(102.4)]
    for _ in range(3):
        clock += 10
        arrivals.heard(uuid4())
    assert len(retried) == 1, "who makes one now and then does not try again"
