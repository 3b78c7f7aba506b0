"""Finding, creating, repairing and refusing pools; what is said of paused ones, and how often."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE
from worker.runs.work_pool import PoolMissing, PoolRefused, WorkPoolKeeper

pytestmark = pytest.mark.anyio

POOL = "/work_pools/p"
TEMPLATE: dict[str, Any] = {"job_configuration": {"command": "x"}, "variables": {"properties": {}}}


def pool(**fields: Any) -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "name": "p",
        "type": "process",
        "base_job_template": TEMPLATE,
        "is_paused": False,
        **fields,
    }


async def keep(
    server: CannedServer,
    *steps: str,
    create: bool = True,
    template: dict[str, Any] | None = None,
    queues: tuple[str, ...] = (),
) -> WorkPoolKeeper:
    """A keeper that has taken these steps."""
    async with server.client() as client:
        keeper = WorkPoolKeeper(
            client=client,
            name="p",
            worker_name="w",
            work_queues=queues,
            create=create,
            base_job_template=template,
            heartbeat_interval=30,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )
        for step in steps:
            await getattr(keeper, step)()
    return keeper


def events(logs: list[Any], *, above: str = "debug") -> list[str]:
    return [entry["event"] for entry in logs if entry["log_level"] != above]


async def test_an_existing_pool_is_used_as_it_is() -> None:
    server = CannedServer()
    server.on("GET", POOL, pool())
    keeper = await keep(server, "ensure")
    assert keeper.known.base_job_template == TEMPLATE
    assert [method for method, _, _ in server.received] == ["GET"]


@pytest.mark.parametrize("template", [None, TEMPLATE])
async def test_a_missing_pool_is_created(template: dict[str, Any] | None) -> None:
    server = CannedServer()
    server.on("GET", POOL, {"detail": 'Work pool "p" not found.'}, status=404)
    server.on("POST", "/work_pools/", pool(), status=201)
    await keep(server, "ensure", template=template)
    assert server.bodies("POST", "/work_pools/") == [
        {"name": "p", "type": "process", "base_job_template": template or DEFAULT_BASE_JOB_TEMPLATE}
    ]


async def test_losing_the_race_to_create_is_no_error() -> None:
    server = CannedServer()
    answers = iter([(404, {"detail": 'Work pool "p" not found.'}), (200, pool())])
    server.on_call("GET", POOL, lambda _: next(answers))
    server.on("POST", "/work_pools/", {"detail": "A work pool with this name already exists."}, status=409)
    assert (await keep(server, "ensure")).known.name == "p"


async def test_a_pool_that_may_not_be_created_is_missing() -> None:
    server = CannedServer()
    server.on("GET", POOL, {"detail": 'Work pool "p" not found.'}, status=404)
    with pytest.raises(PoolMissing, match="--no-create-pool-if-not-found"):
        await keep(server, "ensure", create=False)


async def test_an_empty_template_is_filled_in() -> None:
    server = CannedServer()
    answers = iter([(200, pool(base_job_template={})), (200, pool())])
    server.on_call("GET", POOL, lambda _: next(answers))
    server.on("PATCH", POOL, None, status=204)
    assert (await keep(server, "ensure")).known.base_job_template == TEMPLATE
    assert server.bodies("PATCH", POOL) == [{"base_job_template": DEFAULT_BASE_JOB_TEMPLATE}]


@pytest.mark.parametrize("kind", ["kubernetes", "prefect-agent", "prefect:managed"])
async def test_another_type_is_refused(kind: str) -> None:
    server = CannedServer()
    server.on("GET", POOL, pool(type=kind, base_job_template={}))
    with pytest.raises(PoolRefused, match=kind):
        await keep(server, "ensure")
    assert [method for method, _, _ in server.received] == ["GET"]


@pytest.mark.parametrize("status", [403, 422])
async def test_a_pool_the_server_does_not_want_is_refused_in_a_sentence(status: int) -> None:
    server = CannedServer()
    server.on("GET", POOL, {"detail": 'Work pool "p" not found.'}, status=404)
    server.on(
        "POST",
        "/work_pools/",
        {"detail": "Worker pools starting with 'Prefect' are reserved."},
        status=status,
    )
    with pytest.raises(PoolRefused, match="reserved"):
        await keep(server, "ensure")


async def test_a_template_file_for_an_existing_pool_is_warned_about() -> None:
    server = CannedServer()
    server.on("GET", POOL, pool())
    with capture_logs() as logs:
        await keep(server, "ensure", template=TEMPLATE)
    assert events(logs) == ["work_pool.template_ignored"]


async def test_pauses_are_told_once() -> None:
    server = CannedServer()
    paused = [True, True, True, False, False]
    answers = iter([(200, pool(is_paused=flag)) for flag in paused])
    server.on_call("GET", POOL, lambda _: next(answers))
    with capture_logs() as logs:
        await keep(server, *["read"] * len(paused))
    assert events(logs) == ["work_pool.paused", "work_pool.resumed"]


async def test_paused_queues_are_told_once() -> None:
    server = CannedServer()
    server.on("GET", POOL, pool())
    server.on("POST", f"{POOL}/workers/heartbeat", None, status=204)
    paused = iter([True, True, False])
    asked: list[int] = []

    def queues(body: Any) -> tuple[int, Any]:
        asked.append(body.get("offset", 0))
        if body.get("offset"):
            return 200, []
        return 200, [{"id": str(uuid4()), "name": "q", "is_paused": next(paused)}]

    server.on_call("POST", f"{POOL}/queues/filter", queues)
    with capture_logs() as logs:
        await keep(server, *["beat_once"] * 3, queues=("q",))
    assert events(logs) == ["work_queue.paused", "work_queue.resumed"]
    assert asked.count(0) == 3


async def test_a_pool_deleted_meanwhile_is_put_back() -> None:
    server = CannedServer()
    state = {"exists": True}

    def missing_or(answer: tuple[int, Any]) -> tuple[int, Any]:
        return answer if state["exists"] else (404, {"detail": 'Work pool "p" not found.'})

    def create(_: Any) -> tuple[int, Any]:
        state["exists"] = True
        return 201, pool()

    server.on_call("GET", POOL, lambda _: missing_or((200, pool())))
    server.on_call("POST", f"{POOL}/workers/heartbeat", lambda _: missing_or((204, None)))
    server.on_call("POST", "/work_pools/", create)
    async with server.client() as client:
        keeper = WorkPoolKeeper(
            client=client,
            name="p",
            worker_name="w",
            work_queues=(),
            create=True,
            base_job_template=None,
            heartbeat_interval=30,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )
        await keeper.ensure()
        state["exists"] = False
        assert (await keeper.read()).name == "p"
        assert await keeper.beat_once() == 30
    assert server.bodies("POST", f"{POOL}/workers/heartbeat")[-1] == {
        "name": "w",
        "heartbeat_interval_seconds": 30,
    }
    assert len(server.bodies("POST", "/work_pools/")) == 1
