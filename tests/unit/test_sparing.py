"""When a server is to be left alone: the longest of three reasons, and never a server that needs no sparing."""

from typing import Any
from uuid import UUID

import anyio
import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from worker.runs.arrivals import CALM_EACH
from worker.runs.in_flight import InFlight
from worker.runs.late_marking import MARKED
from worker.runs.sparing import Sparing
from worker.runs.starts import Starts
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio


def in_flight() -> InFlight:
    return InFlight(limit=4, freed=Wake(), starts=Starts(most=lambda: 4, monotonic=lambda: 0.0))


def make_two_runs(sparing: Sparing) -> None:
    for number in (1, 2):
        sparing.made(UUID(int=number))


async def test_a_server_is_left_alone_for_as_long_as_one_of_the_judgements_says() -> None:
    async with CannedServer().client() as client:
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=lambda: 100.0)
        assert sparing.pause() == 0
        make_two_runs(sparing)
        assert sparing.pause() == pytest.approx(CALM_EACH)
        assert sparing.tidying is not None


async def test_prefect_cloud_needs_no_sparing() -> None:
    async with CannedServer().client() as client:
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=True, monotonic=lambda: 100.0)
        make_two_runs(sparing)
        assert sparing.pause() == 0
        assert sparing.tidying is None


async def test_a_server_that_was_seen_to_have_many_writers_needs_none() -> None:
    async with CannedServer().client() as client:
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=lambda: 100.0)
        make_two_runs(sparing)
        for number in range(MARKED):
            sparing.marking.heard(UUID(int=number))
        assert sparing.marking.harmless
        assert sparing.pause() == 0


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
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=lambda: now)
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
            sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=anyio.current_time)
            with capture_logs() as logs:
                await sparing.learn()
            told = [entry for entry in logs if entry["event"] == "server.database_unknown"]
            assert len(told) == 1
            assert not sparing.needless


async def test_prefect_cloud_is_not_asked() -> None:
    server = CannedServer()
    async with server.client() as client:
        await Sparing(client=client, in_flight=in_flight(), cloud=True, monotonic=lambda: 100.0).learn()
    assert not server.received
