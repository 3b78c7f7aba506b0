"""Which runs are claimed, when to ask again, and what is said when the server refuses the question."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from worker.api.models import FlowRun
from worker.runs.execution import Execution
from worker.runs.in_flight import InFlight
from worker.runs.poller import Poller, unclaimable
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATH = "/work_pools/p/get_scheduled_flow_runs"


def run(**fields: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "name": "r", "state_type": "SCHEDULED", "state_name": "Scheduled", **fields}


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
        ({"next_scheduled_start_time": (NOW + timedelta(seconds=5)).isoformat()}, False, True),
    ],
)
def test_what_may_be_claimed(fields: dict[str, Any], *, in_flight: bool, claimed: bool) -> None:
    reason = unclaimable(FlowRun.read(run(**fields)), now=NOW, in_flight=in_flight)
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
    ) -> None:
        self.executions: list[StartedExecution] = []
        self._minutes_per_claim = minutes_per_claim
        self.server = CannedServer()
        self.freed = Wake()
        self.in_flight = InFlight(limit=limit, freed=self.freed)
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

    async def poll(self, times: int = 1) -> float:
        delay = 0.0
        async with self.server.client() as client:
            poller = Poller(
                client=client,
                pool="p",
                work_queues=self._queues,
                prefetch=10,
                interval=10,
                in_flight=self.in_flight,
                start=self.start,
                now=lambda: self.now,
                random=lambda: 1.0,
            )
            for _ in range(times):
                delay = await poller.poll_once()
            assert poller.last_polled is not None
        return delay


async def test_runs_are_started_in_the_servers_order() -> None:
    bench = Bench()
    runs = [run() for _ in range(5)]
    bench.server.on("POST", PATH, [{"flow_run": one} for one in runs])
    await bench.poll()
    assert [str(one) for one in bench.started] == [one["id"] for one in runs]
    assert bench.server.bodies("POST", PATH) == [
        {"scheduled_before": (NOW + timedelta(seconds=10)).isoformat()}
    ]


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
