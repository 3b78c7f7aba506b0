"""Writes go one at a time, but none waits long for another."""

import anyio
import pytest

from worker.api.write_lane import WriteLane, writes

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/flow_runs/1", False),
        ("POST", "/flow_runs/filter", False),
        ("POST", "/flow_runs/count", False),
        ("POST", "/flow_runs/1/set_state", True),
        ("POST", "/work_pools/p/get_scheduled_flow_runs", True),
        ("POST", "/logs/", True),
        ("PATCH", "/flow_runs/1", True),
        ("DELETE", "/work_pools/p/workers/w", True),
    ],
)
def test_what_the_server_writes_for(method: str, path: str, *, expected: bool) -> None:
    assert writes(method, path) is expected


async def test_one_write_at_a_time_and_questions_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.api.write_lane.LONGEST_WAIT", 60.0)
    lane = WriteLane()
    under_way = 0
    most = 0
    asked = anyio.Event()

    async def write() -> None:
        nonlocal under_way, most
        async with lane.turn("PATCH", "/flow_runs/1"):
            under_way += 1
            most = max(most, under_way)
            await asked.wait()
            under_way -= 1

    async with anyio.create_task_group() as calls:
        for _ in range(3):
            calls.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        async with lane.turn("GET", "/flow_runs/1"):
            asked.set()
    assert (most, under_way) == (1, 0)


async def test_a_write_that_hangs_holds_no_other_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.api.write_lane.LONGEST_WAIT", 0.01)
    lane = WriteLane()
    async with anyio.create_task_group() as calls:

        async def hang() -> None:
            async with lane.turn("PATCH", "/1"):
                await anyio.sleep_forever()

        calls.start_soon(hang)
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            async with lane.turn("PATCH", "/2"):
                pass
        calls.cancel_scope.cancel()


async def test_a_cancelled_write_gives_its_turn_back() -> None:
    lane = WriteLane()
    async with anyio.create_task_group() as calls:

        async def hang() -> None:
            async with lane.turn("PATCH", "/1"):
                await anyio.sleep_forever()

        calls.start_soon(hang)
        await anyio.wait_all_tasks_blocked()
        calls.cancel_scope.cancel()
    with anyio.fail_after(5):
        async with lane.turn("PATCH", "/2"):
            pass
