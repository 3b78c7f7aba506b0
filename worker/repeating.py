"""The one loop: nothing that a step does ends it, and trouble is told once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import structlog

from worker.api.errors import ApiError
from worker.fatal import FatalError
from worker.runs.wake import Wake
from worker.runs.work_pool import PoolMissing

LONGEST_PAUSE = 30.0
# Settings may say 0 seconds; asking without a pause would help nobody.
SHORTEST_PAUSE = 0.01


@dataclass(slots=True)
class Spell:
    """A row of failures of one step: told once when it begins and once when it ends."""

    what: str
    failures: int = 0

    def failed(self, error: Exception) -> float:
        """Note a failure; returns how long to wait before the next try, in seconds."""
        self.failures += 1
        if self.failures == 1:
            known = isinstance(error, ApiError | PoolMissing)
            structlog.get_logger().warning(
                f"{self.what}.failed", reason=str(error), exc_info=None if known else error
            )
        return min(LONGEST_PAUSE, 2.0**self.failures)

    def succeeded(self) -> None:
        """Note a success."""
        if self.failures:
            structlog.get_logger().info(f"{self.what}.recovered", failures=self.failures)
        self.failures = 0


async def repeat(
    step: Callable[[], Awaitable[float]],
    *,
    what: str,
    wake: Wake | None = None,
    after: float = 0.0,
    once: bool = False,
) -> None:
    """Take one step after another for ever, waiting as long as each asks for, or until `wake` rings.

    The only loop, and the only place that catches whatever a step raises (but FatalError): the step is taken
    again after a growing pause. The client has waited out an unreachable server before (`api.transport`).
    `after` is how many seconds to wait before the first step; `once` ends with the first success.
    """
    wake = wake or Wake()
    spell = Spell(what)
    await anyio.sleep(after)
    while True:
        try:
            delay = await step()
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing else that a step does may end the daemon
            delay = spell.failed(error)
        else:
            spell.succeeded()
            if once:
                return
        await wake.wait(timeout=max(delay, SHORTEST_PAUSE))
