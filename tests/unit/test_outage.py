"""The seconds of outages, as a counter: they grow with each failed try, and never shrink."""

import pytest
import structlog

from worker.api.outage import Outage

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time


class Told:
    """An outage, its clock, and what its counter said after each step."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.outage = Outage(url="u", log=structlog.get_logger(), monotonic=self.clock.monotonic)
        self.seconds: list[float] = []

    def fail(self, after: float) -> None:
        started = self.clock.time
        self.clock.time += after
        self.outage.failed(reason="r", started=started, first_failure=started, tries=1)
        self.seconds.append(self.outage.seconds)

    def succeed(self, after: float) -> None:
        self.clock.time += after
        self.outage.succeeded()
        self.seconds.append(self.outage.seconds)


async def test_outages_add_up_from_the_last_success_to_the_next() -> None:
    told = Told()
    told.succeed(0)
    told.fail(4)
    told.fail(4)
    told.fail(10)
    told.succeed(2)
    told.succeed(50)
    told.fail(6)
    told.succeed(1)
    assert told.seconds == [0, 0, 8, 18, 20, 20, 26, 27]


async def test_blips_are_no_outage() -> None:
    told = Told()
    told.succeed(0)
    for _ in range(5):
        told.fail(1)
        told.succeed(1)
    assert told.seconds[-1] == 0
