"""When a server is left alone because somebody makes many runs."""

from uuid import UUID

import pytest

from worker.runs.arrivals import (
    BUDGET,
    CALM_EACH,
    EARNED,
    LONGEST_CALM,
    WINDOW,
    Arrivals,
    Stream,
    heard,
    hold,
)

pytestmark = pytest.mark.anyio

RUN = UUID(int=1)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        pytest.param([], 0, id="nothing was heard"),
        pytest.param([100], 0, id="one run starts at once"),
        pytest.param([100, 100.1], CALM_EACH, id="of two, one waits for a moment"),
        pytest.param([100, 101, 102], 2 * CALM_EACH, id="three"),
        pytest.param([100 + n / 10 for n in range(20)], LONGEST_CALM, id="many"),
        pytest.param([100, 100.1, 102.2], 2 * CALM_EACH, id="the client has tried again"),
        pytest.param([100, 100 + WINDOW + 0.1], 0, id="two that have nothing to do with each other"),
    ],
)
def test_how_long_nothing_is_begun(times: list[float], seconds: float) -> None:
    stream = Stream()
    for time in times:
        stream = heard(stream, now=time)
    now = times[-1] if times else 100.0
    assert hold(stream, now=now) == pytest.approx(seconds)
    assert hold(stream, now=now + seconds / 2) == pytest.approx(seconds / 2)
    assert hold(stream, now=now + seconds) == pytest.approx(0)


@pytest.mark.parametrize("apart", [0.02, 0.1, 0.3, 1.0, 2.0], ids=str)
def test_who_makes_runs_all_day_is_waited_for_now_and_then(apart: float) -> None:
    stream, held, seconds = Stream(), 0.0, 600.0
    for number in range(int(seconds / apart)):
        stream = heard(stream, now=number * apart)
        held += min(apart, hold(stream, now=number * apart))
    assert 0 < held <= BUDGET + EARNED * seconds + LONGEST_CALM


def test_after_a_rest_all_is_waited_for_again() -> None:
    stream = Stream()
    for number in range(1000):
        stream = heard(stream, now=number / 10)
    rested = heard(stream, now=100 + BUDGET / EARNED)
    assert rested.budget == BUDGET


async def test_whoever_waits_is_let_go_when_no_more_are_made() -> None:
    clock = 100.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal clock
        if not slept:
            arrivals.heard(RUN)
        slept.append(seconds)
        clock += seconds

    arrivals = Arrivals(harmless=lambda: False, monotonic=lambda: clock, sleep=sleep)
    arrivals.heard(RUN)
    await arrivals.over()
    assert slept == [], "a single run"
    arrivals.heard(RUN)
    await arrivals.over()
    assert len(slept) == 2, "one more came meanwhile"
    assert arrivals.pause() == 0


def test_a_server_with_many_writers_needs_no_rest() -> None:
    arrivals = Arrivals(harmless=lambda: True, monotonic=lambda: 1.0, sleep=_never)
    arrivals.heard(RUN)
    arrivals.heard(RUN)
    assert arrivals.pause() == 0


def test_what_may_have_been_missed_is_no_run() -> None:
    """At every new connection all bells are rung, without a run."""
    arrivals = Arrivals(harmless=lambda: False, monotonic=lambda: 1.0, sleep=_never)
    for _ in range(3):
        arrivals.heard(None)
    assert arrivals.pause() == 0


async def _never(seconds: float) -> None:
    raise AssertionError(seconds)
