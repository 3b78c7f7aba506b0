"""Asking the server about the connection itself: does it answer, with which certificate, does it want tokens, are there events.

Owns these few calls, none of which changes anything the server keeps (a CSRF token it gives expires by itself). For
`headrace doctor`; the daemon finds out by doing its work.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import anyio
import httpx

from worker.api.connection import ca_source, path
from worker.api.errors import (
    ApiError,
    InvalidRequest,
    MissingEndpoint,
    NotAnApi,
    NotFound,
    Unreachable,
    explain,
)
from worker.api.events import SUBPROTOCOL, authenticate
from worker.api.transport import Patience, Transport
from worker.api.websocket import Disconnected, NotUpgraded, connect
from worker.settings import ApiSettings

_EVENTS = path("events", "out")


@dataclass(frozen=True, slots=True)
class Reached:
    """An answer to `GET /health`, which needs no credentials (PROTOCOL 1.2).

    `sent` and `received` are our clock's, `date` is the server's, which knows whole seconds only; all in seconds since the
    epoch. `tls` is the version of the protocol and `expires` the end of the certificate, where there are any.
    """

    status: int
    healthy: bool
    sent: float
    received: float
    date: float | None
    tls: str | None = None
    expires: float | None = None


async def reach(
    http: httpx.AsyncClient,
    settings: ApiSettings,
    url: str,
    *,
    timeout: float,
    clock: Callable[[], float] = time.time,
) -> Reached:
    """Ask once for the server's health. Raises Unreachable."""
    operation = "ask for the server's health"
    sent = clock()
    try:
        with anyio.fail_after(timeout):
            async with http.stream("GET", url.rstrip("/") + path("health")) as response:
                received = clock()
                tls, expires = _tls(response)
                body = await response.aread()
    except TimeoutError:
        raise Unreachable(operation, f"no answer within {timeout:g} s") from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Unreachable(operation, explain(error, ca_source=ca_source(settings))) from error
    return Reached(
        status=response.status_code,
        healthy=response.is_success and body.strip() == b"true",
        sent=sent,
        received=received,
        date=_date(response.headers.get("Date")),
        tls=tls,
        expires=expires,
    )


def _date(header: str | None) -> float | None:
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None


def _tls(response: httpx.Response) -> tuple[str | None, float | None]:
    stream = response.extensions.get("network_stream")
    connection: Any = stream.get_extra_info("ssl_object") if stream is not None else None
    if connection is None:
        return None, None
    # Empty where the certificate was not checked.
    certificate: dict[str, Any] = connection.getpeercert() or {}
    ends = certificate.get("notAfter")
    return connection.version(), ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None


async def wants_csrf_tokens(transport: Transport, patience: Patience) -> bool:
    """Whether the server protects writes with tokens, of which it then gave one (PROTOCOL 1.3). Raises ApiError."""
    operation = "get a CSRF token"
    try:
        answer = await transport.request(
            "GET",
            path("csrf-token"),
            operation=operation,
            params={"client": str(uuid4())},
            patience=patience,
        )
    except NotFound:
        return False
    except InvalidRequest as error:
        if error.status != 422:  # noqa: PLR2004 - the code for "disabled"
            raise
        return False
    match answer:
        case {"token": str()}:
            return True
        case _:
            raise NotAnApi(operation, "the answer has no token")


async def count_work_pools(transport: Transport, patience: Patience) -> int:
    """How many work pools there are: a read that needs credentials, and, being a POST, a token. Raises ApiError."""
    operation = "count work pools"
    try:
        answer = await transport.request(
            "POST", path("work_pools", "count"), operation=operation, body={}, patience=patience
        )
    except MissingEndpoint as error:
        raise NotAnApi(operation, f"{transport.url} has no work pools", status=error.status) from error
    if not isinstance(answer, int):
        raise NotAnApi(operation, "the answer is no number")
    return answer


async def sign_in_to_events(transport: Transport, settings: ApiSettings, *, timeout: float) -> None:
    """Open the events websocket, show our credentials, and close it. Raises ApiError."""
    operation = "sign in to the events websocket"
    try:
        with anyio.fail_after(timeout):
            url = transport.url.rstrip("/") + _EVENTS
            async with connect(transport.http, url, subprotocol=SUBPROTOCOL) as websocket:
                await authenticate(websocket, settings)
    except TimeoutError:
        raise Unreachable(operation, f"no answer within {timeout:g} s") from None
    except (NotUpgraded, Disconnected) as error:
        raise ApiError(operation, str(error)) from error
    except httpx.TransportError as error:
        raise Unreachable(operation, explain(error, ca_source=ca_source(settings))) from error
