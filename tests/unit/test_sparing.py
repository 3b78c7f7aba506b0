"""When a server is to be left alone: the longest of three reasons, and never a server that needs no sparing."""

from uuid import UUID

import pytest

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
        sparing.arrivals.heard(UUID(int=number))


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
