"""When a server is made to collect its garbage, and when not."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from worker.api.errors import Unreachable
from worker.api.models import FlowRun
from worker.runs.tidying import (
    APART,
    FAILURES,
    LONGEST_QUIET,
    MANY,
    MOST_REQUESTS,
    QUIET,
    STEP,
    Garbage,
    Tidying,
    hold,
    judge,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEEDED = Garbage(needed=100, backlog=True)


@pytest.mark.parametrize(
    ("garbage", "in_flight", "starting", "now", "seconds"),
    [
        pytest.param(Garbage(), 0, 0, 100, None, id="nothing is known"),
        pytest.param(Garbage(backlog=True), 0, 0, 100, None, id="many runs, and nothing has failed"),
        pytest.param(replace(NEEDED, backlog=False), 0, 0, 100, None, id="few runs are to be begun"),
        pytest.param(NEEDED, 0, 0, 100, 0, id="nothing goes on"),
        pytest.param(NEEDED, 1, 0, 100, STEP, id="a run has begun"),
        pytest.param(NEEDED, 1, 0, 100.01 + QUIET, 0, id="it goes on"),
        pytest.param(NEEDED, 1, 1, 100 + QUIET, STEP, id="one is starting"),
        pytest.param(NEEDED, 1, 1, 100.01 + LONGEST_QUIET, 0, id="it takes its time"),
        pytest.param(replace(NEEDED, collected=98), 0, 0, 100, None, id="a collection was just now"),
        pytest.param(replace(NEEDED, collected=98), 0, 0, 98 + APART, 0, id="the next one is due"),
        pytest.param(
            replace(NEEDED, collected=98), 1, 0, 98 + APART + 0.1, STEP, id="but not in this moment"
        ),
    ],
)
def test_when_a_server_is_to_collect(
    garbage: Garbage, in_flight: int, starting: int, now: float, seconds: float | None
) -> None:
    assert hold(garbage, in_flight=in_flight, starting=starting, now=now) == seconds


def test_since_when_there_is_a_reason() -> None:
    garbage = judge(Garbage(), failures=FAILURES - 1, marking=False, now=10)
    assert garbage.needed is None
    garbage = judge(garbage, failures=1, marking=False, now=11)
    assert garbage.needed == 11
    garbage = judge(garbage, failures=5, marking=True, now=12)
    assert garbage.needed == 11, "it is the same reason still"
    marking = judge(Garbage(), failures=0, marking=True, now=13)
    assert marking.needed == 13
    assert judge(marking, failures=0, marking=False, now=14).needed is None, "the marking is over"


class Bench:
    """A judgement whose clock, server and runs are a test's. The server collects at every `every`th request."""

    def __init__(self, *, every: int = 4) -> None:
        self.clock = 100.0
        self.marking = False
        self.trouble: Exception | None = None
        self.requests = 0
        self.collections = 0
        self._every = every
        self.tidying = Tidying(
            collect=self._collect,
            marking=lambda: self.marking,
            in_flight=lambda: 0,
            starting=lambda: 0,
            monotonic=lambda: self.clock,
        )

    async def _collect(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.requests += 1
        collects = self.requests % self._every == 0
        self.collections += collects
        self.clock += 0.4 if collects else 0.005

    def look(self, *overdue: float, state_name: str = "Scheduled") -> None:
        """These runs wait, due for so many seconds."""
        self.tidying.look(waiting(overdue, state_name), now=NOW)

    async def tidy(self) -> int:
        """How many collections it led to."""
        before = self.collections
        await self.tidying.tidy()
        return self.collections - before


def waiting(overdue: Sequence[float], state_name: str = "Scheduled") -> list[FlowRun]:
    times = [(NOW - timedelta(seconds=seconds)).isoformat() for seconds in overdue]
    return [
        FlowRun.read(
            {"id": str(uuid4()), "name": "r", "state_name": state_name, "next_scheduled_start_time": time}
        )
        for time in times
    ]


BACKLOG = [1.0] * MANY
pytestmark = pytest.mark.anyio


async def test_a_backlog_alone_is_no_reason() -> None:
    bench = Bench()
    bench.look(*BACKLOG)
    assert bench.tidying.pause() == 0
    assert await bench.tidy() == 0


async def test_while_runs_are_marked_it_is_done_every_few_seconds() -> None:
    bench = Bench()
    bench.marking = True
    bench.look(*BACKLOG)
    assert await bench.tidy() > 0
    for _ in range(5):
        bench.look(*BACKLOG)
        assert await bench.tidy() == 0
        bench.clock += APART
        assert await bench.tidy() == 1
    bench.clock += APART
    bench.marking = False
    bench.look(*BACKLOG)
    assert await bench.tidy() == 0


async def test_refused_requests_are_a_reason() -> None:
    bench = Bench()
    bench.look(*BACKLOG)
    bench.tidying.failed(FAILURES)
    assert await bench.tidy() > 0
    bench.clock += APART
    assert await bench.tidy() == 0


async def test_few_runs_are_begun_as_they_are() -> None:
    bench = Bench()
    bench.tidying.failed(FAILURES)
    bench.look(*BACKLOG[1:])
    assert await bench.tidy() == 0


async def test_runs_of_the_future_are_no_backlog() -> None:
    bench = Bench()
    bench.tidying.failed(FAILURES)
    bench.look(*([-60.0] * MANY), 1.0)
    assert await bench.tidy() == 0


async def test_runs_that_were_marked_before_our_time_are_a_reason_once() -> None:
    bench = Bench()
    bench.look(*BACKLOG, state_name="Late")
    assert await bench.tidy() > 0
    bench.clock += APART
    bench.look(*BACKLOG, state_name="Late")
    assert await bench.tidy() == 0


@pytest.mark.parametrize("every", range(2, MOST_REQUESTS + 1))
async def test_it_ends_with_a_collection(every: int) -> None:
    """What is made after it would count towards the next one, which is to come as late as possible."""
    bench = Bench(every=every)
    for times in range(5):
        bench.clock += APART
        bench.tidying.failed(FAILURES)
        bench.look(*BACKLOG)
        assert await bench.tidy() >= 1
        assert bench.requests % every == 0, times


async def test_requests_do_not_go_on_for_ever() -> None:
    """A server whose collector does not work like that, or not in the thread of the requests."""
    bench = Bench(every=1_000_000)
    bench.tidying.failed(FAILURES)
    bench.look(*BACKLOG)
    with capture_logs() as logs:
        await bench.tidy()
        await bench.tidy()
    assert [(entry["event"], entry["requests"]) for entry in logs] == [("server.tidied", MOST_REQUESTS + 1)]


async def test_a_server_that_does_not_answer_is_not_asked_again_at_once() -> None:
    bench = Bench()
    bench.trouble = Unreachable("collect", "no answer")
    bench.tidying.failed(FAILURES)
    bench.look(*BACKLOG)
    with capture_logs() as logs:
        await bench.tidy()
        await bench.tidy()
    assert [entry["event"] for entry in logs] == ["server.not_tidied"]
    bench.trouble = None
    bench.clock += APART
    bench.tidying.failed(FAILURES)
    assert await bench.tidy() > 0
