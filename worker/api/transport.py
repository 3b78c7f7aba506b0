"""One connection to the server: a call gets there, and gets there again.

Owns the retry loop: how long a call is tried, how it waits, what is logged meanwhile. A single try is
`exchange.py`, the URL, headers and TLS are `connection.py`, the reporting of outages is `outage.py`. It
knows no endpoint (`client.py` does) and decides nothing about answers (`errors.judge` does). Nothing it
logs or raises holds a credential or a body.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypedDict
from uuid import UUID

import anyio
import httpx
import structlog
from structlog.typing import FilteringBoundLogger

from worker.api.connection import base_url, path
from worker.api.errors import (
    Answer,
    ApiError,
    Refusal,
    ServerFault,
    StaleCsrfToken,
    Trouble,
    Unauthorized,
    Unreachable,
    Verdict,
    backoff,
    shown,
)
from worker.api.exchange import Call, Exchange
from worker.api.outage import Outage
from worker.api.write_lane import WriteLane
from worker.settings import ApiSettings

_MOST_CSRF_RENEWALS: Final = 3
_STUCK_SECONDS: Final = 60.0
_OVERLOADED: Final = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)


class Patience(TypedDict, total=False):
    """How long one call may go on trying; without either, transient trouble is waited out for ever."""

    max_tries: int
    """Tries in all, the first one included."""
    deadline: float
    """A time of the clock `anyio.current_time`; also interrupts a try in flight."""


class Transport:
    """Sends calls until they are answered. One per daemon, entered before first use, left last.

    401 and answers that are no API answers are raised at once until the server has accepted our
    credentials once; from then on they are waited out, so that a key being rotated or a proxy being
    replaced does not end the daemon. A 403 can be the rightful answer to one operation, so it is
    tried a few times and then raised. So is a 500, unless nobody is answered any better: then it is an
    outage like any other. `random` gives numbers in [0, 1), `now` an aware time (for dates in
    `Retry-After`), `monotonic` the clock of deadlines.
    """

    def __init__(
        self,
        *,
        settings: ApiSettings,
        random: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = anyio.current_time,
        log: FilteringBoundLogger | None = None,
        headers: Mapping[str, str] | None = None,
        csrf_client: UUID | None = None,
    ) -> None:
        self._settings = settings
        self._random = random
        self._sleep = sleep
        self._monotonic = monotonic
        self._log: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        url = base_url(settings)
        self._url = shown(url)
        self.outage = Outage(url=self._url, log=self._log, monotonic=monotonic)
        self._exchange = Exchange(
            settings=settings,
            url=url,
            attribution=headers or {},
            outage=self.outage,
            transport=transport,
            now=now,
            csrf_client=csrf_client,
        )
        self._lane = WriteLane()
        self._observe: Callable[[float, bool], None] = lambda _seconds, _overloaded: None

    def watch(self, observe: Callable[[float, bool], None]) -> None:
        """Tell `observe` of every try from now on: its seconds, and whether the server was overloaded."""
        self._observe = observe

    @property
    def url(self) -> str:
        """The base URL as it may be printed."""
        return self._url

    @property
    def http(self) -> httpx.AsyncClient:
        """The one HTTP client, for those who speak something else over it (the events websocket)."""
        return self._exchange.http

    async def __aenter__(self) -> Self:
        await self._exchange.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.__aexit__(kind, error, trace)

    def attribute(self, name: str, value: str) -> None:
        """Send one more attribution header from now on; one that no header can carry is left out."""
        self._exchange.attribute(name, value)

    async def request(
        self,
        method: str,
        path: str,
        *,
        operation: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        forbidden_is_final: bool = False,
        patience: Patience | None = None,
    ) -> Any:
        """Send one call until it is answered; the decoded JSON body, None for an empty one.

        Every try sends the identical bytes. `forbidden_is_final`: a 403 is this operation's own answer.
        Raises the errors drawn in `client.py`; `Unreachable` only if `patience` sets a bound.
        """
        call = Call(method=method, path=path, operation=operation, content=_encode(body), params=params)
        bounds: Patience = patience if patience is not None else {}
        if "deadline" not in bounds:
            return await self._until_answered(call, bounds, forbidden_is_final=forbidden_is_final)
        with anyio.move_on_after(max(0.0, bounds["deadline"] - self._monotonic())):
            return await self._until_answered(call, bounds, forbidden_is_final=forbidden_is_final)
        raise Unreachable(operation, "no answer before the deadline")

    async def _until_answered(self, call: Call, bounds: Patience, *, forbidden_is_final: bool) -> Any:
        tries = bounded_tries = renewals = 0
        first_failure: float | None = None
        stuck = False
        while True:
            async with self._lane.turn(call.method, call.path):
                started = self._monotonic()
                verdict = await self._exchange.attempt(call)
            self._observe(self._monotonic() - started, _overloaded(verdict))
            if isinstance(verdict, StaleCsrfToken):
                renewals += 1
                if renewals <= _MOST_CSRF_RENEWALS:
                    continue
                verdict = Trouble(verdict.error, bounded=True)
            if isinstance(verdict, Answer):
                if stuck:
                    self._log.info("api.call_answered", operation=call.operation, tries=tries + 1)
                return verdict.value
            if isinstance(verdict, Refusal):
                raise verdict.error
            tries += 1
            bounded_tries += verdict.bounded
            verdict = await self._weighed(verdict, last=bounded_tries > self._settings.max_retries)
            first_failure = self._monotonic() if first_failure is None else first_failure
            if (verdict.bounded and bounded_tries > self._settings.max_retries) or (
                forbidden_is_final and isinstance(verdict.error, Unauthorized)
            ):
                raise verdict.error
            if not verdict.bounded:
                self.outage.failed(
                    reason=verdict.error.reason, started=started, first_failure=first_failure, tries=tries
                )
            delay = self._delay(verdict, tries)
            self._give_up_if_due(verdict.error, tries, delay, bounds)
            line = {"operation": call.operation, "reason": verdict.error.reason, "tries": tries}
            self._log.debug("api.retried", **line, delay_seconds=round(delay, 3))
            waited = self._monotonic() - first_failure
            if waited >= _STUCK_SECONDS and not stuck and not self.outage.announced:
                stuck = True
                self._log.warning("api.call_delayed", **line, waited_seconds=round(waited, 1))
            await self._pause(delay, until_recovery=verdict.after is None)

    async def _weighed(self, trouble: Trouble, *, last: bool) -> Trouble:
        """Make a fault that is not this call's alone one that is waited out.

        Before the fault of the `last` try is raised, the server is asked whether it is ready: that looks at
        its database and at no object, so a single run that cannot be read does not spoil the answer.
        """
        if not isinstance(trouble.error, ServerFault):
            return trouble
        if self.outage.announced or (last and not await self._is_ready()):
            return replace(trouble, bounded=False)
        return trouble

    async def _is_ready(self) -> bool:
        """Whether the server gives a sound answer to a question that concerns no object."""
        question = Call(
            method="GET", path=path("ready"), operation="ask for readiness", content=None, params=None
        )
        match await self._exchange.attempt(question):
            case Trouble(error=ServerFault() | Unreachable()):
                return False
            case Answer() | Refusal() | StaleCsrfToken() | Trouble():
                return True

    def _delay(self, trouble: Trouble, tries: int) -> float:
        if trouble.after is None:
            return backoff(tries, self._random)
        return trouble.after * (1 + self._settings.retry_jitter_factor * self._random())

    def _give_up_if_due(self, error: ApiError, tries: int, delay: float, bounds: Patience) -> None:
        used_up = "max_tries" in bounds and tries >= bounds["max_tries"]
        too_late = "deadline" in bounds and self._monotonic() + delay >= bounds["deadline"]
        if used_up or too_late:
            raise error

    async def _pause(self, delay: float, *, until_recovery: bool) -> None:
        """Wait; a long wait of our own choosing ends when another call finds the server back."""
        if not (until_recovery and self.outage.announced):
            await self._sleep(delay)
            return
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_at_recovery, scope)
                await self._sleep(delay)
                scope.cancel()

    async def _end_at_recovery(self, scope: anyio.CancelScope) -> None:
        await self.outage.recovery()
        scope.cancel()


def _overloaded(verdict: Verdict) -> bool:
    """Whether the answer is that of a server with too much to do; one that does not answer at all takes long."""
    return isinstance(verdict, Trouble) and verdict.error.status in _OVERLOADED


def _encode(body: Any) -> bytes | None:
    """JSON as sent; a lone surrogate (undecodable output of a process) becomes a question mark."""
    if body is None:
        return None
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")
