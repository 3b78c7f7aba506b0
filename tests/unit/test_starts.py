"""Which runs are starting, how many may, and how the server's latency decides that."""

from dataclasses import dataclass
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from worker.runs.in_flight import InFlight
from worker.runs.pacing import FALL_PAUSE, RISE_PAUSE, SLOW_SECONDS, Pace, Pacing, judge
from worker.runs.starts import ENGINE_PATIENCE, SHORT_PATIENCE, Starts
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

ONE, TWO = UUID(int=1), UUID(int=2)


class Idle:
    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_start_takes_room_until_it_is_over_and_a_slot_until_the_end() -> None:
    clock, freed = Clock(), Wake()
    in_flight = InFlight(limit=3, freed=freed, starts=Starts(most=lambda: 1, monotonic=clock))
    in_flight.want(wanted=True)
    with in_flight.slot(ONE, Idle()):
        assert (in_flight.room, in_flight.free, in_flight.starting) == (0, 2, 1)
        clock.seconds = 2.5
        assert in_flight.started(ONE, connected=True, engine=True) == pytest.approx(2.5)
        assert (in_flight.room, in_flight.free, in_flight.starting) == (1, 2, 0)
        assert await freed.wait(timeout=0)
        assert in_flight.started(ONE, connected=True, engine=True) is None, "told once"
        assert not await freed.wait(timeout=0)
    assert in_flight.free == 3


async def test_an_adopted_process_is_not_starting() -> None:
    in_flight = InFlight(limit=2, freed=Wake(), starts=Starts(most=lambda: 1, monotonic=Clock()))
    with in_flight.slot(ONE, Idle(), starting=False):
        assert (in_flight.room, in_flight.free, in_flight.starting) == (1, 1, 0)


async def test_a_run_that_ends_before_it_has_started_is_starting_no_more() -> None:
    in_flight = InFlight(limit=None, freed=Wake(), starts=Starts(most=lambda: 1, monotonic=Clock()))
    with in_flight.slot(ONE, Idle()):
        assert in_flight.room == 0
    assert (in_flight.room, in_flight.starting) == (1, 0)


async def test_a_concluded_run_hands_its_slot_on_and_stays_in_the_list() -> None:
    freed = Wake()
    in_flight = InFlight(limit=1, freed=freed, starts=Starts(most=lambda: 9, monotonic=Clock()))
    in_flight.want(wanted=True)
    with in_flight.slot(ONE, Idle()):
        in_flight.conclude(ONE)
        in_flight.conclude(ONE)
        in_flight.conclude(TWO)
        assert await freed.wait(timeout=0)
        assert (in_flight.free, in_flight.room, len(in_flight), ONE in in_flight) == (1, 1, 1, True)
        with in_flight.slot(TWO, Idle()):
            assert (in_flight.free, len(in_flight)) == (0, 2)
    assert (in_flight.free, len(in_flight)) == (1, 0)


async def test_nobody_is_woken_for_a_start_that_leaves_no_room() -> None:
    freed = Wake()
    in_flight = InFlight(limit=1, freed=freed, starts=Starts(most=lambda: 9, monotonic=Clock()))
    in_flight.want(wanted=True)
    with in_flight.slot(ONE, Idle()):
        in_flight.started(ONE, connected=True, engine=True)
        assert not await freed.wait(timeout=0)


def test_engines_that_keep_silent_are_waited_for_less_until_one_speaks() -> None:
    starts = Starts(most=lambda: 1, monotonic=Clock())
    assert starts.patience(engine=True) == ENGINE_PATIENCE
    assert starts.patience(engine=False) == SHORT_PATIENCE
    starts.learn(connected=False)
    assert starts.patience(engine=True) == SHORT_PATIENCE
    starts.learn(connected=True)
    assert starts.patience(engine=True) == ENGINE_PATIENCE


SLOW = SLOW_SECONDS + 1


@pytest.mark.parametrize(
    ("pace", "seconds", "failed", "starting", "now", "allowed"),
    [
        pytest.param(Pace(8, 8), 0.1, False, 8, 10.0, 8, id="calm"),
        pytest.param(Pace(8, 8), SLOW, False, 8, 10.0, 4, id="slow"),
        pytest.param(Pace(8, 8), 0.1, True, 8, 10.0, 4, id="overloaded"),
        pytest.param(Pace(8, 8), SLOW, False, 3, 10.0, 1, id="from as many as there were"),
        pytest.param(Pace(8, 8), SLOW, False, 0, 10.0, 8, id="nothing is starting"),
        pytest.param(Pace(1, 8), SLOW, False, 1, 10.0, 1, id="never below one"),
        pytest.param(Pace(1, 1), SLOW, False, 1, 10.0, 1, id="one is the most"),
        pytest.param(Pace(8, 8, usual=2.0), SLOW, False, 8, 10.0, 8, id="usual for this server"),
        pytest.param(Pace(8, 8, usual=2.0), 11.0, False, 8, 10.0, 4, id="not even usual for it"),
        pytest.param(Pace(4, 8, since=9.0), SLOW, False, 4, 10.0, 4, id="the last step is not felt yet"),
        pytest.param(
            Pace(4, 8, since=10.0 - FALL_PAUSE), SLOW, False, 4, 10.0, 2, id="the last step was not enough"
        ),
        pytest.param(Pace(2, 8, since=-RISE_PAUSE / 2), 0.1, False, 2, 0.0, 2, id="not calm for long"),
        pytest.param(Pace(2, 8, since=-RISE_PAUSE), 0.1, False, 2, 0.0, 3, id="a step back"),
        pytest.param(Pace(2, 8, since=-9 * RISE_PAUSE), 0.1, False, 0, 0.0, 8, id="long ago"),
    ],
)
def test_pace(pace: Pace, seconds: float, *, failed: bool, starting: int, now: float, allowed: int) -> None:
    assert judge(pace, seconds=seconds, failed=failed, starting=starting, now=now).allowed == allowed


def test_a_change_of_pace_is_told_once_each_way() -> None:
    clock = Clock(100.0)
    pacing = Pacing(most=4, starting=lambda: 4, monotonic=clock)
    with capture_logs() as logs:
        for seconds in (0.1, SLOW, SLOW):
            pacing.observe(seconds, failed=False)
        assert pacing.allowed == 2
        clock.seconds += FALL_PAUSE
        pacing.observe(SLOW, failed=True)
        assert pacing.allowed == 1
        for _ in range(9):
            clock.seconds += RISE_PAUSE
            pacing.observe(0.1, failed=False)
    assert pacing.allowed == 4
    told = [(one["event"], one["log_level"]) for one in logs if one["log_level"] != "debug"]
    assert told == [("pace.reduced", "info"), ("pace.recovered", "info")]
    assert len([one for one in logs if one["event"] == "pace.changed"]) == 5
