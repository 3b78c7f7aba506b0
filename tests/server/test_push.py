"""Events of a real server: what arrives, what does not, and what a lost websocket costs (nothing)."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.fake_prefect import api_settings
from tests.support.project import Project
from tests.support.proxy import Mode, outage_proxy
from tests.support.server import PrefectServer, free_port
from tests.support.starts import any_number_of_starts
from tests.support.wait import wait_until
from worker.api.client import PrefectClient
from worker.api.events import FLOW_RUN_CANCELLING, Bell, EventStream
from worker.repeating import repeat
from worker.runs.cancellations import Cancellations
from worker.runs.in_flight import InFlight
from worker.runs.wake import Wake

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

StartServer = Callable[..., AbstractContextManager[PrefectServer]]
AUTH = "user:pass:word"  # a made-up auth string


@dataclass
class Listening:
    """An event stream at work, the pool it listens to, and what has been heard."""

    pool: str
    logs: list[EventDict]
    rings: list[None] = field(default_factory=list[None])

    def logged(self, event: str) -> list[EventDict]:
        return [entry for entry in self.logs if entry["event"] == event]

    def heard(self) -> list[str]:
        """The ids of the runs that events told of, in order."""
        return [entry["resource"].removeprefix("prefect.flow-run.") for entry in self.logged("push.event")]

    async def connected(self, *, times: int = 1) -> None:
        await wait_until(
            lambda: len(self.logged("push.connected")) >= times,
            timeout=120,
            description=f"connection {times}: {self.logs}",
        )


@asynccontextmanager
async def listening(
    url: str,
    pool: Callable[[], str],
    *,
    random: Callable[[], float] = lambda: 0.0,
    bell: Bell | None = None,
    **settings: Any,
) -> AsyncGenerator[Listening]:
    """Listen for cancelled runs of the pool with that id, as the daemon does."""
    configured = api_settings(url, **settings)
    with capture_logs() as logs:
        found = Listening(pool=pool(), logs=logs)
        async with (
            PrefectClient(settings=configured, worker_name="w", random=lambda: 0.5) as client,
            anyio.create_task_group() as tasks,
        ):
            stream = EventStream(
                transport=client.transport,
                settings=configured,
                work_pool_id=lambda: UUID(pool()),
                bells={FLOW_RUN_CANCELLING: bell or (lambda _: found.rings.append(None))},
                random=random,
            )
            tasks.start_soon(partial(repeat, stream.listen_once, what="push"))
            yield found
            tasks.cancel_scope.cancel()


def pending_run(api: PrefectApi, pool: str) -> str:
    """A run of the pool that somebody has claimed; its id."""
    run_id = api.create_flow_run(api.create_deployment(pool=pool, entrypoint="flow.py:some_flow"))
    assert api.set_state(run_id, "PENDING")["status"] == "ACCEPT"
    return run_id


def cancelled_run(api: PrefectApi, pool: str) -> str:
    """A run of the pool that somebody has claimed and somebody else is cancelling; its id."""
    run_id = pending_run(api, pool)
    assert api.cancel(run_id)["status"] == "ACCEPT"
    return run_id


async def until_heard(found: Listening, api: PrefectApi, pool: str) -> str:
    """Cancel runs until one is heard of: nothing says when the server has taken up a subscription."""
    cancelled: list[str] = []

    def heard() -> str | None:
        return next((run_id for run_id in cancelled if run_id in found.heard()), None)

    for _ in range(10):
        cancelled.append(await anyio.to_thread.run_sync(cancelled_run, api, pool))
        with anyio.move_on_after(6):
            return await wait_until(heard, description="an event of a cancelled run")
    raise AssertionError(f"no event of {cancelled}: {found.logs}")


async def test_a_cancelled_run_of_our_pool_rings_and_one_of_another_pool_does_not(
    prefect_server: PrefectServer, api: PrefectApi, pool: str
) -> None:
    another = api.create_pool()
    async with listening(prefect_server.api_url, lambda: api.pool(pool)["id"]) as found:
        await found.connected()
        assert len(found.rings) == 1
        await until_heard(found, api, pool)
        theirs = await anyio.to_thread.run_sync(cancelled_run, api, another)
        ours = await anyio.to_thread.run_sync(cancelled_run, api, pool)
        await wait_until(lambda: ours in found.heard(), description="the event of our run")
        assert theirs not in found.heard()
        assert len(found.rings) == 1 + len(found.heard())
        assert len(found.logged("push.connected")) == 1
    assert not [entry for entry in found.logs if entry["log_level"] != "debug"]


async def test_other_states_of_our_runs_do_not_ring(
    prefect_server: PrefectServer, api: PrefectApi, pool: str
) -> None:
    async with listening(prefect_server.api_url, lambda: api.pool(pool)["id"]) as found:
        await until_heard(found, api, pool)
        run_id = api.create_flow_run(api.create_deployment(pool=pool, entrypoint="flow.py:some_flow"))
        for state in ("PENDING", "RUNNING", "COMPLETED"):
            api.set_state(run_id, state)
        last = await anyio.to_thread.run_sync(cancelled_run, api, pool)
        await wait_until(lambda: last in found.heard(), description="the event of the cancelled run")
        assert run_id not in found.heard()


@pytest.mark.long
async def test_credentials_are_sent_and_wrong_ones_are_told_once_and_tried_rarely(
    start_prefect_server: StartServer,
) -> None:
    with start_prefect_server(PREFECT_SERVER_API_AUTH_STRING=AUTH) as server, server.api() as api:
        pool = api.create_pool()
        pool_id = api.pool(pool)["id"]
        async with listening(server.api_url, lambda: pool_id, auth_string=SecretStr(AUTH)) as found:
            await until_heard(found, api, pool)
        async with listening(server.api_url, lambda: pool_id, auth_string=SecretStr("user:wrong")) as refused:
            await wait_until(lambda: refused.logged("push.unavailable"), description="the refusal")
        (told,) = [entry for entry in refused.logs if entry["log_level"] != "debug"]
        assert told["log_level"] == "info"
        assert "Invalid token" in told["reason"]
        (lost,) = refused.logged("push.disconnected")
        assert lost["next_seconds"] > 60
        assert not refused.rings
        assert "wrong" not in json.dumps(refused.logs)


@pytest.mark.long
async def test_a_server_that_restarts_is_heard_again_without_anyone_noticing(
    start_prefect_server: StartServer,
) -> None:
    port = free_port()
    pools: list[str] = []
    async with AsyncExitStack() as stack:
        first = ExitStack()
        stack.push_async_callback(anyio.to_thread.run_sync, first.close)
        server = await anyio.to_thread.run_sync(first.enter_context, start_prefect_server(port=port))
        with server.api() as api:
            name = api.create_pool()
            pools.append(api.pool(name)["id"])
            found = await stack.enter_async_context(listening(server.api_url, lambda: pools[-1]))
            await until_heard(found, api, name)
        await anyio.to_thread.run_sync(first.close)
        await wait_until(lambda: found.logged("push.disconnected"), description="the end of the connection")
        server = await anyio.to_thread.run_sync(first.enter_context, start_prefect_server(port=port))
        with server.api() as api:
            name = api.create_pool()
            # Another database: the pool is another one, too.
            pools.append(api.pool(name)["id"])
            rings = len(found.rings)
            await until_heard(found, api, name)
            assert len(found.rings) > rings
    assert not [entry for entry in found.logs if entry["log_level"] in {"warning", "error"}]


class Run:
    """A run in flight, as far as a cancellation is concerned."""

    def __init__(self) -> None:
        self.cancelled = anyio.Event()

    def cancel(self) -> None:
        self.cancelled.set()


@asynccontextmanager
async def cancelling(
    url: str, pool_id: str, run: Run, run_id: str, *, interval: float
) -> AsyncGenerator[Listening]:
    """Look for the cancellation of one run in flight, every `interval` seconds and when an event rings."""
    settings = api_settings(url)
    in_flight = InFlight(limit=None, freed=Wake(), starts=any_number_of_starts())
    async with PrefectClient(settings=settings, worker_name="w", random=lambda: 0.5) as client:
        cancellations = Cancellations(
            client=client, in_flight=in_flight, interval=interval, sleep=anyio.sleep
        )
        with in_flight.slot(UUID(run_id), run):
            async with (
                listening(url, lambda: pool_id, bell=lambda _: cancellations.hint()) as found,
                anyio.create_task_group() as tasks,
            ):
                looking = partial(
                    repeat, cancellations.check_once, what="cancellations", wake=cancellations.wake
                )
                tasks.start_soon(looking)
                yield found
                tasks.cancel_scope.cancel()


async def test_a_cancellation_is_noticed_by_its_event_alone(
    prefect_server: PrefectServer, api: PrefectApi, pool: str
) -> None:
    run_id, run, pool_id = pending_run(api, pool), Run(), api.pool(pool)["id"]
    async with cancelling(prefect_server.api_url, pool_id, run, run_id, interval=3600) as found:
        await until_heard(found, api, pool)
        assert not run.cancelled.is_set()
        await anyio.to_thread.run_sync(api.cancel, run_id)
        await wait_until(run.cancelled.is_set, description="the cancellation")


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        pytest.param(Mode.NO_WEBSOCKET, ["push.unavailable"], id="refused"),
        pytest.param(Mode.LOST_ANSWER, ["push.unavailable"], id="cut"),
        pytest.param(Mode.HANG, [], id="never answered"),
    ],
)
async def test_a_cancellation_is_noticed_by_polling_when_the_websocket_is_blocked(
    prefect_server: PrefectServer, api: PrefectApi, pool: str, mode: Mode, told: list[str]
) -> None:
    run_id, run, pool_id = pending_run(api, pool), Run(), api.pool(pool)["id"]
    with outage_proxy(prefect_server.api_url) as proxy:
        proxy.switch(mode, only="/events/out")
        async with cancelling(proxy.api_url, pool_id, run, run_id, interval=0.5) as found:
            await wait_until(lambda: proxy.requests(mode), description="a handshake")
            await anyio.to_thread.run_sync(api.cancel, run_id)
            await wait_until(run.cancelled.is_set, description="the cancellation")
            for event in told:
                await wait_until(partial(found.logged, event), description=event)
    seen = [(entry["event"], entry["log_level"]) for entry in found.logs if entry["log_level"] != "debug"]
    assert seen == [(event, "info") for event in told]
    assert not found.logged("push.connected")


async def test_a_websocket_that_is_cut_while_we_listen_is_opened_again_and_rings(
    prefect_server: PrefectServer, api: PrefectApi, pool: str
) -> None:
    pool_id = api.pool(pool)["id"]
    with outage_proxy(prefect_server.api_url) as proxy:
        async with listening(proxy.api_url, lambda: pool_id) as found:
            await until_heard(found, api, pool)
            rings = len(found.rings)
            proxy.switch(Mode.LOST_ANSWER, only="/events/out")
            await wait_until(lambda: found.logged("push.disconnected"), description="the cut")
            proxy.switch(Mode.PASS)
            await found.connected(times=2)
            assert len(found.rings) > rings
            await until_heard(found, api, pool)
    assert not [entry for entry in found.logs if entry["log_level"] != "debug"]


def test_a_daemon_whose_websocket_is_cut_and_blocked_cancels_by_polling(
    prefect_server: PrefectServer, api: PrefectApi, project: Project, daemon: StartWorker
) -> None:
    with outage_proxy(prefect_server.api_url) as proxy:
        worker = daemon(pool=project.pool, env={"PREFECT_API_URL": proxy.api_url})
        run_id = project.run("sleeps")
        project.wait_for_fact(run_id, "sleeping")
        proxy.switch(Mode.NO_WEBSOCKET)
        api.cancel(run_id)
        api.wait_for_state(run_id, "CANCELLED")
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
        assert not [entry for entry in worker.logs() if entry["level"] == "warning"]
        assert worker.stop() == 0
