"""A run that was heard of: when reading it tells as much as the question for runs, and when only the server can tell."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from tests.support.canned import CannedServer
from worker.api.client import PrefectClient
from worker.api.models import FlowRun, WorkPool, WorkQueue
from worker.runs.questions import Questions
from worker.runs.shortcut import Shortcut, must_ask

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER, QUEUE, POOL = (UUID(int=number) for number in (1, 2, 3, 4))
A_RUN = {
    "id": str(RUN),
    "state_type": "SCHEDULED",
    "state_name": "Scheduled",
    "work_pool_id": str(POOL),
    "work_queue_id": str(QUEUE),
}
A_QUEUE = {"id": str(QUEUE), "name": "default"}
A_POOL = {"id": str(POOL), "name": "p"}
NONE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("run", "queue", "pool", "work_queues", "reason"),
    [
        (NONE, NONE, NONE, (), None),
        (NONE, NONE, NONE, ("default", "urgent"), None),
        ({"state_name": "AwaitingRetry"}, NONE, NONE, (), None),
        ({"state_type": "PENDING", "state_name": "Pending"}, NONE, NONE, (), "its state is Pending"),
        (NONE, NONE, None, (), "its deployment and pool have not been read"),
        ({"work_pool_id": str(OTHER)}, NONE, NONE, (), "it is in another pool or queue"),
        ({"work_pool_id": None}, NONE, NONE, (), "it is in another pool or queue"),
        ({"work_queue_id": str(OTHER)}, NONE, NONE, (), "it is in another pool or queue"),
        (NONE, NONE, NONE, ("urgent",), "its queue is not served here"),
        (NONE, {"is_paused": True}, NONE, (), "its pool or its queue is paused"),
        (NONE, NONE, {"is_paused": True}, (), "its pool or its queue is paused"),
        (NONE, {"concurrency_limit": 5}, NONE, (), "its pool or its queue has a limit"),
        (NONE, {"concurrency_limit": 0}, NONE, (), "its pool or its queue has a limit"),
        (NONE, NONE, {"concurrency_limit": 5}, (), "its pool or its queue has a limit"),
    ],
)
def test_when_the_server_has_to_be_asked(
    run: dict[str, Any],
    queue: dict[str, Any],
    pool: dict[str, Any] | None,
    work_queues: tuple[str, ...],
    reason: str | None,
) -> None:
    found = must_ask(
        FlowRun.read(A_RUN | run),
        WorkQueue.read(A_QUEUE | queue),
        None if pool is None else WorkPool.read(A_POOL | pool),
        work_queues=work_queues,
    )
    assert found == reason


@dataclass
class Bench:
    """A server with one run that is claimable, and a shortcut that has been told of it."""

    server: CannedServer = field(default_factory=CannedServer)
    pool: WorkPool | None = field(default_factory=lambda: WorkPool.read(A_POOL))
    while_settling: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.server.on("GET", f"/flow_runs/{RUN}", A_RUN)
        self.server.on("GET", f"/work_queues/{QUEUE}", A_QUEUE)

    def shortcut(self, client: PrefectClient) -> Shortcut:
        questions = Questions(client=client, pool="p", work_queues=(), answered=lambda: None, now=lambda: NOW)
        made = Shortcut(
            questions=questions, work_queues=(), pool_of=lambda _: self.pool, settled=self._settled
        )
        made.asked()
        made.answered(clear=True)
        made.heard(RUN, QUEUE)
        return made

    async def _settled(self) -> None:
        self.while_settling()


async def test_one_run_that_was_heard_of_is_found_by_reading_it() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        shortcut = bench.shortcut(client)
        found = await shortcut.find()
        assert found is not None
        assert found.id == RUN
        shortcut.taken()
        assert await shortcut.find() is None, "there is no other"
    assert [(method, path) for method, path, _ in bench.server.received] == [
        ("GET", f"/flow_runs/{RUN}"),
        ("GET", f"/work_queues/{QUEUE}"),
    ]


OTHERWISE: dict[str, Callable[[Shortcut], None]] = {
    "two runs": lambda shortcut: shortcut.heard(OTHER, QUEUE),
    "anything": lambda shortcut: shortcut.heard(None, None),
    "some wait": lambda shortcut: shortcut.answered(clear=False),
    "a question is under way": lambda shortcut: shortcut.asked(),
}


@pytest.mark.parametrize("prepare", OTHERWISE.values(), ids=OTHERWISE.keys())
async def test_otherwise_nothing_is_read(prepare: Callable[[Shortcut], None]) -> None:
    bench = Bench()
    async with bench.server.client() as client:
        shortcut = bench.shortcut(client)
        prepare(shortcut)
        assert await shortcut.find() is None
    assert not bench.server.received


@pytest.mark.parametrize(("run", "queue"), [(RUN, None), (None, None)])
async def test_what_is_not_told_in_full_is_asked_about(run: UUID | None, queue: UUID | None) -> None:
    bench = Bench()
    async with bench.server.client() as client:
        shortcut = bench.shortcut(client)
        shortcut.taken()
        shortcut.heard(run, queue)
        assert await shortcut.find() is None
    assert not bench.server.received


async def test_a_run_that_is_heard_of_meanwhile_has_both_asked_about() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        shortcut = bench.shortcut(client)
        bench.while_settling = lambda: shortcut.heard(OTHER, QUEUE)
        assert await shortcut.find() is None
        assert await shortcut.find() is None
    assert len(bench.server.received) == 2


@pytest.mark.parametrize("path", [f"/flow_runs/{RUN}", f"/work_queues/{QUEUE}"])
async def test_what_cannot_be_read_is_asked_about(path: str) -> None:
    bench = Bench()
    bench.server.on("GET", path, {"detail": "not there yet"}, status=404)
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None


async def test_a_pool_that_holds_something_back_is_asked() -> None:
    bench = Bench()
    bench.pool = WorkPool.read(A_POOL | {"concurrency_limit": 2})
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None
