"""A bell that ends a loop's wait early."""

import anyio


class Wake:
    """Set by whoever has news, waited for by one loop; setting it twice before the loop looks counts once."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """End the current wait, or the next one if nobody waits."""
        self._event.set()

    async def wait(self, *, timeout: float) -> bool:
        """Wait at most `timeout` seconds; True when the bell was rung, which also resets it."""
        with anyio.move_on_after(timeout):
            await self._event.wait()
        rung = self._event.is_set()
        if rung:
            self._event = anyio.Event()
        return rung
