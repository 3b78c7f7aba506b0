"""When a server is to be left alone: the longest of three reasons, and never a server that needs no sparing."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from worker.api.client import PrefectClient
from worker.api.models import FlowRun
from worker.runs.arrivals import CALM_EACH
from worker.runs.in_flight import InFlight
from worker.runs.late_marking import CALM, FIRST, MANY, MARKED
from worker.runs.sparing import Sparing
from worker.runs.starts import Starts
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 10, 1, tzinfo=UTC)


def in_flight() -> InFlight:
    return InFlight(limit=4, freed=Wake(), starts=Starts(most=lambda: 4, monotonic=lambda: 0.0))


def sparing_of(
    client: PrefectClient,
    *,
    cloud: bool = False,
    wake: Wake | None = None,
    monotonic: Callable[[], float] = lambda: 100.0,
) -> Sparing:
    return Sparing(
        client=client, in_flight=in_flight(), cloud=cloud, wake=wake or Wake(), monotonic=monotonic
    )


def make_two_runs(sparing: Sparing) -> None:
    for number in (1, 2):
        sparing.made(UUID(int=number))


async def test_a_server_is_left_alone_for_as_long_as_one_of_the_judgements_says() -> None:
    async with CannedServer().client() as client:
        sparing = sparing_of(client)
        assert sparing.pause() == 0
        make_two_runs(sparing)
        assert sparing.pause() == pytest.approx(CALM_EACH)
        assert sparing.tidying is not None


async def test_prefect_cloud_needs_no_sparing() -> None:
    async with CannedServer().client() as client:
        sparing = sparing_of(client, cloud=True)
        make_two_runs(sparing)
        assert sparing.pause() == 0
        assert sparing.tidying is None


async def test_a_server_that_was_seen_to_have_many_writers_needs_none() -> None:
    async with CannedServer().client() as client:
        sparing = sparing_of(client)
        make_two_runs(sparing)
        for number in range(MARKED):
            sparing.marking.heard(UUID(int=number))
        assert sparing.marking.harmless
        assert sparing.pause() == 0


async def test_who_waits_for_a_round_of_unknown_time_looks_again_when_it_has_come() -> None:
    server = CannedServer()
    server.on("POST", "/flow_runs/count", MANY)
    clock, wake = anyio.current_time(), Wake()
    due = (NOW - timedelta(seconds=20)).isoformat()
    overdue = [
        FlowRun.read({"id": str(UUID(int=number)), "name": "r", "next_scheduled_start_time": due})
        for number in range(MANY)
    ]
    async with server.client() as client:
        sparing = sparing_of(client, wake=wake, monotonic=lambda: clock)
        sparing.marked(UUID(int=0))
        assert not await wake.wait(timeout=0), "nobody waits where nothing is held back"
        clock += 60
        await sparing.marking.look(overdue, now=NOW)
        assert sparing.pause() == pytest.approx(FIRST)
        assert not await wake.wait(timeout=0)
        clock += 1
        sparing.marked(UUID(int=1))
        assert await wake.wait(timeout=0)
        assert sparing.pause() == pytest.approx(CALM)


SECRET = {"name": "Secret"}


@pytest.mark.parametrize(
    ("found", "known", "needless"),
    [
        ({r"Sec\ret": [{"name": "Other"}, SECRET], "Secret": [SECRET]}, True, True),
        ({r"Sec\ret": [], "Secret": [SECRET]}, False, False),
        ({r"Sec\ret": [], "Secret": []}, None, False),
        ({r"Sec\ret": [{"name": "whatever there is"}], "Secret": [SECRET]}, False, False),
    ],
)
async def test_what_database_a_server_has_is_learnt_from_its_answers(
    found: dict[str, list[Any]], known: bool | None, needless: bool
) -> None:
    server = CannedServer()
    server.on_call(
        "POST", "/block_types/filter", lambda body: (200, found[body["block_types"]["name"]["like_"]])
    )
    # Stands still: a hold of some tenths of a second is not to be over before it is looked at.
    now = anyio.current_time()
    async with server.client() as client:
        sparing = sparing_of(client, monotonic=lambda: now)
        with capture_logs() as logs:
            await sparing.learn()
        assert [entry.get("many_writers") for entry in logs] == [known]
        make_two_runs(sparing)
        assert sparing.needless is needless
        assert (sparing.pause() == 0) is needless


async def test_a_server_that_does_not_tell_is_spared() -> None:
    for status in (404, 500, 503):
        server = CannedServer()
        server.on("POST", "/block_types/filter", {"detail": "no"}, status=status)
        server.on("GET", "/ready", {"status": "ready"})
        async with server.client() as client:
            sparing = sparing_of(client, monotonic=anyio.current_time)
            with capture_logs() as logs:
                await sparing.learn()
            told = [entry for entry in logs if entry["event"] == "server.database_unknown"]
            assert len(told) == 1
            assert not sparing.needless


async def test_prefect_cloud_is_not_asked() -> None:
    server = CannedServer()
    async with server.client() as client:
        await sparing_of(client, cloud=True).learn()
    assert not server.received
