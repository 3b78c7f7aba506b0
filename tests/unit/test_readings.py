"""What a run is prepared from: read ahead for one run, or once for runs in a row; for a moment, and never older than the run."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import pytest

from tests.support.canned import CannedServer
from worker.api.client import PrefectClient
from worker.api.models import FlowRun, WorkPool
from worker.runs.readings import (
    LONGEST_AHEAD,
    LONGEST_SHARED,
    MOST_AHEAD,
    MOST_FLOWS,
    DeploymentGone,
    Reading,
    Readings,
)

pytestmark = pytest.mark.anyio

DEPLOYMENT, FLOW = uuid4(), uuid4()


@dataclass
class OnePool:
    """The pool, and how often it was read."""

    reads: int = 0
    worker_id: str | None = None

    async def read(self) -> WorkPool:
        self.reads += 1
        return WorkPool.read({"id": str(UUID(int=1)), "name": "p", "type": "process"})


@dataclass
class Bench:
    """A server with one deployment that changes whenever it is read."""

    server: CannedServer = field(default_factory=CannedServer)
    pool: OnePool = field(default_factory=OnePool)
    now: float = 100.0
    reads: int = 0

    def __post_init__(self) -> None:
        self.server.on_call("GET", f"/deployments/{DEPLOYMENT}", self.deployment)
        self.server.on("GET", f"/flows/{FLOW}", {"id": str(FLOW), "name": "f"})

    def deployment(self, _body: Any) -> tuple[int, Any]:
        self.reads += 1
        return 200, {"id": str(DEPLOYMENT), "name": f"read {self.reads}"}

    def readings(self, client: PrefectClient) -> Readings:
        return Readings(client=client, pool=self.pool, monotonic=lambda: self.now)


def a_run() -> FlowRun:
    return FlowRun.read({"id": str(uuid4()), "deployment_id": str(DEPLOYMENT), "flow_id": str(FLOW)})


async def test_what_was_read_ahead_of_a_run_is_not_read_again_for_it() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        reading = await readings.of(run)
    assert reading.deployment is not None
    assert reading.deployment.name == "read 1"
    assert reading.flow is not None
    assert (bench.reads, bench.pool.reads) == (1, 1)


async def test_it_is_for_that_run_alone_and_once() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        other = await readings.of(a_run())
        readings.answered()
        first = await readings.of(run)
        again = await readings.of(run)
    names = [one.deployment.name for one in (other, first, again) if one.deployment]
    assert names == ["read 2", "read 1", "read 3"]


async def test_after_a_moment_it_counts_no_more() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        bench.now += LONGEST_AHEAD + 0.1
        reading = await readings.of(run)
    assert reading.deployment is not None
    assert reading.deployment.name == "read 2"


async def test_what_is_being_read_is_waited_for() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        tasks.start_soon(readings.read_ahead, run.id, DEPLOYMENT)
        await anyio.wait_all_tasks_blocked()
        await readings.of(run)
    assert bench.reads == 1


async def test_who_asks_is_told_when_nothing_is_being_read_ahead_any_more() -> None:
    bench = Bench()
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        await readings.settled()
        tasks.start_soon(readings.read_ahead, uuid4(), DEPLOYMENT)
        await anyio.lowlevel.checkpoint()
        await readings.settled()
        assert (bench.reads, bench.pool.reads) == (1, 1)


async def test_what_could_not_be_read_ahead_is_read_when_it_is_needed() -> None:
    bench, run = Bench(), a_run()
    answers: list[tuple[int, Any]] = [(503, {}), (200, {"id": str(DEPLOYMENT), "name": "now"})]
    bench.server.on_call("GET", f"/deployments/{DEPLOYMENT}", lambda _: answers.pop(0))
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        reading = await readings.of(run)
    assert reading.deployment is not None
    assert reading.deployment.name == "now"


async def test_a_deployment_that_is_gone_says_so_when_it_is_needed() -> None:
    bench, run = Bench(), a_run()
    bench.server.on_call("GET", f"/deployments/{DEPLOYMENT}", lambda _: (404, {"detail": "gone"}))
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        with pytest.raises(DeploymentGone):
            await readings.of(run)


async def test_whatever_keeps_it_from_being_read_ahead_is_nobody_elses_trouble() -> None:
    bench, run = Bench(), a_run()
    read = bench.pool.read

    async def fails() -> WorkPool:
        bench.pool.read = read
        raise RuntimeError("can't start new thread")

    bench.pool.read = fails
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        assert (await readings.of(run)).pool.name == "p"


async def test_what_was_read_of_another_deployment_than_the_runs_does_not_count() -> None:
    bench, other, run = Bench(), uuid4(), a_run()
    bench.server.on("GET", f"/deployments/{other}", {"id": str(other), "name": "another"})
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, other)
        reading = await readings.of(run)
    assert reading.deployment is not None
    assert reading.deployment.id == DEPLOYMENT


async def test_a_run_that_is_told_of_again_is_read_ahead_of_again() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(run.id, DEPLOYMENT)
        await readings.read_ahead(run.id, DEPLOYMENT)
        reading = await readings.of(run)
    assert reading.deployment is not None
    assert reading.deployment.name == "read 2"
    assert bench.reads == 2


async def test_only_so_many_runs_are_read_ahead_of_and_old_ones_make_room() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        for _ in range(MOST_AHEAD + 3):
            await readings.read_ahead(uuid4(), DEPLOYMENT)
        assert bench.reads == MOST_AHEAD
        bench.now += LONGEST_AHEAD + 0.1
        await readings.read_ahead(uuid4(), DEPLOYMENT)
        assert bench.reads == MOST_AHEAD + 1


async def test_runs_of_one_answer_are_read_for_once() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        readings.answered()
        first = await readings.of(a_run())
        bench.now += LONGEST_SHARED
        second = await readings.of(a_run())
    assert first == second
    assert (bench.reads, bench.pool.reads) == (1, 1)


async def test_runs_of_one_answer_that_are_started_at_the_same_time_are_read_for_once() -> None:
    bench = Bench()
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        for _ in range(3):
            tasks.start_soon(readings.of, a_run())
    assert (bench.reads, bench.pool.reads) == (1, 1)


async def test_a_slow_server_is_asked_once_for_all_that_wait_for_its_answer() -> None:
    bench = Bench()

    def slowly(_body: Any) -> tuple[int, Any]:
        bench.now += 2 * LONGEST_SHARED
        return bench.deployment(None)

    bench.server.on_call("GET", f"/deployments/{DEPLOYMENT}", slowly)
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        for _ in range(3):
            tasks.start_soon(readings.of, a_run())
    assert (bench.reads, bench.pool.reads) == (1, 1)


async def test_of_those_that_wait_for_a_reading_that_fails_one_reads_for_the_others() -> None:
    bench, found = Bench(), list[str]()
    answers: list[tuple[int, Any]] = [
        (404, {"detail": "gone"}),
        (200, {"id": str(DEPLOYMENT), "name": "back"}),
    ]
    bench.server.on_call("GET", f"/deployments/{DEPLOYMENT}", lambda _: answers.pop(0))
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)

        async def one() -> None:
            try:
                reading = await readings.of(a_run())
            except DeploymentGone:
                found.append("gone")
            else:
                assert reading.deployment is not None
                found.append(reading.deployment.name)

        for _ in range(4):
            tasks.start_soon(one)
    assert sorted(found) == ["back", "back", "back", "gone"]
    assert answers == []


async def test_what_was_read_for_one_run_counts_for_others_for_a_moment_only() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.of(a_run())
        bench.now += LONGEST_SHARED + 0.1
        late = await readings.of(a_run())
    assert late.deployment is not None
    assert late.deployment.name == "read 2"


async def test_a_run_that_a_later_answer_lists_sees_what_was_saved_before_it_was_made() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.of(a_run())
        readings.answered()
        later = await readings.of(a_run())
    assert later.deployment is not None
    assert later.deployment.name == "read 2"


async def test_what_failed_for_one_run_is_read_again_for_the_next() -> None:
    bench = Bench()
    answers: list[tuple[int, Any]] = [
        (404, {"detail": "gone"}),
        (200, {"id": str(DEPLOYMENT), "name": "back"}),
    ]
    bench.server.on_call("GET", f"/deployments/{DEPLOYMENT}", lambda _: answers.pop(0))
    async with bench.server.client() as client:
        readings = bench.readings(client)
        with pytest.raises(DeploymentGone):
            await readings.of(a_run())
        reading = await readings.of(a_run())
    assert reading.deployment is not None
    assert reading.deployment.name == "back"


async def test_a_run_that_is_given_up_while_it_is_read_for_leaves_the_others_to_themselves() -> None:
    bench = Bench()
    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        first = anyio.CancelScope()

        async def given_up() -> None:
            with first:
                await readings.of(a_run())

        tasks.start_soon(given_up)
        await anyio.lowlevel.checkpoint()
        first.cancel()
        assert (await readings.of(a_run())).pool.name == "p"


async def test_what_was_read_before_a_deployment_was_changed_does_not_count() -> None:
    bench = Bench()
    first, second = a_run(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.read_ahead(first.id, DEPLOYMENT)
        readings.forget()
        assert name_of(await readings.of(first)) == "read 2"
        readings.forget()
        assert name_of(await readings.of(second)) == "read 3"


async def test_what_is_being_read_when_a_deployment_is_changed_does_not_count() -> None:
    bench, run, names = Bench(), a_run(), list[str | None]()

    async def prepare(readings: Readings) -> None:
        names.append(name_of(await readings.of(run)))

    async with bench.server.client() as client, anyio.create_task_group() as tasks:
        readings = bench.readings(client)
        tasks.start_soon(readings.read_ahead, run.id, DEPLOYMENT)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(prepare, readings)
        await anyio.lowlevel.checkpoint()
        readings.forget()
    assert (names, bench.reads) == (["read 2"], 2)


async def test_the_pool_that_was_read_ahead_counts_as_long_as_the_reading_would() -> None:
    bench, run = Bench(), a_run()
    async with bench.server.client() as client:
        readings = bench.readings(client)
        assert readings.pool_ahead(run.id) is None
        await readings.read_ahead(run.id, DEPLOYMENT)
        assert readings.pool_ahead(run.id) is not None
        bench.now += LONGEST_AHEAD + 0.1
        assert readings.pool_ahead(run.id) is None
        await readings.read_ahead(run.id, DEPLOYMENT)
        assert readings.pool_ahead(run.id) is not None
        readings.forget()
        assert readings.pool_ahead(run.id) is None
        bench.server.on("GET", f"/deployments/{DEPLOYMENT}", {"detail": "gone"}, status=404)
        await readings.read_ahead(run.id, DEPLOYMENT)
        assert readings.pool_ahead(run.id) is None


def name_of(reading: Reading) -> str | None:
    return reading.deployment and reading.deployment.name


async def test_deployments_are_not_taken_for_each_other() -> None:
    bench, other = Bench(), uuid4()
    bench.server.on("GET", f"/deployments/{other}", {"id": str(other), "name": "another"})
    async with bench.server.client() as client:
        readings = bench.readings(client)
        await readings.of(a_run())
        reading = await readings.of(FlowRun.read({"id": str(uuid4()), "deployment_id": str(other)}))
    assert reading.deployment is not None
    assert reading.deployment.name == "another"


async def test_a_run_without_a_deployment_or_with_a_deleted_flow_has_none() -> None:
    bench = Bench()
    bench.server.on_call("GET", f"/flows/{FLOW}", lambda _: (404, {"detail": "gone"}))
    run = FlowRun.read({"id": str(uuid4()), "flow_id": str(FLOW)})
    async with bench.server.client() as client:
        reading = await bench.readings(client).of(run)
    assert reading.deployment is None
    assert reading.flow is None


async def test_a_flow_is_read_once_as_long_as_it_is_not_the_oldest_of_very_many() -> None:
    bench = Bench()
    reads: list[UUID] = []

    def a_run_of(flow: UUID) -> FlowRun:
        def read(_body: Any) -> tuple[int, Any]:
            reads.append(flow)
            return 200, {"id": str(flow), "name": f"flow {flow.int}"}

        bench.server.on_call("GET", f"/flows/{flow}", read)
        return FlowRun.read({"id": str(uuid4()), "flow_id": str(flow)})

    flows = [UUID(int=number) for number in range(1, MOST_FLOWS + 2)]
    async with bench.server.client() as client:
        readings = bench.readings(client)
        for flow in [*flows[:-1], flows[0]]:
            await readings.of(a_run_of(flow))
        assert reads == flows[:-1]
        for flow in [flows[-1], flows[1], flows[0]]:
            await readings.of(a_run_of(flow))
    assert reads == [*flows, flows[0]]
