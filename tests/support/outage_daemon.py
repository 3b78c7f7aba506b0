"""Our daemon with its long pauses shortened, for outages that last ten minutes by its own reckoning.

Run as `python -m tests.support.outage_daemon start …`, with the arguments of `headrace`. Scaled: how long
`worker.api.transport` waits before it tries a call again, divided by `SCALE` wherever that is more than
`REAL_PAUSE` seconds. Not scaled: the first, short pauses (a busy SQLite server is to be asked as gently
as ever, and three quick tries are not to be taken for an outage), every clock, the time-out of a request, the
intervals of the daemon's loops, the processes, the sockets, the server. The `api.retried` lines of the log tell
the pauses as they would have been.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from worker import cli
from worker.api import client
from worker.api.transport import Transport

SCALE: Final = 60.0
REAL_PAUSE: Final = 1.0


def shortened(seconds: float) -> float:
    """How long a pause of so many seconds really takes here."""
    return seconds if seconds <= REAL_PAUSE else seconds / SCALE


async def sleep_shortened(seconds: float) -> None:
    await anyio.sleep(shortened(seconds))


class HastyTransport(Transport):
    """The transport with another sleep, whatever its maker hands in."""

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]], **collaborators: Any) -> None:
        del sleep
        super().__init__(sleep=sleep_shortened, **collaborators)


if __name__ == "__main__":
    client.Transport = HastyTransport
    cli.main()
