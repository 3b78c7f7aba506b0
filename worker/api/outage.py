"""Whether the server answers, and what is logged about it.

Owns the judgement when failed tries are an outage, its two log lines and the wait for its end. It sends
nothing and retries nothing: `transport.py` tells it of failures, `exchange.py` of sound answers.
"""

from collections.abc import Callable
from typing import Final

import anyio
from structlog.typing import FilteringBoundLogger

_OUTAGE_SECONDS: Final = 1.0
_OUTAGE_TRIES: Final = 3


class Outage:
    """Whether the server answers, as every call sees it: one warning per outage, one line at its end.

    Lives as long as the transport. Single blips are not worth a line (an SQLite server answers 503
    all day); trouble is, once nothing has succeeded for a second, or through three tries of one call.
    """

    def __init__(self, *, url: str, log: FilteringBoundLogger, monotonic: Callable[[], float]) -> None:
        self._url = url
        self._log = log
        self._monotonic = monotonic
        self._since: float | None = None
        self._announced = False
        self._recovered = anyio.Event()
        self.last_success: float | None = None

    @property
    def announced(self) -> bool:
        """Whether the warning is out and nothing has succeeded since."""
        return self._announced

    async def recovery(self) -> None:
        """Wait for the end of an announced outage."""
        await self._recovered.wait()

    def failed(self, *, reason: str, started: float, first_failure: float, tries: int) -> None:
        """Note a failed try that began at `started`, the `tries`-th of a call failing since `first_failure`."""
        now = self._monotonic()
        if self._since is None:
            self._since = started if self.last_success is None else max(started, self.last_success)
        alone = tries >= _OUTAGE_TRIES and first_failure >= self._since
        if not self._announced and (alone or now - self._since >= _OUTAGE_SECONDS):
            self._announced = True
            self._log.warning("api.unreachable", url=self._url, reason=reason)

    def succeeded(self) -> None:
        """Note an answer that only a working server gives."""
        self.last_success = self._monotonic()
        if self._announced and self._since is not None:
            self._log.info(
                "api.recovered", url=self._url, outage_seconds=round(self.last_success - self._since, 1)
            )
            self._recovered.set()
            self._recovered = anyio.Event()
        self._since = None
        self._announced = False
