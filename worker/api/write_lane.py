"""One write at a time: a Prefect server on SQLite has one writer, and those that wait for it wait in its threads.

Owns the order of our own writes. Two that overlap there cost an instant 503 at best (PROTOCOL 1.5), and at worst the
server stands still until a busy timeout of a minute ends; waiting here costs some milliseconds. The wait is short and
then given up, so that one call that hangs does not keep the others from being sent.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio

LONGEST_WAIT: Final = 0.25
"""Seconds that a write waits for those before it: several times what a healthy server takes for one."""
_QUESTIONS: Final = ("/filter", "/count")


def writes(method: str, path: str) -> bool:
    """Whether the server writes to its database to answer this; asking for scheduled runs does (PROTOCOL 2.3)."""
    return method not in {"GET", "HEAD"} and not path.endswith(_QUESTIONS)


class WriteLane:
    """Lets one write through at a time; one for each server."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()

    @asynccontextmanager
    async def turn(self, method: str, path: str) -> AsyncGenerator[None]:
        """Wait for a turn, but not for long; a question has none to wait for."""
        mine = False
        if writes(method, path):
            with anyio.move_on_after(LONGEST_WAIT):
                await self._lock.acquire()
                mine = True
        try:
            yield
        finally:
            if mine:
                self._lock.release()
