"""Slots: counted, freed whatever happens, never held twice for one run."""

from uuid import uuid4

import pytest

from tests.support.starts import any_number_of_starts
from worker.runs.in_flight import InFlight
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio


class Idle:
    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


async def test_a_slot_is_free_again_after_an_error_and_says_so() -> None:
    freed = Wake()
    in_flight = InFlight(limit=2, freed=freed, starts=any_number_of_starts())
    in_flight.want(wanted=True)
    run_id = uuid4()

    def fail_in_a_slot() -> None:
        with in_flight.slot(run_id, Idle()):
            assert (in_flight.free, len(in_flight), run_id in in_flight) == (1, 1, True)
            assert list(in_flight) == [run_id]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_a_slot()
    assert (in_flight.free, len(in_flight), in_flight.get(run_id)) == (2, 0, None)
    assert await freed.wait(timeout=0)


async def test_a_run_has_one_slot_only() -> None:
    in_flight = InFlight(limit=None, freed=Wake(), starts=any_number_of_starts())
    run_id = uuid4()
    with (
        in_flight.slot(run_id, Idle()),
        pytest.raises(RuntimeError, match=str(run_id)),
        in_flight.slot(run_id, Idle()),
    ):
        pass
    assert in_flight.free is None


async def test_a_bell_rung_twice_wakes_once() -> None:
    wake = Wake()
    wake.set()
    wake.set()
    assert await wake.wait(timeout=0)
    assert not await wake.wait(timeout=0)
