"""One connection to the server: how a call gets there, and gets there again.

Owns the base URL, headers and credentials, TLS, the CSRF token, redirects, the retry loop and the
reporting of outages. It knows no endpoint (`client.py` does) and decides nothing about answers
(`errors.judge` does). Nothing it logs or raises holds a credential or a body.
"""

import base64
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict, assert_never
from urllib.parse import quote
from uuid import UUID, uuid4

import anyio
import httpx
import structlog
from structlog.typing import FilteringBoundLogger

from worker import __version__
from worker.api.errors import (
    Answer,
    ApiError,
    InvalidRequest,
    Misconfigured,
    MissingEndpoint,
    NotAnApi,
    NotFound,
    Refusal,
    StaleCsrfToken,
    Trouble,
    Unauthorized,
    Unreachable,
    Verdict,
    backoff,
    explain,
    judge,
    shown,
)
from worker.settings import ApiSettings

API_VERSION: Final = "0.8.4"
"""The same in every 3.x release (PROTOCOL 1.2)."""

_IGNORED_CUSTOM_HEADERS: Final = frozenset({"user-agent", "prefect-csrf-token", "prefect-csrf-client"})
_LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=25.0)
_MOST_REDIRECTS: Final = 5
_MOST_CSRF_RENEWALS: Final = 3
_OUTAGE_SECONDS: Final = 1.0
_OUTAGE_TRIES: Final = 3
_STUCK_SECONDS: Final = 60.0


class Patience(TypedDict, total=False):
    """How long one call may go on trying; without either, transient trouble is waited out for ever."""

    max_tries: int
    """Tries in all, the first one included."""
    deadline: float
    """A time of the clock `anyio.current_time`; also interrupts a try in flight."""


def path(*segments: str) -> str:
    """Join percent-encoded segments to a path; a last empty one makes the trailing slash.

    Names may hold `#`, `?`, space and non-ASCII (PROTOCOL 1.1). Dots alone would be taken for `..`.
    """
    return "".join(f"/{quote(s, safe='') if s.strip('.') else s.replace('.', '%2E')}" for s in segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    method: str
    path: str
    operation: str
    content: bytes | None
    params: Mapping[str, str] | None

    @property
    def writes(self) -> bool:
        return self.method in {"POST", "PUT", "PATCH", "DELETE"}


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


class Transport:
    """Sends calls until they are answered. One per daemon, entered before first use, left last.

    401 and answers that are no API answers are raised at once until the server has accepted our
    credentials once; from then on they are waited out, so that a key being rotated or a proxy being
    replaced does not end the daemon. A 403 can be the rightful answer to one operation, so it is
    tried a few times and then raised. `random` gives numbers in [0, 1), `now` an aware time (for
    dates in `Retry-After`), `monotonic` the clock of deadlines.
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
        self._inner = transport
        self._sleep = sleep
        self._now = now
        self._monotonic = monotonic
        self._log: FilteringBoundLogger = log if log is not None else structlog.get_logger()
        self._url = base_url(settings)
        self._headers = request_headers(settings, headers or {})
        self._http: httpx.AsyncClient | None = None
        self._exit = AsyncExitStack()
        self._trusted = False
        self._csrf_client = str(csrf_client or uuid4())
        self._csrf_wanted = not settings.is_cloud
        self._csrf_token: str | None = None
        self._csrf_lock = anyio.Lock()
        self.outage = Outage(url=self.url, log=self._log, monotonic=monotonic)

    @property
    def url(self) -> str:
        """The base URL as it may be printed."""
        return shown(self._url)

    @property
    def http(self) -> httpx.AsyncClient:
        """The one HTTP client, for those who speak something else over it (the events websocket)."""
        if self._http is None:
            raise RuntimeError("the transport is used outside of its `async with`")
        return self._http

    async def __aenter__(self) -> Self:
        self._http = await self._exit.enter_async_context(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http = None
        await self._exit.aclose()

    def _open(self) -> httpx.AsyncClient:
        try:
            return httpx.AsyncClient(
                headers=self._headers,
                verify=tls_context(self._settings, self._url) if self._inner is None else False,
                http2=self._settings.enable_http2,
                limits=_LIMITS,
                timeout=self._settings.request_timeout,
                transport=self._inner,
            )
        except ImportError as error:
            raise Misconfigured("connect", f"PREFECT_API_ENABLE_HTTP2: {error}") from error

    def attribute(self, name: str, value: str) -> None:
        """Send one more attribution header from now on; one that no header can carry is left out."""
        if _sendable(value):
            self.http.headers[name] = value

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
        call = _Call(method=method, path=path, operation=operation, content=_encode(body), params=params)
        bounds: Patience = patience if patience is not None else {}
        if "deadline" not in bounds:
            return await self._until_answered(call, bounds, forbidden_is_final=forbidden_is_final)
        with anyio.move_on_after(max(0.0, bounds["deadline"] - self._monotonic())):
            return await self._until_answered(call, bounds, forbidden_is_final=forbidden_is_final)
        raise Unreachable(operation, "no answer before the deadline")

    async def _until_answered(self, call: _Call, bounds: Patience, *, forbidden_is_final: bool) -> Any:
        tries = bounded_tries = renewals = 0
        first_failure: float | None = None
        stuck = False
        while True:
            started = self._monotonic()
            verdict = await self._try(call)
            if isinstance(verdict, StaleCsrfToken):
                renewals += 1
                if renewals <= _MOST_CSRF_RENEWALS:
                    continue
                verdict = Trouble(verdict.error, bounded=True)
            if isinstance(verdict, Answer):
                return verdict.value
            if isinstance(verdict, Refusal):
                raise verdict.error
            tries += 1
            bounded_tries += verdict.bounded
            first_failure = self._monotonic() if first_failure is None else first_failure
            if bounded_tries > self._settings.max_retries or (
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

    async def _try(self, call: _Call) -> Verdict:
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

    async def _fresh_csrf_token(self, call: _Call) -> Verdict:
        """The token, fetched if there is none; None if the server wants none (PROTOCOL 1.3)."""
        async with self._csrf_lock:
            if self._csrf_token is not None or not self._csrf_wanted:
                return Answer(self._csrf_token)
            fetch = _Call(
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
                    return Refusal(NotAnApi(fetch.operation, f"{self.url} answers without a token"))
                case Refusal(error=NotFound()) | Refusal(error=InvalidRequest(status=422)):
                    self._csrf_wanted = False
                    return Answer(None)
                case Refusal() | StaleCsrfToken() | Trouble():
                    return verdict
                case _:
                    assert_never(verdict)

    async def _send(self, call: _Call, headers: Mapping[str, str]) -> Verdict:
        """One try: one request and the redirects it is sent through."""
        request = self.http.build_request(
            call.method,
            str(self._url).rstrip("/") + call.path,
            params=call.params,
            content=call.content,
            headers={**headers, **({"Content-Type": "application/json"} if call.content is not None else {})},
        )
        try:
            response = await self._follow(request)
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = explain(error, ca_source=_ca_source(self._settings))
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
                self.outage.succeeded()
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


def _encode(body: Any) -> bytes | None:
    """JSON as sent; a lone surrogate (undecodable output of a process) becomes a question mark."""
    if body is None:
        return None
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def base_url(settings: ApiSettings) -> httpx.URL:
    """The API's base URL, without credentials; raises `Misconfigured` for none or an unusable one."""
    if not settings.url:
        raise Misconfigured(
            "connect", "PREFECT_API_URL is not set: set it, for example to http://127.0.0.1:4200/api"
        )
    try:
        url = httpx.URL(settings.url.strip())
    except httpx.InvalidURL as error:
        raise Misconfigured("connect", f"PREFECT_API_URL is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise Misconfigured("connect", "PREFECT_API_URL must begin with http:// or https:// and name a host")
    return url.copy_with(userinfo=b"", query=None, fragment=None)


def request_headers(settings: ApiSettings, attribution: Mapping[str, str]) -> httpx.Headers:
    """The headers of every request (PROTOCOL 1.2); later ones win, custom headers last.

    That key and custom headers can be sent at all is checked by `worker.settings`.
    """
    headers = httpx.Headers({"X-PREFECT-API-VERSION": API_VERSION, "User-Agent": f"headrace/{__version__}"})
    headers.update({name: value for name, value in attribution.items() if _sendable(value)})
    url = httpx.URL((settings.url or "").strip())
    if settings.auth_string is not None:
        headers["Authorization"] = _basic(settings.auth_string.get_secret_value().strip())
    elif settings.key is not None:
        headers["Authorization"] = f"Bearer {settings.key.get_secret_value().strip()}"
    elif url.userinfo:
        headers["Authorization"] = _basic(f"{url.username}:{url.password}")
    headers.update(
        {
            name: value
            for name, value in settings.custom_headers.items()
            if name.lower() not in _IGNORED_CUSTOM_HEADERS
        }
    )
    return headers


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode("ascii")


def _sendable(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()


def tls_context(settings: ApiSettings, url: httpx.URL) -> ssl.SSLContext:
    """The one TLS context; for plain http one that trusts nobody, because reading a CA bundle takes 45 ms."""
    if url.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.tls_insecure_skip_verify:
        return httpx.create_ssl_context(verify=False)
    if settings.ssl_cert_file is None:
        return httpx.create_ssl_context()
    source = Path(settings.ssl_cert_file).expanduser()
    try:
        if source.is_dir():
            return ssl.create_default_context(capath=str(source))
        return ssl.create_default_context(cafile=str(source))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise Misconfigured("connect", f"PREFECT_API_SSL_CERT_FILE={source}: {reason}") from error


def _ca_source(settings: ApiSettings) -> str:
    return (
        str(settings.ssl_cert_file)
        if settings.ssl_cert_file is not None
        else "the default certificate bundle"
    )
