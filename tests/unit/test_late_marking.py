"""When a server that marks runs as Late is left alone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from worker.api.errors import Unreachable
from worker.api.models import FlowRun
from worker.runs.late_marking import (
    CALM,
    DRAIN,
    FIRST,
    LONGEST,
    MANY,
    MARKED,
    MEMORY,
    NEVER,
    PATIENCE,
    PERIOD,
    LateMarking,
    Rounds,
    heard,
    hold,
    waits,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rounds", "now", "seconds"),
    [
        pytest.param(Rounds(), 0, 0, id="nothing is known"),
        pytest.param(Rounds(waiting_since=100), 100, FIRST, id="the first round is awaited"),
        pytest.param(Rounds(waiting_since=100), 103, FIRST - 3, id="still"),
        pytest.param(Rounds(waiting_since=100), 100 + FIRST, 0, id="it does not come"),
        pytest.param(Rounds(waiting_since=100), 500, 0, id="and is not awaited again"),
        pytest.param(Rounds(100, 100, 90), 100, CALM, id="a round has begun"),
        pytest.param(Rounds(100, 101, 90), 101.2, CALM - 0.2, id="it goes on"),
        pytest.param(Rounds(100, 101, 90), 101 + CALM, 0, id="it is over"),
        pytest.param(Rounds(100, 102.4, 90), 100 + LONGEST, 0, id="it does not end"),
        pytest.param(Rounds(began=100, last=100), 100, 0, id="few runs are marked: that is soon over"),
        pytest.param(Rounds(began=100, last=101), 104.5, 0, id="nobody waits for the next one"),
        pytest.param(Rounds(100, 101, 90), 102, 0, id="between two rounds"),
        pytest.param(
            Rounds(100, 101, 90), 105 - DRAIN + 0.1, DRAIN + PATIENCE - 0.1, id="before the next one"
        ),
        pytest.param(Rounds(100, 101, 90), 105.5, PATIENCE - 0.5, id="it is late"),
        pytest.param(Rounds(100, 101, 90), 105 + PATIENCE, 0, id="it was silent"),
        pytest.param(
            Rounds(100, 101, 90), 110 - DRAIN + 0.1, DRAIN + PATIENCE - 0.1, id="before the one after that"
        ),
        pytest.param(
            Rounds(100, 101, 90), 100 + MEMORY * PERIOD + PATIENCE + 0.1, 0, id="all have been silent"
        ),
    ],
)
def test_how_long_nothing_is_begun(rounds: Rounds, now: float, seconds: float) -> None:
    assert hold(rounds, now=now) == pytest.approx(seconds)


def test_a_busy_servers_rounds_come_later_and_later() -> None:
    rounds = heard(heard(Rounds(waiting_since=90), now=100), now=105.5)
    assert rounds.period == 5.5
    assert hold(rounds, now=105.5 + 5.5 - DRAIN - 0.1) == 0
    assert hold(rounds, now=111) == pytest.approx(PATIENCE)
    assert heard(rounds, now=110).period == PERIOD, "never less than what it is set to"
    assert heard(rounds, now=120).period == 5.5, "one was missed"


def test_runs_marked_one_after_the_other_are_one_round() -> None:
    rounds = heard(heard(Rounds(), now=10), now=11)
    assert (rounds.began, rounds.last) == (10, 11)
    rounds = heard(rounds, now=15)
    assert (rounds.began, rounds.last) == (15, 15)
    assert Rounds().began == NEVER


@pytest.mark.parametrize("length", [0.1, 1.0, 2.4, 3.0, 4.0], ids=str)
def test_in_a_row_of_rounds_each_is_known_and_something_is_begun_between_them(length: float) -> None:
    """A run is marked every 0.3 s in a round, and there is a round every five seconds."""
    rounds = Rounds(waiting_since=0.0)
    held = dict.fromkeys(range(12), 0.0)
    for step in range(600):
        now = 10.0 + step / 10
        phase = (step / 10) % PERIOD
        if phase <= length and step % 3 == 0:
            rounds = heard(rounds, now=now)
        held[step // 50] += 0.1 * (hold(rounds, now=now) > 0)
    assert all(CALM <= seconds <= PERIOD - 1.0 for seconds in held.values()), held


def test_a_server_that_marks_many_at_once_is_not_left_alone_again() -> None:
    rounds = Rounds(waiting_since=90.0)
    for mark in range(MARKED):
        rounds = heard(rounds, now=100.0 + 0.05 * mark)
    assert rounds.harmless
    assert hold(waits(waits(rounds, many=False, now=101), many=True, now=102), now=102) == 0


def test_a_first_round_that_was_not_heard_of_is_not_awaited_again_until_one_is() -> None:
    rounds = waits(Rounds(), many=True, now=100)
    assert hold(rounds, now=100) == pytest.approx(FIRST)
    rounds = waits(rounds, many=False, now=100 + FIRST)
    assert rounds.deaf
    rounds = waits(rounds, many=True, now=200)
    assert hold(rounds, now=200) == 0
    assert hold(heard(rounds, now=201), now=201) == pytest.approx(CALM)


class Bench:
    """A judgement whose clock and server are a test's."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.unmarked: int | Exception = MANY
        self.asked: list[datetime] = []
        self.marking = LateMarking(count=self._count, monotonic=lambda: self.clock)

    async def _count(self, due_by: datetime) -> int:
        self.asked.append(due_by)
        if isinstance(self.unmarked, Exception):
            raise self.unmarked
        return self.unmarked

    async def look(self, *overdue: float) -> float:
        await self.marking.look(waiting(overdue), now=NOW)
        return self.marking.pause()


def waiting(overdue: Sequence[float]) -> list[FlowRun]:
    """Runs that have been due for so many seconds."""
    times = [(NOW - timedelta(seconds=seconds)).isoformat() for seconds in overdue]
    return [
        FlowRun.read({"id": str(uuid4()), "name": "r", "next_scheduled_start_time": time}) for time in times
    ]


pytestmark = pytest.mark.anyio


async def test_runs_that_are_not_overdue_cost_no_question() -> None:
    bench = Bench()
    assert await bench.look(1, 5, 10, 13) == 0
    assert bench.asked == []


async def test_many_overdue_runs_are_counted_once_in_a_while_and_a_round_is_awaited() -> None:
    bench = Bench()
    assert await bench.look(20, 16) == pytest.approx(FIRST)
    bench.clock = 1.0
    assert await bench.look(21, 17) == pytest.approx(FIRST - 1.0)
    assert bench.asked == [NOW - timedelta(seconds=15 - DRAIN)]
    bench.clock = 3.0
    bench.unmarked = MANY - 1
    assert await bench.look(23, 19) == 0


async def test_when_the_backlog_is_gone_nothing_is_awaited() -> None:
    bench = Bench()
    assert await bench.look(20, 16) > 0
    assert bench.marking.goes_on
    bench.clock = 0.5
    assert await bench.look() == 0
    assert not bench.marking.goes_on


async def test_a_server_that_does_not_count_is_not_waited_for() -> None:
    bench = Bench()
    bench.unmarked = Unreachable("count overdue runs", "no answer")
    assert await bench.look(20, 16) == 0


async def test_an_event_begins_a_round_and_a_lost_connection_does_not() -> None:
    bench = Bench()
    bench.marking.heard(None)
    assert bench.marking.pause() == 0
    assert await bench.look(20, 16) > 0
    bench.clock = FIRST - 1.0
    bench.marking.heard(None)
    assert bench.marking.pause() == pytest.approx(1.0), "still awaited"
    bench.marking.heard(uuid4())
    assert bench.marking.pause() == pytest.approx(CALM)
