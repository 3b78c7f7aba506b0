from contextlib import ExitStack
from typing import Any, NoReturn
from uuid import UUID

import anyio
import pytest

from tests.support.canned import CannedServer
from tests.support.starts import any_number_of_starts
from worker.api.errors import ServerFault
from worker.api.models import FlowRun
from worker.runs.cancellations import (
    PAUSE_AFTER_END,
    PAUSES_AFTER_HINT,
    Cancellations,
    has_ended,
    is_being_cancelled,
    next_look,
    rings,
)
from worker.runs.in_flight import InFlight
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

INTERVAL = 2.0
FIRST, SECOND, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)
SOON, A_BIT_LATER = PAUSES_AFTER_HINT


class Run:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """Runs in flight, and a server that says which of them are being cancelled."""

    def __init__(self, *runs: UUID) -> None:
        self.server = CannedServer()
        self.server.on_call("POST", "/flow_runs/filter", self._answer)
        self.cancelling: set[UUID] = set()
        self.ended: set[UUID] = set()
        self.slept: list[float] = []
        self.now = 100.0
        self.on_question: list[Any] = []
        self.runs = {run_id: Run() for run_id in runs}
        self.in_flight = InFlight(limit=None, freed=Wake(), starts=any_number_of_starts())
        self.slots = ExitStack()
        for run_id, run in self.runs.items():
            self.slots.enter_context(self.in_flight.slot(run_id, run))
        self.client = self.server.client()
        self.cancellations = Cancellations(
            client=self.client,
            in_flight=self.in_flight,
            interval=INTERVAL,
            sleep=self._sleep,
            monotonic=lambda: self.now,
        )

    @property
    def questions(self) -> int:
        """How often the server was asked; each answer is followed by an empty page."""
        return len([body for body in self.server.bodies("POST", "/flow_runs/filter") if not body["offset"]])

    def cancelled(self) -> set[UUID]:
        return {run_id for run_id, run in self.runs.items() if run.cancelled}

    def _answer(self, body: Any) -> tuple[int, Any]:
        if body["offset"]:
            return 200, []
        for act in self.on_question:
            act()
        asked = set(body["flow_runs"]["id"]["any_"])
        states = [("CANCELLING", run_id) for run_id in self.cancelling]
        states += [("COMPLETED", run_id) for run_id in self.ended]
        return 200, [
            {"id": str(run_id), "name": "run", "state_type": state, "state": {"type": state, "name": state}}
            for state, run_id in states
            if str(run_id) in asked
        ]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def rung(self) -> bool:
        """Whether the loop would go on at once; resets the bell as the loop does."""
        return await self.cancellations.wake.wait(timeout=0)


async def test_a_run_that_has_ended_gives_its_slot_back_and_is_not_asked_for_again() -> None:
    bench = Bench(FIRST, SECOND)
    bench.ended = {FIRST}
    async with bench.client:
        await bench.cancellations.check_once()
        await bench.cancellations.check_once()
    assert bench.in_flight.unconcluded == [SECOND]
    assert FIRST in bench.in_flight
    assert not bench.cancelled()
    first, *_, last = bench.server.bodies("POST", "/flow_runs/filter")
    assert sorted(first["flow_runs"]["id"]["any_"]) == [str(FIRST), str(SECOND)]
    assert last["flow_runs"]["id"]["any_"] == [str(SECOND)]


async def test_an_end_that_was_heard_of_is_one_question_a_moment_later() -> None:
    bench = Bench(FIRST, SECOND)
    async with bench.client:
        bench.cancellations.hint_end()
        bench.cancellations.hint_end()
        assert await bench.rung()
        assert await bench.cancellations.check_once() == INTERVAL
    assert bench.slept == [PAUSE_AFTER_END]
    assert bench.questions == 1


async def test_the_question_after_an_end_is_about_that_run_alone_unless_all_are_to_be_looked_at_anyway() -> (
    None
):
    bench = Bench(FIRST, SECOND)
    asked: list[list[str]] = []
    bench.on_question = [
        lambda: asked.append(bench.server.bodies("POST", "/flow_runs/filter")[-1]["flow_runs"]["id"]["any_"])
    ]
    async with bench.client:
        await bench.cancellations.check_once()
        bench.now += INTERVAL / 4
        bench.ended = {FIRST}
        bench.cancellations.hint_end(FIRST)
        bench.cancellations.hint_end(THIRD)
        assert await bench.cancellations.check_once() == INTERVAL * 3 / 4
        bench.now += INTERVAL
        bench.cancellations.hint_end(SECOND)
        assert await bench.cancellations.check_once() == INTERVAL
    assert asked == [[str(FIRST), str(SECOND)], [str(FIRST)], [str(SECOND)]]
    assert bench.in_flight.unconcluded == [SECOND]
    # What was asked for was found: nothing can be on another page.
    assert len(bench.server.bodies("POST", "/flow_runs/filter")) == bench.questions


async def test_an_end_is_nothing_to_ask_about_when_every_run_here_has_ended() -> None:
    bench = Bench(FIRST)
    bench.in_flight.conclude(FIRST)
    bench.cancellations.hint_end()
    assert not await bench.rung()


@pytest.mark.parametrize(
    ("state_type", "name", "cancelled", "ended"),
    [
        ("CANCELLING", "Cancelling", True, False),
        ("CANCELLED", "Cancelling", True, False),
        ("CANCELLED", "Cancelled", False, True),
        ("COMPLETED", "Completed", False, True),
        ("FAILED", "TimedOut", False, True),
        ("CRASHED", "Crashed", False, True),
        ("RUNNING", "Running", False, False),
        ("PAUSED", "Suspended", False, False),
        ("SCHEDULED", "AwaitingRetry", False, False),
    ],
)
def test_what_a_state_means(state_type: str, name: str, *, cancelled: bool, ended: bool) -> None:
    run = FlowRun.read({"id": str(FIRST), "name": "run", "state_type": state_type, "state_name": name})
    assert (is_being_cancelled(run), has_ended(run)) == (cancelled, ended)


def given_up(_: Any) -> NoReturn:
    """What the client raises when it has tried often enough, without the waiting."""
    raise ServerFault("look for runs to cancel", "boom", status=500)


async def test_only_runs_in_flight_are_asked_for_and_cancelled() -> None:
    bench = Bench(FIRST, SECOND)
    bench.cancelling = {SECOND, THIRD}
    async with bench.client:
        assert await bench.cancellations.check_once() == INTERVAL
    assert bench.cancelled() == {SECOND}
    (question, *_) = bench.server.bodies("POST", "/flow_runs/filter")
    assert sorted(question["flow_runs"]["id"]["any_"]) == [str(FIRST), str(SECOND)]


async def test_with_nothing_in_flight_nothing_is_asked_even_after_a_hint() -> None:
    bench = Bench()
    async with bench.client:
        bench.cancellations.hint()
        await bench.cancellations.check_once()
    assert not bench.server.received


async def test_a_run_that_ends_during_the_question_is_left_alone() -> None:
    bench = Bench(FIRST)
    bench.cancelling = {FIRST}
    bench.on_question.append(bench.slots.close)
    async with bench.client:
        await bench.cancellations.check_once()
    assert not bench.cancelled()


async def test_one_run_the_server_cannot_read_does_not_hide_the_others() -> None:
    bench = Bench(FIRST, SECOND, THIRD)
    bench.server.on_call("POST", "/flow_runs/filter", given_up)
    for run_id, state in ((FIRST, "CANCELLING"), (THIRD, "RUNNING")):
        answer = {"id": str(run_id), "name": "run", "state_type": state}
        bench.server.on("GET", f"/flow_runs/{run_id}", answer)
    bench.server.on_call("GET", f"/flow_runs/{SECOND}", given_up)
    async with bench.client:
        await bench.cancellations.check_once()
    assert bench.cancelled() == {FIRST}


async def test_a_hint_brings_a_look_at_once_and_two_soon_after() -> None:
    bench = Bench(FIRST)
    async with bench.client:
        assert await bench.cancellations.check_once() == INTERVAL
        assert not await bench.rung()
        bench.cancellations.hint()
        assert await bench.rung()
        delays = [await bench.cancellations.check_once() for _ in range(4)]
        assert not await bench.rung()
    assert delays == [SOON, A_BIT_LATER, INTERVAL, INTERVAL]


async def test_a_cancellation_that_is_committed_after_its_event_is_seen_by_the_next_look() -> None:
    bench = Bench(FIRST)
    async with bench.client:
        bench.cancellations.hint()
        await bench.cancellations.check_once()
        assert not bench.cancelled()
        bench.cancelling = {FIRST}
        await bench.cancellations.check_once()
    assert bench.cancelled() == {FIRST}


@pytest.mark.parametrize("looks_before", range(5))
async def test_a_hint_during_a_look_is_followed_by_a_whole_row_of_looks(looks_before: int) -> None:
    bench = Bench(FIRST)
    async with bench.client:
        bench.cancellations.hint()
        await bench.rung()
        for _ in range(looks_before):
            await bench.cancellations.check_once()
        bench.on_question.append(bench.cancellations.hint)
        delay = await bench.cancellations.check_once()
        assert delay == SOON or await bench.rung()
        bench.on_question.clear()
        delays = [await bench.cancellations.check_once() for _ in range(3)]
    assert delays == [SOON, A_BIT_LATER, INTERVAL]


async def test_a_flood_of_hints_is_no_flood_of_questions() -> None:
    """The loop never goes on twice in a row without a pause between, however fast the hints come."""
    bench = Bench(FIRST)
    bench.on_question.append(bench.cancellations.hint)
    bench.cancellations.hint()
    at_once = 0
    async with bench.client:
        for _ in range(30):
            await bench.cancellations.check_once()
            bench.cancellations.hint()
            at_once += await bench.rung()
    assert bench.questions == 30
    assert at_once <= 1


async def test_the_bell_ends_the_wait_of_the_loop() -> None:
    bench = Bench(FIRST)
    seen = anyio.Event()
    bench.on_question.append(seen.set)

    async def loop() -> None:
        await bench.cancellations.wake.wait(timeout=3600)
        await bench.cancellations.check_once()

    async with bench.client, anyio.create_task_group() as tasks:
        tasks.start_soon(loop)
        bench.cancellations.hint()
        await seen.wait()


@pytest.mark.parametrize(
    ("looks", "interval", "expected"),
    [
        (None, 2.0, 2.0),
        (0, 2.0, SOON),
        (1, 2.0, SOON),
        (2, 2.0, A_BIT_LATER),
        (3, 2.0, 2.0),
        (99, 2.0, 2.0),
        (1, 0.05, 0.05),
        (2, 0.05, 0.05),
    ],
)
def test_next_look(looks: int | None, interval: float, expected: float) -> None:
    assert next_look(looks, interval=interval) == expected


@pytest.mark.parametrize(("looks", "expected"), [(None, True), (0, False), (1, False), (2, True), (3, True)])
def test_rings(looks: int | None, expected: bool) -> None:
    assert rings(looks) is expected
