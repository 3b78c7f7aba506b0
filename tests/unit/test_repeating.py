"""The one loop: nothing a step does ends it, and trouble is told once."""

from collections.abc import Sequence

import anyio
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from worker.api.errors import ServerFault
from worker.repeating import LONGEST_PAUSE, SHORTEST_PAUSE, repeat
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio


class PatientWake(Wake):
    """Notes how long the loop would have waited, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    async def wait(self, *, timeout: float) -> bool:
        self.waited.append(timeout)
        await anyio.lowlevel.checkpoint()
        return False


async def run_steps(outcomes: Sequence[float | Exception]) -> tuple[list[float], list[EventDict]]:
    """The waits and log entries of a loop whose step has these outcomes, one after the other."""
    wake = PatientWake()
    remaining = list(outcomes)
    with capture_logs() as logs, anyio.CancelScope() as scope:

        async def step() -> float:
            if not remaining:
                scope.cancel()
                await anyio.sleep_forever()
            outcome = remaining.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        await repeat(step, what="poll", wake=wake)
    return wake.waited, logs


async def test_it_waits_as_long_as_each_step_asks() -> None:
    waited, logs = await run_steps([1.0, 2.5, 0.0])
    assert waited == [1.0, 2.5, SHORTEST_PAUSE]
    assert logs == []


async def test_failures_are_told_once_and_waited_out_longer_and_longer() -> None:
    trouble = [ServerFault("poll", "broken", status=500) for _ in range(8)]
    waited, logs = await run_steps([*trouble, 1.0, 1.0])
    assert waited == [2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE, 1.0, 1.0]
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [
        ("warning", "poll.failed"),
        ("info", "poll.recovered"),
    ]
    assert "broken" in logs[0]["reason"]


async def test_an_error_of_our_own_comes_with_its_traceback() -> None:
    error = ZeroDivisionError("ours")
    _, logs = await run_steps([error])
    assert logs[0]["exc_info"] is error


async def test_a_bell_ends_the_wait() -> None:
    wake = Wake()
    steps = 0
    with anyio.fail_after(30), anyio.CancelScope() as scope:

        async def step() -> float:
            nonlocal steps
            steps += 1
            if steps == 2:
                scope.cancel()
            wake.set()
            return 3600.0

        await repeat(step, what="poll", wake=wake)
    assert steps == 2
