"""Whether the server answers, and what is logged about it.

Owns the judgement when failed tries are an outage, its two log lines and the wait for its end. It sends
nothing and retries nothing: `transport.py` tells it of failures, `exchange.py` of sound answers.
"""

from collections.abc import Callable
from typing import Final

import anyio
from structlog.typing import FilteringBoundLogger

_OUTAGE_SECONDS: Final = 5.0
# Of a server that has never answered: whoever starts the daemon with a wrong address is watching.
_FIRST_SECONDS: Final = 1.0
_FIRST_TRIES: Final = 3


class Outage:
    """Whether the server answers, as every call sees it: one warning per outage, one line at its end.

    Lives as long as the transport. Blips are not worth a line: one server answers 503 all day while
    others write (SQLite, PROTOCOL 1.5), another cuts what it does not like. Trouble is, once nothing at all
    has succeeded for five seconds; before the first success, for one second or through three tries of a call.
    """

    def __init__(self, *, url: str, log: FilteringBoundLogger, monotonic: Callable[[], float]) -> None:
        self._url = url
        self._log = log
        self._monotonic = monotonic
        self._since: float | None = None
        self._announced = False
        self._recovered = anyio.Event()
        self.last_success: float | None = None
        # Of outages, in seconds; of the current one up to its last failed try. Never goes down.
        self.seconds = 0.0
        self._earlier_seconds = 0.0

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
        if self.last_success is None:
            alone = tries >= _FIRST_TRIES and first_failure >= self._since
            lasting = alone or now - self._since >= _FIRST_SECONDS
        else:
            lasting = now - self._since >= _OUTAGE_SECONDS
        if lasting and not self._announced:
            self._announced = True
            self._log.warning("api.unreachable", url=self._url, reason=reason)
        if self._announced:
            self.seconds = self._earlier_seconds + now - self._since

    def succeeded(self) -> None:
        """Note an answer that only a working server gives."""
        self.last_success = self._monotonic()
        if self._announced and self._since is not None:
            self._log.info(
                "api.recovered", url=self._url, outage_seconds=round(self.last_success - self._since, 1)
            )
            self.seconds = self._earlier_seconds = self._earlier_seconds + self.last_success - self._since
            self._recovered.set()
            self._recovered = anyio.Event()
        self._since = None
        self._announced = False
