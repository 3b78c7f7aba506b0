"""Asking again for what matters: the last word about a run is worth some tries more than the client makes."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import structlog

from worker.api.errors import ServerFault

# How long a server that answers with faults is asked again, in seconds.
PATIENCE = 300.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0

T = TypeVar("T")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Ask until the server gives a sound answer, for `PATIENCE` seconds at least; raises ServerFault after that.

    The client has waited out what is transient; what is left are answers such as 500. A run that the server cannot even read
    must not hold its slot for ever.
    """
    deadline = anyio.current_time() + PATIENCE
    pause = FIRST_PAUSE
    while True:
        try:
            return await call()
        except ServerFault as error:
            if anyio.current_time() >= deadline:
                raise
            structlog.get_logger().debug("flow_run.report_retried", reason=str(error), pause=pause)
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
