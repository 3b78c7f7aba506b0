"""Which runs are claimed, when to ask again, and what is said when the server refuses the question."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import anyio
import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from tests.support.wait import wait_until
from worker.api.models import FlowRun, WorkPool
from worker.runs.arrivals import CALM_EACH, Arrivals
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight
from worker.runs.late_marking import DRAIN, MANY, PATIENCE, PERIOD, LateMarking
from worker.runs.latest_runs import LatestRuns
from worker.runs.lookahead import (
    PAUSE_BEFORE_QUESTION,
    Agenda,
    Leads,
    unclaimable,
)
from worker.runs.poller import SPARE, Poller
from worker.runs.questions import Questions
from worker.runs.serving import LONGEST_AGE, Serving
from worker.runs.shortcut import Shortcut
from worker.runs.starts import Starts
from worker.runs.tidying import FAILURES, LONGEST_QUIET, Tidying
from worker.runs.tidying import MANY as BACKLOG
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POOL, QUEUE = UUID(int=1001), UUID(int=1002)
PATH = "/work_pools/p/get_scheduled_flow_runs"
FILTER = "/flow_runs/filter"
QUEUES = "/work_pools/p/queues/filter"


def run(**fields: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "name": "r", "state_type": "SCHEDULED", "state_name": "Scheduled", **fields}


def scheduled(
    number: int, *, minutes_late: int, deployment: int = 1, schedule: int = 1, **fields: Any
) -> dict[str, Any]:
    """A missed run of a schedule, as the server shows it."""
    time = (NOW - timedelta(minutes=minutes_late)).isoformat()
    return run(
        id=str(UUID(int=number)),
        state_name="Late",
        deployment_id=str(UUID(int=deployment)),
        created_by={"type": "SCHEDULE", "id": str(UUID(int=schedule))},
        auto_scheduled=True,
        expected_start_time=time,
        next_scheduled_start_time=time,
        **fields,
    )


@pytest.mark.parametrize(
    ("fields", "in_flight", "claimed"),
    [
        ({}, False, True),
        ({"state_name": "Late"}, False, True),
        ({"state_name": "AwaitingRetry", "empirical_policy": {"retry_type": "reschedule"}}, False, True),
        ({"state_name": "Resuming"}, False, True),
        ({}, True, False),
        ({"state_type": "COMPLETED", "state_name": "Completed"}, False, False),
        ({"state_name": "AwaitingRetry", "empirical_policy": {"retry_type": "in_process"}}, False, False),
        (
            {
                "state_name": "AwaitingConcurrencySlot",
                "next_scheduled_start_time": (NOW + timedelta(seconds=5)).isoformat(),
            },
            False,
            False,
        ),
        (
            {"state_name": "AwaitingConcurrencySlot", "next_scheduled_start_time": NOW.isoformat()},
            False,
            True,
        ),
        ({"next_scheduled_start_time": (NOW + timedelta(seconds=2)).isoformat()}, False, True),
        ({"next_scheduled_start_time": (NOW + timedelta(seconds=2.1)).isoformat()}, False, False),
    ],
)
def test_what_may_be_claimed(fields: dict[str, Any], *, in_flight: bool, claimed: bool) -> None:
    leads = Leads(most=10)
    leads.measured(None, 2.0)
    reason = unclaimable(FlowRun.read(run(**fields)), now=NOW, in_flight=in_flight, leads=leads)
    assert (reason is None) is claimed


class StartedExecution:
    """Holds its slot from the claim on, like a real one, and never ends."""

    def __init__(self, flow_run_id: UUID, in_flight: InFlight, *, wins: bool) -> None:
        self._flow_run_id = flow_run_id
        self._in_flight = in_flight
        self._wins = wins

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")

    def end(self) -> None:
        self._slot.__exit__(None, None, None)

    async def claim_decided(self) -> None:
        self._slot = self._in_flight.slot(self._flow_run_id, self)
        self._slot.__enter__()
        if not self._wins:
            self._slot.__exit__(None, None, None)


class Bench:
    """A poller, its server, and what it started."""

    def __init__(
        self,
        *,
        limit: int | None = None,
        losing: int = 0,
        queues: tuple[str, ...] = (),
        minutes_per_claim: int = 0,
        max_late: float | None = None,
        only_latest: bool = False,
        seconds_per_skip: float = 0,
        skips_succeed: bool = True,
        prefetch: float = 10,
        max_starting: int = 1000,
        run_once: bool = False,
    ) -> None:
        self.skipped: list[tuple[int, str]] = []
        self.slept: list[float] = []
        self.answers: list[int] = []
        self.while_sleeping: Callable[[], None] = lambda: None
        self.while_settling: Callable[[], None] = lambda: None
        self.pool = WorkPool.read({"id": str(POOL), "name": "p"})
        self.withheld: str | None = None
        self.unmarked = 0
        self.collected: list[int] = []
        self._max_late = max_late
        self._only_latest = only_latest
        self._seconds_per_skip = seconds_per_skip
        self._skips_succeed = skips_succeed
        self._waiting: list[dict[str, Any]] = []
        self.executions: list[StartedExecution] = []
        self._minutes_per_claim = minutes_per_claim
        self.server = CannedServer()
        self.freed = Wake()
        self.clock = 0.0
        starts = Starts(most=lambda: max_starting, monotonic=lambda: self.clock)
        self.in_flight = InFlight(limit=limit, freed=self.freed, starts=starts)
        self.leads = Leads(most=prefetch, fixed=run_once)
        self._run_once = run_once
        self.now = NOW
        self.started: list[UUID] = []
        self._losing = losing
        self._queues = queues

    def start(self, flow_run: FlowRun) -> Execution:
        self.started.append(flow_run.id)
        self.now += timedelta(minutes=self._minutes_per_claim)
        wins = len(self.started) > self._losing
        self.executions.append(StartedExecution(flow_run.id, self.in_flight, wins=wins))
        return cast("Execution", self.executions[-1])

    def skip(self, flow_run: FlowRun, message: str) -> Execution:
        self.skipped.append((flow_run.id.int, message))
        self.now += timedelta(seconds=self._seconds_per_skip)
        if self._skips_succeed:
            self._waiting = [one for one in self._waiting if one["id"] != str(flow_run.id)]
        return cast("Execution", StartedExecution(flow_run.id, self.in_flight, wins=False))

    def serve(self, waiting: list[dict[str, Any]], *, shown: int = 200, seconds: float = 0) -> None:
        """Answer polls with the first `shown` of these runs; an answer to what is asked beside takes `seconds`.

        Runs that are skipped are handed out no more. Pages are of `shown` runs, too.
        """
        self._waiting = waiting

        def due(body: Any) -> tuple[int, Any]:
            self.now += timedelta(seconds=seconds)
            wanted = body["flow_runs"]["deployment_id"]["any_"]
            found = [one for one in self._waiting if one["deployment_id"] in wanted]
            found.sort(key=lambda one: str(one["expected_start_time"]), reverse=True)
            return 200, found[body["offset"] : body["offset"] + shown]

        self.server.on_call(
            "POST",
            PATH,
            lambda body: (200, [{"flow_run": one} for one in self._waiting[: body.get("limit", shown)]]),
        )
        self.server.on_call("POST", FILTER, due)
        self.server.on("POST", QUEUES, [{"id": str(QUEUE), "name": "default"}])
        for one in waiting:
            self.server.on("GET", f"/flow_runs/{one['id']}", one)

    async def _settled(self) -> None:
        self.while_settling()

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.while_sleeping()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the runs that were started."""
        return [one.int for one in self.started]

    @asynccontextmanager
    async def poller(self) -> AsyncGenerator[Poller]:
        marking = LateMarking(count=self._count, monotonic=lambda: self.clock)
        self.tidying = tidying = Tidying(
            collect=self._collect,
            marking=lambda: marking.goes_on,
            in_flight=lambda: len(self.in_flight),
            starting=lambda: self.in_flight.starting,
            monotonic=lambda: self.clock,
        )
        self.arrivals = arrivals = Arrivals(retried=tidying.failed, monotonic=lambda: self.clock)
        async with self.server.client() as client:
            questions = Questions(
                client=client,
                pool="p",
                work_queues=self._queues,
                answered=lambda: self.answers.append(len(self.started)),
                now=lambda: self.now,
            )

            def pause() -> float:
                return max(marking.pause(), tidying.pause(), arrivals.pause())

            yield Poller(
                questions=questions,
                serving=Serving(
                    questions=questions,
                    leads=self.leads,
                    in_flight=self.in_flight,
                    start=self.start,
                    skip=self.skip,
                    max_late=self._max_late,
                    latest=LatestRuns(client=client, now=lambda: self.now) if self._only_latest else None,
                    marking=marking,
                    tidying=tidying,
                    pause=pause,
                    now=lambda: self.now,
                ),
                agenda=Agenda(interval=10, random=lambda: 1.0, monotonic=lambda: self.clock),
                leads=self.leads,
                in_flight=self.in_flight,
                wake=self.freed,
                may_claim=lambda: self.withheld,
                pause=pause,
                now=lambda: self.now,
                run_once=self._run_once,
                sleep=self._sleep,
                settled=self._settled,
                shortcut=Shortcut(
                    questions=questions,
                    enabled=True,
                    pool=lambda: self.pool,
                    pool_of=lambda _: self.pool,
                    settled=self._settled,
                    monotonic=lambda: self.clock,
                ),
            )

    async def _count(self, _due_by: datetime) -> int:
        return self.unmarked

    async def _collect(self) -> None:
        self.collected.append(len(self.started))
        self.clock += 0.4

    async def poll(self, times: int = 1) -> float:
        """Poll so often, as late as each poll asks for; the last delay."""
        delay = 0.0
        async with self.poller() as poller:
            for _ in range(times):
                self.clock += delay
                delay = await poller.poll_once()
            assert poller.last_polled is not None
        return delay

    def questions(self) -> list[tuple[float, int | None]]:
        """How far ahead of now, in seconds, and for how many runs the server was asked."""
        return [
            ((datetime.fromisoformat(body["scheduled_before"]) - self.now).total_seconds(), body.get("limit"))
            for body in self.server.bodies("POST", PATH)
        ]


async def test_runs_are_started_in_the_servers_order() -> None:
    bench = Bench()
    runs = [run() for _ in range(5)]
    bench.server.on("POST", PATH, [{"flow_run": one} for one in runs])
    await bench.poll()
    assert [str(one) for one in bench.started] == [one["id"] for one in runs]
    assert bench.questions() == [(pytest.approx(14.25), None)], (
        "until the next poll, and how long a start takes"
    )


async def test_no_more_are_started_than_slots_are_free() -> None:
    bench = Bench(limit=2)
    bench.server.on("POST", PATH, [{"flow_run": run()} for _ in range(5)])
    await bench.poll()
    assert len(bench.started) == 2


async def test_a_lost_claim_leaves_its_slot_to_the_next_run() -> None:
    bench = Bench(limit=2, losing=2)
    bench.server.on("POST", PATH, [{"flow_run": run()} for _ in range(5)])
    await bench.poll()
    assert len(bench.started) == 4


async def test_lost_claims_do_not_ring_for_another_poll() -> None:
    bench = Bench(limit=3, losing=10)
    bench.server.on("POST", PATH, [{"flow_run": run()} for _ in range(5)])
    await bench.poll()
    assert len(bench.started) == 5
    assert not await bench.freed.wait(timeout=0)


@pytest.mark.parametrize(("waiting", "rings"), [(2, True), (1, False)])
async def test_a_freed_slot_rings_only_for_runs_that_wait(waiting: int, *, rings: bool) -> None:
    bench = Bench(limit=1)
    bench.server.on("POST", PATH, [{"flow_run": run()} for _ in range(waiting)])
    await bench.poll()
    bench.executions[0].end()
    assert await bench.freed.wait(timeout=0) is rings


async def test_an_answer_that_has_grown_old_is_not_claimed_from() -> None:
    """A finished run accepts Pending: what took long to claim has made the rest of the list worthless."""
    bench = Bench(minutes_per_claim=1)
    bench.server.on("POST", PATH, [{"flow_run": run()} for _ in range(5)])
    assert await bench.poll() == 0
    assert len(bench.started) == 1


async def test_without_a_free_slot_the_server_is_still_asked_for_nothing() -> None:
    bench = Bench(limit=1)
    bench.server.on("POST", PATH, [{"flow_run": run()}])
    await bench.poll(times=2)
    assert [body.get("limit") for body in bench.server.bodies("POST", PATH)] == [None, 0]
    assert len(bench.started) == 1


async def test_the_interval_is_spread() -> None:
    bench = Bench()
    bench.server.on("POST", PATH, [])
    assert await bench.poll() == pytest.approx(13.0)


async def test_an_unknown_queue_is_reported_once() -> None:
    bench = Bench(queues=("typo",))
    bench.server.on("POST", PATH, {"detail": "Work pool queue 'p/typo' not found."}, status=404)
    with capture_logs() as logs:
        await bench.poll(times=3)
        bench.server.on("POST", PATH, [])
        await bench.poll(times=1)
    refused = [entry for entry in logs if entry["event"] == "poll.refused"]
    assert len(refused) == 1
    assert "p/typo" in refused[0]["reason"]
    assert refused[0]["work_queues"] == ["typo"]


async def test_nothing_is_skipped_by_default() -> None:
    bench = Bench()
    bench.server.on("POST", PATH, [{"flow_run": scheduled(n, minutes_late=9000 - n)} for n in (1, 2)])
    assert await bench.poll() == pytest.approx(13.0)
    assert bench.numbers == [1, 2]
    assert bench.skipped == []


async def test_what_is_too_late_is_skipped_before_the_others_start() -> None:
    bench = Bench(max_late=3600)
    bench.serve([scheduled(1, minutes_late=90), run(id=str(UUID(int=2))), scheduled(3, minutes_late=5)])
    assert await bench.poll() == 0, "there may be more behind them"
    assert bench.skipped == [(1, "Skipped: it was due 1 h 30 min ago, more than --max-late 1h.")]
    assert bench.numbers == [2, 3]
    assert bench.server.bodies("POST", FILTER) == [], "only --only-latest needs to ask"


async def test_the_latest_of_a_cut_off_answer_is_asked_for_and_started_at_once() -> None:
    bench = Bench(only_latest=True)
    bench.serve([scheduled(n, minutes_late=100 - n) for n in range(1, 10)], shown=3)
    await bench.poll()
    assert bench.numbers == [9]
    assert [number for number, _ in bench.skipped] == [1, 2, 3]
    assert bench.server.bodies("POST", FILTER) == [
        {
            "flow_runs": {
                "deployment_id": {"any_": [str(UUID(int=1))]},
                "state": {
                    "type": {
                        "any_": [
                            "COMPLETED",
                            "CRASHED",
                            "FAILED",
                            "PAUSED",
                            "PENDING",
                            "RUNNING",
                            "SCHEDULED",
                        ]
                    }
                },
                "expected_start_time": {"before_": NOW.isoformat()},
            },
            "sort": "EXPECTED_START_TIME_DESC",
            "offset": 0,
        }
    ]


async def test_the_latest_of_each_schedule_is_looked_for_until_all_are_found() -> None:
    """Behind the runs of users, and those of a deployment that runs more often."""
    bench = Bench(only_latest=True)
    daily = [scheduled(n, minutes_late=1440 * (5 - n), deployment=1) for n in (1, 2, 3)]
    often = [scheduled(10 + n, minutes_late=90 - n, deployment=2) for n in range(1, 20)]
    by_hand = [
        {**scheduled(100 + n, minutes_late=5, deployment=1), "auto_scheduled": False} for n in range(9)
    ]
    bench.serve([daily[0], often[0], *daily[1:], *often[1:], *by_hand], shown=4)
    await bench.poll()
    assert bench.numbers == [29, 3]
    assert [number for number, _ in bench.skipped] == [1, 11, 2]
    asked = bench.server.bodies("POST", FILTER)
    assert [len(body["flow_runs"]["deployment_id"]["any_"]) for body in asked] == [2, 2, 2, 1, 1, 1]
    assert [body["offset"] for body in asked] == [0, 4, 8, 0, 4, 8]


async def test_without_a_missed_run_nothing_more_is_asked() -> None:
    bench = Bench(only_latest=True)
    bench.serve([run(id=str(UUID(int=50))), scheduled(1, minutes_late=-1)])
    assert await bench.poll() == pytest.approx(13.0)
    assert bench.numbers == [50]
    assert bench.server.bodies("POST", FILTER) == []


async def test_when_the_server_cannot_tell_the_latest_it_is_said_once_and_then_the_answers_own_is_kept() -> (
    None
):
    bench = Bench(only_latest=True)
    bench.server.on(
        "POST",
        PATH,
        [{"flow_run": scheduled(n, minutes_late=100 - n)} for n in (1, 2)] + [{"flow_run": run()}],
    )
    bench.server.on("POST", FILTER, {"detail": "no"}, status=422)
    with capture_logs() as logs:
        await bench.poll(times=3)
    assert len(bench.started) == 2, "the user's run at once, the schedule's at the second poll"
    assert bench.numbers[1] == 2
    assert [number for number, _ in bench.skipped] == [1, 1], "handed out again by this server"
    assert [one["log_level"] for one in logs if one["event"] == "poll.latest_unknown"] == ["warning"]


async def test_a_slow_word_on_the_latest_has_the_runs_asked_for_again() -> None:
    """What was learnt about the schedule holds; runs are claimed from a fresh answer only."""
    bench = Bench(only_latest=True)
    bench.serve([scheduled(n, minutes_late=100 - n) for n in range(1, 10)], shown=3, seconds=60)
    await bench.poll()
    assert len(bench.server.bodies("POST", PATH)) == 2
    assert [number for number, _ in bench.skipped] == [1, 2, 3]
    assert bench.numbers == [], "the latest is not in the fresh answer"


async def test_skipping_a_backlog_takes_turns_with_starting() -> None:
    bench = Bench(max_late=60, seconds_per_skip=0.9)
    backlog = [scheduled(n, minutes_late=100) for n in range(1, 8)]
    bench.serve([*backlog, run(id=str(UUID(int=50)))])
    assert await bench.poll() == 0
    assert [number for number, _ in bench.skipped] == [1, 2, 3]
    assert bench.numbers == [50]


async def test_skips_so_slow_that_nothing_can_start_give_way_at_the_next_poll() -> None:
    bench = Bench(max_late=60, seconds_per_skip=30)
    bench.serve([*(scheduled(n, minutes_late=100) for n in (1, 2)), run(id=str(UUID(int=50)))])
    assert await bench.poll(times=2) == pytest.approx(13.0)
    assert [number for number, _ in bench.skipped] == [1]
    assert bench.numbers == [50]


@pytest.mark.parametrize(
    ("now", "claimed"),
    [
        ({}, True),
        ({"state_type": "COMPLETED", "state_name": "Completed"}, False),
        ({"state_type": "PENDING", "state_name": "Pending"}, False),
        # run meanwhile, and scheduled again: the next answer tells when
        ({"state_id": str(UUID(int=9)), "next_scheduled_start_time": NOW.isoformat()}, False),
        ({"state_id": str(UUID(int=9)), "state_name": "Late"}, True),
    ],
)
async def test_a_run_of_an_answer_that_is_not_fresh_is_looked_at_before_it_is_claimed(
    now: dict[str, Any], *, claimed: bool
) -> None:
    """Another worker may have run it meanwhile, and the server lets a finished run be claimed again."""
    bench = Bench(max_late=60, seconds_per_skip=0.9)
    waiting = run(id=str(UUID(int=50)))
    bench.serve([scheduled(1, minutes_late=100), waiting])
    bench.server.on("GET", f"/flow_runs/{waiting['id']}", {**waiting, **now})
    await bench.poll()
    assert bench.numbers == ([50] if claimed else [])


async def test_a_run_is_not_skipped_that_has_been_run_meanwhile() -> None:
    bench = Bench(max_late=60, seconds_per_skip=0.9)
    skipped, ran = (scheduled(n, minutes_late=100) for n in (1, 2))
    bench.serve([skipped, ran])
    bench.server.on("GET", f"/flow_runs/{ran['id']}", {**ran, "state_type": "COMPLETED"})
    await bench.poll()
    assert [number for number, _ in bench.skipped] == [1]


async def test_no_more_than_fifty_are_skipped_at_a_time() -> None:
    bench = Bench(max_late=60)
    bench.serve([scheduled(n, minutes_late=100) for n in range(1, 121)])
    assert await bench.poll() == 0
    assert len(bench.skipped) == 50
    assert await bench.poll(times=2) == 0
    assert [number for number, _ in bench.skipped] == list(range(1, 121))


async def test_runs_that_cannot_be_skipped_neither_hurry_the_poller_nor_hide_the_others() -> None:
    bench = Bench(max_late=60, skips_succeed=False)
    bench.serve([scheduled(n, minutes_late=100) for n in range(1, 61)])
    assert await bench.poll() == 0
    assert {number for number, _ in bench.skipped} == set(range(1, 51))
    bench = Bench(max_late=60, skips_succeed=False)
    bench.serve([scheduled(n, minutes_late=100) for n in range(1, 61)])
    await bench.poll(times=2)
    assert {number for number, _ in bench.skipped} == set(range(1, 61))
    bench = Bench(max_late=60, skips_succeed=False)
    bench.serve([scheduled(n, minutes_late=100) for n in (1, 2)])
    assert await bench.poll(times=2) == pytest.approx(13.0)


async def test_a_skip_uses_a_slot_only_for_a_moment_and_none_that_is_taken() -> None:
    bench = Bench(limit=1, only_latest=True)
    bench.serve([scheduled(n, minutes_late=100 - n) for n in range(1, 5)])
    await bench.poll()
    assert [number for number, _ in bench.skipped] == [1, 2, 3]
    assert bench.numbers == [4]
    bench.serve([scheduled(9, minutes_late=200)])
    await bench.poll()
    assert len(bench.skipped) == 3, "the only slot is taken"


async def test_a_run_in_flight_or_not_to_be_claimed_yet_is_not_skipped() -> None:
    bench = Bench(max_late=60)
    soon = (NOW + timedelta(seconds=5)).isoformat()
    waiting = scheduled(2, minutes_late=100) | {
        "state_name": "AwaitingConcurrencySlot",
        "next_scheduled_start_time": soon,
    }
    with bench.in_flight.slot(UUID(int=1), StartedExecution(UUID(int=1), bench.in_flight, wins=True)):
        bench.serve([scheduled(1, minutes_late=100), waiting])
        assert await bench.poll() == pytest.approx(5.0, abs=0.01), "when the waiting one is due"
    assert bench.skipped == []
    assert bench.started == []


async def test_while_claims_are_withheld_the_queues_are_kept_ready_and_nothing_is_claimed() -> None:
    bench = Bench(max_late=60, only_latest=True)
    bench.withheld = "the journal cannot be written"
    bench.serve([run(id=str(UUID(int=50)), deployment_id=None), scheduled(1, minutes_late=100)])
    with capture_logs() as logs:
        assert await bench.poll() == pytest.approx(13.0)
    assert [body.get("limit") for body in bench.server.bodies("POST", PATH)] == [0]
    assert (bench.started, bench.skipped) == ([], [])
    assert [one["withheld"] for one in logs if one["event"] == "poll.done"] == [bench.withheld]
    bench.withheld = None
    await bench.poll()
    assert bench.numbers == [50]


def at(seconds: float, number: int, **fields: Any) -> dict[str, Any]:
    """A run that is due so many seconds from now."""
    due = (NOW + timedelta(seconds=seconds)).isoformat()
    return run(id=str(UUID(int=number)), next_scheduled_start_time=due, **fields)


async def test_a_run_that_is_due_later_is_left_until_its_start_takes_it_there() -> None:
    bench = Bench()
    bench.leads.measured(None, 2.0)
    waiting = [at(6, 1)]
    bench.serve(waiting)
    async with bench.poller() as poller:
        assert await poller.poll_once() == pytest.approx(4.0, abs=0.01)
        assert bench.numbers == []
        assert bench.questions() == [(pytest.approx(16.0), None), (pytest.approx(2.0), None)]
        bench.clock, bench.now = 4.01, NOW + timedelta(seconds=4.01)
        await poller.poll_once()
    assert bench.numbers == [1]


async def test_with_no_prefetch_nothing_is_claimed_before_it_is_due() -> None:
    bench = Bench(prefetch=0)
    bench.leads.measured(None, 2.0)
    bench.serve([at(0.5, 1)])
    assert await bench.poll() == pytest.approx(0.5, abs=0.01)
    assert bench.numbers == []


async def test_runs_that_are_due_later_do_not_push_out_those_that_are_due() -> None:
    """The server orders by priority first, and cuts its answer: only one without later runs is claimed from."""
    bench = Bench()
    urgent, due = [at(5, n) for n in (1, 2)], at(-5, 3)

    def answer(body: Any) -> tuple[int, Any]:
        before = datetime.fromisoformat(body["scheduled_before"])
        found = [
            one
            for one in (*urgent, due)
            if datetime.fromisoformat(one["next_scheduled_start_time"]) <= before
        ]
        return 200, [{"flow_run": one} for one in found[:2]]

    bench.server.on_call("POST", PATH, answer)
    await bench.poll()
    assert bench.numbers == [3]
    assert len(bench.questions()) == 2


async def test_after_a_wake_no_more_is_asked_for_than_can_start() -> None:
    bench = Bench(limit=2)
    waiting = [run(id=str(UUID(int=n))) for n in range(1, 30)]
    bench.serve(waiting)
    async with bench.poller() as poller:
        await poller.poll_once()
        assert bench.numbers == [1, 2]
        for done in (0, 1, 2):
            del waiting[0]
            bench.executions[done].end()
            assert await bench.freed.wait(timeout=0)
            await poller.poll_once()
        assert bench.numbers == [1, 2, 3, 4, 5]
        assert [limit for _, limit in bench.questions()] == [None], "the first answer has them all"
        bench.now += LONGEST_AGE + timedelta(seconds=1)
        del waiting[0]
        bench.executions[3].end()
        await poller.poll_once()
    assert bench.numbers[-1] == 6
    assert [limit for _, limit in bench.questions()] == [None, 1 + SPARE], "an old answer is no answer"


async def test_what_there_was_no_room_for_is_looked_at_again_and_left_to_who_has_run_it() -> None:
    bench = Bench(limit=1)
    waiting = [run(id=str(UUID(int=n))) for n in (1, 2, 3)]
    bench.serve(waiting)
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.now += timedelta(seconds=1)
        bench.server.on("GET", f"/flow_runs/{waiting[1]['id']}", {**waiting[1], "state_type": "COMPLETED"})
        bench.executions[0].end()
        await poller.poll_once()
    assert bench.numbers == [1, 3]
    assert len(bench.questions()) == 1


async def test_news_is_asked_about_although_runs_of_the_last_answer_wait() -> None:
    bench = Bench(limit=1)
    waiting = [run(id=str(UUID(int=n))) for n in (1, 2)]
    bench.serve(waiting)
    async with bench.poller() as poller:
        await poller.poll_once()
        poller.hint()
        waiting.insert(0, run(id=str(UUID(int=9))))
        bench.serve(waiting)
        bench.executions[0].end()
        await poller.poll_once()
    assert bench.numbers == [1, 9]


async def test_nothing_is_claimed_while_the_server_marks_late_runs() -> None:
    bench = Bench(limit=1)
    long_due = (NOW - timedelta(seconds=30)).isoformat()
    bench.serve([run(next_scheduled_start_time=long_due) for _ in range(3)])
    bench.unmarked = MANY
    async with bench.poller() as poller:
        delay = await poller.poll_once()
        assert not bench.started
        assert 0 < delay <= DRAIN + PERIOD + PATIENCE
        bench.clock += delay
        await poller.poll_once()
    assert len(bench.started) == 1


async def test_before_many_runs_are_begun_the_server_collects_its_garbage_once() -> None:
    bench = Bench(limit=2)
    bench.serve([run(state_name="Late") for _ in range(BACKLOG)])
    async with bench.poller() as poller:
        await poller.poll_once()
    assert set(bench.collected) == {0}, "before the first was begun"
    assert len(bench.started) == 2


async def test_nothing_is_begun_until_those_that_start_are_through_and_the_server_has_collected() -> None:
    bench = Bench(limit=2)
    bench.serve([run() for _ in range(BACKLOG + 2)])
    async with bench.poller() as poller:
        await poller.poll_once()
        assert len(bench.started) == 2
        assert bench.collected == []
        bench.tidying.failed(FAILURES)
        bench.executions[0].end()
        delay = await poller.poll_once()
        assert 0 < delay <= LONGEST_QUIET
        assert (len(bench.started), bench.collected) == (2, [])
        bench.clock += LONGEST_QUIET
        await poller.poll_once()
    assert set(bench.collected) == {2}, "the other one has had its time"
    assert len(bench.started) == 3


async def test_runs_that_cannot_be_claimed_do_not_hide_one_that_can() -> None:
    bench = Bench(limit=1, losing=300)
    bench.serve([run(id=str(UUID(int=n))) for n in range(1, 302)], shown=400)
    async with bench.poller() as poller:
        await poller.poll_once()
    assert bench.numbers[-1] == 301
    bench = Bench(limit=1)
    waiting: list[dict[str, Any]] = []
    bench.serve(waiting)
    async with bench.poller() as poller:
        await poller.poll_once()
        waiting.extend(
            run(state_name="AwaitingRetry", empirical_policy={"retry_type": "in_process"})
            for _ in range(1 + SPARE)
        )
        waiting.append(run(id=str(UUID(int=4))))
        await poller.poll_once()
    assert bench.numbers == [4]
    assert [limit for _, limit in bench.questions()] == [None, 1 + SPARE, None]


async def test_no_more_start_at_once_than_may_and_the_next_follow_when_one_has_started() -> None:
    bench = Bench(max_starting=2)
    waiting = [run(id=str(UUID(int=n))) for n in range(1, 4)]
    bench.serve(waiting)
    async with bench.poller() as poller:
        await poller.poll_once()
        assert bench.numbers == [1, 2]
        del waiting[:2]
        assert not await bench.freed.wait(timeout=0)
        bench.in_flight.started(UUID(int=1), connected=True, engine=True)
        assert await bench.freed.wait(timeout=0)
        await poller.poll_once()
    assert bench.numbers == [1, 2, 3]


async def test_while_full_the_server_is_asked_only_to_keep_the_queues_ready() -> None:
    bench = Bench(limit=1)
    bench.serve([run(), run()])
    async with bench.poller() as poller:
        await poller.poll_once()
        for _ in range(5):
            poller.hint()
            assert await poller.poll_once() == pytest.approx(13.0)
        assert [limit for _, limit in bench.questions()] == [None]
        bench.clock = 13.0
        await poller.poll_once()
        assert [limit for _, limit in bench.questions()] == [None, 0]
        bench.executions[0].end()
        assert await bench.freed.wait(timeout=0), "what was heard meanwhile is not forgotten"


async def test_after_a_hint_the_question_is_put_a_few_times() -> None:
    """An event can be published before what it tells of is there."""
    bench = Bench()
    waiting: list[dict[str, Any]] = []
    bench.serve(waiting)
    async with bench.poller() as poller:
        assert await poller.poll_once() == pytest.approx(13.0)
        poller.hint()
        assert await bench.freed.wait(timeout=0)
        assert await poller.poll_once() == pytest.approx(0.15)
        assert await poller.poll_once() == pytest.approx(0.5)
        assert await poller.poll_once() == pytest.approx(13.0)
        poller.hint()
        waiting.append(run(id=str(UUID(int=1))))
        assert await poller.poll_once() == pytest.approx(13.0), "found"
    assert bench.numbers == [1]


async def test_a_run_handed_out_again_while_its_process_lingers_starts_when_that_is_gone() -> None:
    bench = Bench(limit=1)
    bench.serve([run(id=str(UUID(int=1)))])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.in_flight.conclude(UUID(int=1))
        assert bench.in_flight.room == 1
        await poller.poll_once()
        assert bench.numbers == [1]
        assert not await bench.freed.wait(timeout=0)
        bench.executions[0].end()
        assert await bench.freed.wait(timeout=0)
        await poller.poll_once()
    assert bench.numbers == [1, 1]


async def test_run_once_starts_all_that_is_found_however_few_may_start_at_once() -> None:
    bench = Bench(max_starting=1, run_once=True)
    waiting = [at(9, 1), at(-5, 2), at(-5, 3)]
    bench.serve(waiting)
    async with bench.poller() as poller, anyio.create_task_group() as tasks:
        tasks.start_soon(poller.poll_once)
        for number in (1, 2, 3):
            await wait_until(
                lambda number=number: bench.numbers[-1:] == [number], description=f"run {number}"
            )
            waiting.remove(next(one for one in waiting if one["id"] == str(UUID(int=number))))
            bench.in_flight.started(UUID(int=number), connected=True, engine=True)
    assert bench.numbers == [1, 2, 3]


async def test_while_many_runs_are_made_the_server_is_left_alone() -> None:
    bench = Bench()
    bench.serve([run(), run()])
    async with bench.poller() as poller:
        for number in range(2):
            bench.arrivals.heard(UUID(int=number))
            poller.hint(UUID(int=number))
        assert await poller.poll_once() == pytest.approx(CALM_EACH)
        assert bench.started == []
        assert bench.questions() == [], "a question makes it write, too"
        bench.clock += CALM_EACH
        await poller.poll_once()
        assert len(bench.started) == 2


@pytest.mark.parametrize("moment", ["while_sleeping", "while_settling"])
async def test_runs_that_are_made_while_a_question_waits_for_its_moment_put_it_off(moment: str) -> None:
    bench = Bench()
    bench.serve([run()])
    async with bench.poller() as poller:
        arrived: Callable[[], None] = lambda: bench.arrivals.heard(UUID(int=2))  # noqa: E731
        setattr(bench, moment, arrived)
        bench.arrivals.heard(UUID(int=1))
        poller.hint(UUID(int=1))
        assert await poller.poll_once() == pytest.approx(CALM_EACH)
        assert bench.questions() == []


async def test_after_a_hint_the_question_waits_until_what_it_tells_of_is_committed() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        assert bench.slept == []
        poller.hint()
        await poller.poll_once()
    assert bench.slept == [PAUSE_BEFORE_QUESTION]


def alone(number: int, **fields: Any) -> dict[str, Any]:
    """A run that can be found by reading it."""
    return run(id=str(UUID(int=number)), work_pool_id=str(POOL), work_queue_id=str(QUEUE), **fields)


async def test_one_run_after_the_other_is_started_without_a_question() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        for number in (1, 2, 3):
            bench.serve([alone(number)])
            poller.hint(UUID(int=number))
            assert await bench.freed.wait(timeout=0)
            assert await poller.poll_once() == pytest.approx(13.0)
    assert bench.numbers == [1, 2, 3]
    assert len(bench.questions()) == 1, "the first one"
    assert bench.slept == []


async def test_two_runs_are_asked_about_and_so_is_one_when_others_wait() -> None:
    bench = Bench(limit=3)
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(number) for number in (1, 2, 3, 4)])
        poller.hint(UUID(int=1))
        poller.hint(UUID(int=2))
        await poller.poll_once()
        assert (bench.numbers, len(bench.questions())) == ([1, 2, 3], 2)
        for execution in bench.executions:
            execution.end()
        bench.serve([alone(4), alone(5)])
        poller.hint(UUID(int=5))
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1, 2, 3, 4, 5], 3)


async def test_a_run_that_was_not_found_yet_is_asked_about_with_the_next_one() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.server.on("GET", f"/flow_runs/{UUID(int=1)}", {"detail": "Flow run not found"}, status=404)
        poller.hint(UUID(int=1))
        assert await poller.poll_once() == pytest.approx(0.15), "it is not there yet"
        bench.serve([alone(1), alone(2)])
        poller.hint(UUID(int=2))
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1, 2], 3)


async def test_a_run_whose_time_has_come_is_not_overtaken() -> None:
    bench = Bench(limit=1)
    due = alone(1, next_scheduled_start_time=(NOW + timedelta(seconds=5)).isoformat())
    bench.serve([due])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.now += timedelta(seconds=5)
        bench.serve([due, alone(2)])
        poller.hint(UUID(int=2))
        await poller.poll_once()
    assert bench.numbers == [1]


async def test_the_look_ahead_is_not_put_off_by_runs_that_are_heard_of() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        bench.clock += await poller.poll_once()
        bench.serve([alone(1)])
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1], 2)


async def test_without_room_a_run_is_not_looked_at() -> None:
    bench = Bench(limit=1)
    bench.serve([alone(1)])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(2)])
        poller.hint(UUID(int=2))
        await poller.poll_once()
        assert not looked_at(bench)
        bench.executions[0].end()
        await poller.poll_once()
    assert bench.numbers == [1, 2]


async def test_a_poll_that_is_to_be_the_only_one_is_a_question() -> None:
    bench = Bench(run_once=True)
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1)])
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1], 2)


async def test_after_an_answer_that_may_have_been_cut_off_the_next_run_is_asked_about() -> None:
    bench = Bench(limit=1, losing=100)
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(number) for number in range(1, SPARE + 2)])
        poller.hint()
        await poller.poll_once()
        asked = len(bench.questions())
        bench.serve([alone(50)])
        poller.hint(UUID(int=50))
        await poller.poll_once()
        assert len(bench.questions()) > asked


async def test_after_a_question_that_was_refused_the_next_run_is_asked_about() -> None:
    bench = Bench()
    bench.server.on("POST", PATH, {"detail": "Work pool queue 'p/typo' not found."}, status=404)
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.server.on("GET", f"/flow_runs/{UUID(int=1)}", alone(1))
        bench.server.on("POST", QUEUES, [{"id": str(QUEUE), "name": "default"}])
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert bench.numbers == []
    assert not looked_at(bench)


async def test_a_run_that_took_long_to_read_is_looked_at_once_more_before_it_is_claimed() -> None:
    bench = Bench()
    bench.serve([])

    def slowly(_body: Any) -> tuple[int, Any]:
        bench.now += timedelta(seconds=0.2)
        return 200, alone(1)

    async with bench.poller() as poller:
        await poller.poll_once()
        answers = len(bench.answers)
        bench.server.on_call("GET", f"/flow_runs/{UUID(int=1)}", slowly)
        bench.server.on("POST", QUEUES, [{"id": str(QUEUE), "name": "default"}])
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert (bench.numbers, looked_at(bench)) == ([1], 2)
    assert len(bench.answers) == answers + 1, "what is read for it from now on is younger"


def looked_at(bench: Bench) -> int:
    """How often a run was read."""
    return sum(path.startswith("/flow_runs/") and path != FILTER for _, path, _ in bench.server.received)


@pytest.mark.parametrize("judging", [{"max_late": 60.0}, {"only_latest": True}])
async def test_where_runs_may_be_skipped_all_that_wait_are_asked_for(judging: dict[str, Any]) -> None:
    bench = Bench(**judging)
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1, deployment_id=str(UUID(int=7)))])
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1], 2)


async def test_a_run_that_is_for_later_is_asked_about_when_its_time_comes() -> None:
    bench = Bench()
    bench.serve([])
    later = (NOW + timedelta(seconds=5)).isoformat()
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1, next_scheduled_start_time=later)])
        poller.hint(UUID(int=1))
        delay = await poller.poll_once()
        assert delay == pytest.approx(4.75, abs=0.01), "so long before it as a start takes"
        assert (bench.numbers, len(bench.questions())) == ([], 1)
        bench.now += timedelta(seconds=delay)
        bench.clock += delay
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([1], 2)


async def test_a_run_that_its_own_process_retries_is_left_to_the_server() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1, empirical_policy={"retry_type": "in_process"})])
        poller.hint(UUID(int=1))
        await poller.poll_once()
        await poller.poll_once()
    assert (bench.numbers, len(bench.questions())) == ([], 2)


async def test_a_run_is_not_claimed_while_others_are_being_made_at_that_moment() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1)])
        bench.arrivals.heard(UUID(int=1))
        poller.hint(UUID(int=1))
        bench.while_settling = lambda: bench.arrivals.heard(UUID(int=2))
        assert await poller.poll_once() == pytest.approx(CALM_EACH)
    assert (bench.numbers, len(bench.questions())) == ([], 1)


async def test_while_nothing_may_be_claimed_a_run_is_not_looked_at() -> None:
    bench = Bench()
    bench.serve([])
    async with bench.poller() as poller:
        await poller.poll_once()
        bench.serve([alone(1)])
        bench.withheld = "the disk is full"
        poller.hint(UUID(int=1))
        await poller.poll_once()
    assert bench.numbers == []
    assert not looked_at(bench)


async def test_the_poller_is_idle_when_nothing_waits_to_be_claimed() -> None:
    bench = Bench(limit=1)
    bench.serve([scheduled(1, minutes_late=-1)])
    async with bench.poller() as poller:
        assert not poller.idle, "nobody has looked"
        await poller.poll_once()
        assert poller.idle, "it is for later"
        poller.hint()
        assert not poller.idle
        bench.serve([run()])
        await poller.poll_once()
        assert not poller.idle, "there was one, there may be more"


async def test_that_runs_were_listed_is_told_before_the_first_of_them_is_started() -> None:
    bench = Bench()
    bench.serve([run(), run()])
    await bench.poll()
    assert bench.answers == [0] * len(bench.questions())
    assert len(bench.started) == 2
