"""A run that was heard of: when reading it tells as much as the question for runs, and when only the server can tell."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import pytest

from tests.support.canned import CannedServer
from worker.api.client import PrefectClient
from worker.api.models import FlowRun, WorkPool, WorkQueue
from worker.runs import shortcut
from worker.runs.questions import Questions
from worker.runs.shortcut import PAUSE, Shortcut, as_listed, held_back, must_ask

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN, OTHER, QUEUE, POOL, DEFAULT = (UUID(int=number) for number in (1, 2, 3, 4, 5))
QUEUES = "/work_pools/p/queues/filter"
A_RUN = {
    "id": str(RUN),
    "state": {"type": "SCHEDULED", "name": "Scheduled"},
    "state_type": "SCHEDULED",
    "state_name": "Scheduled",
    "work_pool_id": str(POOL),
    "work_pool_name": "p",
    "work_queue_id": str(QUEUE),
    "work_queue_name": "q",
}
A_QUEUE = {"id": str(QUEUE), "name": "q"}
ANOTHER = {"id": str(DEFAULT), "name": "default"}
A_POOL = {"id": str(POOL), "name": "p", "default_queue_id": str(DEFAULT)}
NONE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("pool", "queue", "another", "reason"),
    [
        (NONE, NONE, NONE, None),
        ({"is_paused": True}, NONE, NONE, "the pool 'p' is paused"),
        ({"concurrency_limit": 5}, NONE, NONE, "the pool 'p' has a limit"),
        (NONE, {"is_paused": True}, NONE, "the queue 'q' is paused"),
        (NONE, {"concurrency_limit": 0}, NONE, "the queue 'q' has a limit"),
        (NONE, NONE, {"concurrency_limit": 1}, "the queue 'default' has a limit"),
    ],
)
def test_what_holds_runs_back(
    pool: dict[str, Any], queue: dict[str, Any], another: dict[str, Any], reason: str | None
) -> None:
    queues = [WorkQueue.read(A_QUEUE | queue), WorkQueue.read(ANOTHER | another)]
    assert held_back(WorkPool.read(A_POOL | pool), queues) == reason


@pytest.mark.parametrize(
    ("run", "known", "reason"),
    [
        (NONE, True, None),
        ({"state_name": "AwaitingRetry"}, True, None),
        ({"work_queue_id": str(DEFAULT)}, True, None),
        (NONE, False, "its deployment and pool have not been read"),
        ({"state_type": "PENDING", "state_name": "Pending"}, True, "its state is Pending"),
        ({"work_pool_id": str(OTHER)}, True, "it is in another pool or queue"),
        ({"work_pool_id": None}, True, "it is in another pool or queue"),
        ({"work_queue_id": str(OTHER)}, True, "it is in another pool or queue"),
        ({"work_queue_id": None}, True, "it is in another pool or queue"),
    ],
)
def test_when_the_server_has_to_be_asked(run: dict[str, Any], *, known: bool, reason: str | None) -> None:
    pool = WorkPool.read(A_POOL) if known else None
    queues = [WorkQueue.read(A_QUEUE), WorkQueue.read(ANOTHER)]
    assert must_ask(FlowRun.read(A_RUN | run), pool, queues) == reason


@pytest.mark.parametrize(("queue", "name"), [(QUEUE, "q"), (DEFAULT, None)])
def test_a_run_that_was_read_looks_as_if_it_had_been_listed(queue: UUID, name: str | None) -> None:
    """What a template of a job variable may name is the same either way (PROTOCOL 2.3)."""
    read = FlowRun.read(A_RUN | {"work_queue_id": str(queue)})
    listed = as_listed(read, WorkPool.read(A_POOL))
    assert listed.raw == {
        "id": str(RUN),
        "state": None,
        "state_type": "SCHEDULED",
        "state_name": "Scheduled",
        "work_queue_id": str(queue),
        "work_queue_name": name,
    }
    assert listed.state is None


@dataclass
class Bench:
    """A server with one run that is claimable, and a shortcut that has been told of it."""

    server: CannedServer = field(default_factory=CannedServer)
    pool: WorkPool | None = field(default_factory=lambda: WorkPool.read(A_POOL))
    ahead: bool = True
    enabled: bool = True
    clock: float = 0.0
    while_settling: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.server.on("GET", f"/flow_runs/{RUN}", A_RUN)
        self.server.on("POST", QUEUES, [A_QUEUE, ANOTHER])

    def shortcut(self, client: PrefectClient) -> Shortcut:
        questions = Questions(client=client, pool="p", work_queues=(), answered=lambda: None, now=lambda: NOW)
        made = Shortcut(
            questions=questions,
            enabled=self.enabled,
            pool=lambda: self.pool,
            pool_of=lambda _: self.pool if self.ahead else None,
            settled=self._settled,
            monotonic=lambda: self.clock,
        )
        made.asked()
        made.answered(clear=True)
        made.heard(RUN)
        return made

    async def _settled(self) -> None:
        self.while_settling()


async def test_one_run_that_was_heard_of_is_found_by_reading_it() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        short = bench.shortcut(client)
        short.heard(RUN)
        found = await short.find()
        assert found is not None
        assert found.id == RUN
        short.taken()
        assert await short.find() is None, "there is no other"
    asked = sorted((method, path) for method, path, _ in bench.server.received)
    assert asked == [("GET", f"/flow_runs/{RUN}"), ("POST", QUEUES)]


def heard_during_a_question(short: Shortcut) -> None:
    short.asked()
    short.heard(RUN)


OTHERWISE: dict[str, Callable[[Shortcut], None]] = {
    "two runs": lambda short: short.heard(OTHER),
    "anything": lambda short: short.heard(None),
    "some wait": lambda short: short.answered(clear=False),
    "a question has not been answered": heard_during_a_question,
    "no run": lambda short: short.taken(),
}


@pytest.mark.parametrize("prepare", OTHERWISE.values(), ids=OTHERWISE.keys())
async def test_otherwise_nothing_is_read(prepare: Callable[[Shortcut], None]) -> None:
    bench = Bench()
    async with bench.server.client() as client:
        short = bench.shortcut(client)
        prepare(short)
        assert await short.find() is None
    assert not bench.server.received


@pytest.mark.parametrize(
    "bench",
    [
        Bench(enabled=False),
        Bench(pool=None),
        Bench(pool=WorkPool.read(A_POOL | {"concurrency_limit": 2})),
    ],
    ids=["another server", "no pool yet", "a limit"],
)
async def test_where_it_cannot_do_nothing_is_read(bench: Bench) -> None:
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None
    assert not bench.server.received


async def test_a_run_that_is_heard_of_meanwhile_has_both_asked_about() -> None:
    bench = Bench()
    async with bench.server.client() as client:
        short = bench.shortcut(client)
        bench.while_settling = lambda: short.heard(OTHER)
        assert await short.find() is None
        assert await short.find() is None
    assert len(bench.server.received) == 2


@pytest.mark.parametrize(("method", "path"), [("GET", f"/flow_runs/{RUN}"), ("POST", QUEUES)])
async def test_what_cannot_be_read_is_asked_about(method: str, path: str) -> None:
    bench = Bench()
    bench.server.on(method, path, {"detail": "not there yet"}, status=404)
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None


async def test_a_run_whose_deployment_was_not_read_ahead_is_asked_about() -> None:
    bench = Bench(ahead=False)
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None


async def test_reading_does_not_keep_the_question_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LONGEST", 0.01)

    class Never(Bench):
        async def _settled(self) -> None:
            await anyio.sleep_forever()

    bench = Never()
    async with bench.server.client() as client:
        assert await bench.shortcut(client).find() is None


async def test_where_a_queue_holds_something_back_it_is_not_tried_again_for_a_while() -> None:
    bench = Bench()
    bench.server.on("POST", QUEUES, [A_QUEUE, ANOTHER | {"is_paused": True}])
    async with bench.server.client() as client:
        short = bench.shortcut(client)
        assert await short.find() is None
        bench.server.on("POST", QUEUES, [A_QUEUE, ANOTHER])
        bench.clock = PAUSE - 1
        assert await short.find() is None
        assert len(bench.server.received) == 2
        bench.clock = PAUSE
        assert await short.find() is not None
