"""One websocket over the HTTP client that everything else uses (RFC 6455).

Owns the opening handshake; the frames that follow are `websocket_frames.py`. TLS, proxy, headers and credentials
are the client's. It knows nothing of Prefect and never connects again by itself (`events.py` does both).
"""

import base64
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Protocol, cast

import httpx

LARGEST_MESSAGE: Final = 1024 * 1024
"""Characters of one message; what is larger is read to its end and thrown away."""
PING_AFTER: Final = 20.0
"""Seconds of silence after which the other side is asked whether it is there, and given as long to answer."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Disconnected(Exception):
    """The connection is over; `code` is the one the other side closed it with, if it did (RFC 6455, 7.4)."""

    def __init__(self, reason: str, *, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class NotUpgraded(Exception):
    """The handshake was answered with plain HTTP; `status` is its code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the answer to the websocket handshake is HTTP {status}")
        self.status = status


class NetworkStream(Protocol):
    """What httpx hands over after an upgrade (its extension `network_stream`)."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Whatever has arrived, empty at the end; `httpcore.ReadTimeout` after `timeout` seconds."""
        ...

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it; `httpcore.WriteTimeout` after `timeout` seconds."""
        ...


class WebSocket(Protocol):
    """An open connection, for one task to use; made by `connect`."""

    async def send(self, text: str) -> None:
        """Send one text message. Raises Disconnected."""
        ...

    async def receive(self) -> list[str]:
        """Wait for something to arrive; the text messages that it completes, often none.

        Returns at every sign of life, thus at least once in two times `PING_AFTER`. A message beyond
        `LARGEST_MESSAGE` comes as the empty string. Raises Disconnected.
        """
        ...


@asynccontextmanager
async def connect(http: httpx.AsyncClient, url: str, *, subprotocol: str) -> AsyncGenerator[WebSocket]:
    """Open a websocket at an http(s) URL; the connection is one of the client's, and ends with the context.

    Redirects are not followed: our credentials are for this URL only. Raises NotUpgraded, Disconnected for an
    answer that is none of a websocket server's, and httpx's own `TransportError`.
    """
    from worker.api.websocket_frames import FramedWebSocket  # noqa: PLC0415 - the first events are early enough

    key = base64.b64encode(os.urandom(16))
    request = http.build_request(
        "GET",
        url,
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": key.decode("ascii"),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": subprotocol,
        },
    )
    # A custom header of the client must not promise what we cannot do (PROTOCOL 1.2).
    request.headers.pop("Sec-WebSocket-Extensions", None)
    response = await http.send(request, stream=True, follow_redirects=False)
    try:
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            raise NotUpgraded(response.status_code)
        if response.headers.get("Sec-WebSocket-Accept") != _accepting(key):
            raise Disconnected("the answer to the handshake belongs to another one: is a cache in between?")
        websocket = FramedWebSocket(cast("NetworkStream", response.extensions["network_stream"]))
        try:
            yield websocket
        finally:
            await websocket.say_goodbye()
    finally:
        await response.aclose()


def _accepting(key: bytes) -> str:
    """What a server answers to this key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii")
