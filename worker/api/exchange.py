"""One try of a call: one request, its redirects and the verdict on the answer.

Owns the HTTP client, the CSRF token, which redirects are followed and whether the server has accepted our
credentials. It never tries again (`transport.py` does), knows no endpoint but the token's, and decides
nothing about answers (`errors.judge` does). Nothing it raises holds a credential or a body.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Self, assert_never
from uuid import UUID, uuid4

import anyio
import httpx

from worker.api.connection import ca_source, open_client, path, request_headers, sendable
from worker.api.errors import (
    Answer,
    InvalidRequest,
    MissingEndpoint,
    NotAnApi,
    NotFound,
    Refusal,
    StaleCsrfToken,
    Trouble,
    Unauthorized,
    Unreachable,
    Verdict,
    explain,
    judge,
    shown,
)
from worker.api.outage import Outage
from worker.settings import ApiSettings

_MOST_REDIRECTS: Final = 5
_PHASES: Final = 4
"""Getting a connection from the pool, connecting, sending, receiving: each may take the request timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call to be sent, the same at every try; `operation` is how errors name it."""

    method: str
    path: str
    operation: str
    content: bytes | None
    params: Mapping[str, str] | None

    @property
    def writes(self) -> bool:
        """Whether the server may ask for a CSRF token."""
        return self.method in {"POST", "PUT", "PATCH", "DELETE"}


class Exchange:
    """Sends single requests; entered before first use, left last. `now` gives aware times."""

    def __init__(
        self,
        *,
        settings: ApiSettings,
        url: httpx.URL,
        attribution: Mapping[str, str],
        outage: Outage,
        transport: httpx.AsyncBaseTransport | None,
        now: Callable[[], datetime],
        csrf_client: UUID | None,
    ) -> None:
        self._settings = settings
        self._url = url
        self._headers = request_headers(settings, attribution)
        self._outage = outage
        self._inner = transport
        self._now = now
        self._http: httpx.AsyncClient | None = None
        self._exit = AsyncExitStack()
        self._trusted = False
        self._csrf_client = str(csrf_client or uuid4())
        self._csrf_wanted = not settings.is_cloud
        self._csrf_token: str | None = None
        self._csrf_lock = anyio.Lock()

    @property
    def http(self) -> httpx.AsyncClient:
        """The one HTTP client, for those who speak something else over it (the events websocket)."""
        if self._http is None:
            raise RuntimeError("the transport is used outside of its `async with`")
        return self._http

    async def __aenter__(self) -> Self:
        self._http = await self._exit.enter_async_context(
            open_client(self._settings, url=self._url, headers=self._headers, transport=self._inner)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http = None
        await self._exit.aclose()

    def attribute(self, name: str, value: str) -> None:
        """Send one more attribution header from now on; one that no header can carry is left out."""
        if sendable(value):
            self.http.headers[name] = value

    async def attempt(self, call: Call) -> Verdict:
        """Send `call` once, with a CSRF token where the server wants one, and judge the answer."""
        headers: dict[str, str] = {}
        token: str | None = None
        if call.writes and self._csrf_wanted:
            verdict = await self._fresh_csrf_token(call)
            if not isinstance(verdict, Answer):
                return verdict
            token = verdict.value
            if token is not None:
                headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": self._csrf_client}
        verdict = await self._send(call, headers)
        if isinstance(verdict, StaleCsrfToken) and self._csrf_token == token:
            # Only the first of several concurrent calls drops it: fetching a token invalidates the one before.
            self._csrf_token = None
            self._csrf_wanted = not self._settings.is_cloud
        return verdict

    async def _fresh_csrf_token(self, call: Call) -> Verdict:
        """The token, fetched if there is none; None if the server wants none (PROTOCOL 1.3)."""
        async with self._csrf_lock:
            if self._csrf_token is not None or not self._csrf_wanted:
                return Answer(self._csrf_token)
            fetch = Call(
                method="GET",
                path=path("csrf-token"),
                operation=f"{call.operation}: get a CSRF token",
                content=None,
                params={"client": self._csrf_client},
            )
            verdict = await self._send(fetch, {})
            match verdict:
                case Answer(value={"token": str(token)}):
                    self._csrf_token = token
                    return Answer(token)
                case Answer():
                    return Refusal(NotAnApi(fetch.operation, f"{shown(self._url)} answers without a token"))
                case Refusal(error=NotFound()) | Refusal(error=InvalidRequest(status=422)):
                    self._csrf_wanted = False
                    return Answer(None)
                case Refusal() | StaleCsrfToken() | Trouble():
                    return verdict
                case _:
                    assert_never(verdict)

    async def _send(self, call: Call, headers: Mapping[str, str]) -> Verdict:
        """One try: one request and the redirects it is sent through.

        The HTTP client's time-outs bound each wait for the next bytes, so an answer that trickles in would never
        end; the try as a whole has a bound, too.
        """
        longest = self._settings.request_timeout * _PHASES
        request = self.http.build_request(
            call.method,
            str(self._url).rstrip("/") + call.path,
            params=call.params,
            content=call.content,
            headers={**headers, **({"Content-Type": "application/json"} if call.content is not None else {})},
        )
        try:
            with anyio.fail_after(longest):
                response = await self._follow(request)
        except TimeoutError:
            reason = f"no complete answer within {longest:g} s ({_PHASES} x PREFECT_API_REQUEST_TIMEOUT)"
            return Trouble(Unreachable(call.operation, reason))
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = explain(error, ca_source=ca_source(self._settings))
            return Trouble(Unreachable(call.operation, reason))
        verdict = judge(
            response,
            operation=call.operation,
            now=self._now(),
            extra_codes=self._settings.retry_extra_codes,
            trusted=self._trusted,
        )
        match verdict:
            case (
                Refusal(error=Unauthorized() | NotAnApi() | MissingEndpoint()) | StaleCsrfToken() | Trouble()
            ):
                pass
            case Answer() | Refusal():
                self._trusted = True
                self._outage.succeeded()
            case _:
                assert_never(verdict)
        return verdict

    async def _follow(self, request: httpx.Request) -> httpx.Response:
        """Send; follow redirects that stay at this server and keep the method, no others.

        Elsewhere our credentials and custom headers are not meant for, and a POST turned into a GET
        would be taken for success.
        """
        response = await self.http.send(request, follow_redirects=False)
        for _ in range(_MOST_REDIRECTS):
            following = response.next_request
            if (
                following is None
                or following.method != request.method
                or not _same_origin(following.url, request.url)
            ):
                break
            response = await self.http.send(following, follow_redirects=False)
        return response


def _same_origin(left: httpx.URL, right: httpx.URL) -> bool:
    return (left.scheme, left.host, left.port) == (right.scheme, right.host, right.port)
