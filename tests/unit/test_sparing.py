"""When a server is to be left alone: the longest of three reasons, and never a server that needs no sparing."""

from uuid import UUID

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


@pytest.mark.parametrize(("found", "needless"), [([{}], True), ([], False)])
async def test_what_database_a_server_has_is_learnt_from_its_answer(
    found: list[object], needless: bool
) -> None:
    server = CannedServer()
    server.on("POST", "/block_types/filter", found)
    async with server.client() as client:
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=lambda: 100.0)
        await sparing.learn()
        make_two_runs(sparing)
        assert sparing.needless is needless
        assert (sparing.pause() == 0) is needless


async def test_a_server_that_does_not_tell_is_spared() -> None:
    server = CannedServer()
    server.on("POST", "/block_types/filter", {"detail": "Not Found"}, status=404)
    async with server.client() as client:
        sparing = Sparing(client=client, in_flight=in_flight(), cloud=False, monotonic=lambda: 100.0)
        with capture_logs() as logs:
            await sparing.learn()
        assert [entry["event"] for entry in logs] == ["server.database_unknown"]
        assert not sparing.needless


async def test_prefect_cloud_is_not_asked() -> None:
    server = CannedServer()
    async with server.client() as client:
        await Sparing(client=client, in_flight=in_flight(), cloud=True, monotonic=lambda: 100.0).learn()
    assert not server.received
