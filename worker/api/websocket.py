"""One websocket over the HTTP client that everything else uses (RFC 6455).

Owns the opening handshake, frames, signs of life and the limits of what is kept in memory. TLS, proxy,
headers and credentials are the client's. It knows nothing of Prefect and never connects again by itself
(`events.py` does both).
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Protocol, cast

import anyio
import httpcore
import httpx
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import ProtocolError, generate_accept_token, generate_nonce

LARGEST_MESSAGE: Final = 1024 * 1024
"""Characters of one message; what is larger is read to its end and thrown away."""
PING_AFTER: Final = 20.0
"""Seconds of silence after which the other side is asked whether it is there, and given as long to answer."""

_CHUNK: Final = 64 * 1024
_WRITE_SECONDS: Final = 20.0
_GOODBYE_SECONDS: Final = 1.0


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


class WebSocket:
    """An open connection, for one task to use; made by `connect`."""

    def __init__(self, stream: NetworkStream, *, ping_after: float = PING_AFTER) -> None:
        self._stream = stream
        self._ping_after = ping_after
        self._frames = Connection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._size = 0

    async def send(self, text: str) -> None:
        """Send one text message. Raises Disconnected."""
        await self._write(self._frames.send(TextMessage(data=text)))

    async def receive(self) -> list[str]:
        """Wait for something to arrive; the text messages that it completes, often none.

        Returns at every sign of life, thus at least once in two times `PING_AFTER`. A message beyond
        `LARGEST_MESSAGE` comes as the empty string. Raises Disconnected.
        """
        data = await self._read()
        completed: list[str] = []
        try:
            self._frames.receive_data(data)
            for event in self._frames.events():
                match event:
                    case Ping():
                        await self._write(self._frames.send(event.response()))
                    case CloseConnection(code=code, reason=reason):
                        await self._end(int(code), reason or "")
                    case TextMessage() | BytesMessage():
                        completed.extend(self._assembled(event.data, last=event.message_finished))
                    case _:
                        pass  # a pong, which was a sign of life
        except ProtocolError as error:
            raise Disconnected(f"not a websocket frame: {error}") from error
        return completed

    async def say_goodbye(self) -> None:
        """Tell the other side that we leave, as far as it takes a moment only."""
        if self._frames.state is not ConnectionState.OPEN:
            return
        with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
            try:
                await self._write(self._frames.send(CloseConnection(code=1000)))
            except Disconnected:
                return

    def _assembled(self, data: str | bytes | bytearray, *, last: bool) -> Iterator[str]:
        """The message that this piece of it completes, if it does; a binary one counts as empty."""
        self._size += len(data)
        if isinstance(data, str) and self._size <= LARGEST_MESSAGE:
            self._parts.append(data)
        else:
            self._parts.clear()
        if last:
            yield "".join(self._parts) if self._size <= LARGEST_MESSAGE else ""
            self._parts.clear()
            self._size = 0

    async def _end(self, code: int, reason: str) -> None:
        if self._frames.state is not ConnectionState.REMOTE_CLOSING:
            # Not the other side's word: what it sent could not be understood.
            raise Disconnected(f"not a websocket frame: {reason}")
        await self._write(self._frames.send(CloseConnection(code=code)))
        raise Disconnected(f"closed with code {code}{': ' if reason else ''}{reason}", code=code)

    async def _read(self) -> bytes:
        asked = False
        while True:
            try:
                data = await self._stream.read(_CHUNK, timeout=self._ping_after)
            except httpcore.ReadTimeout:
                if asked:
                    raise Disconnected(f"no answer to a ping within {self._ping_after:g} s") from None
                asked = True
                await self._write(self._frames.send(Ping()))
                continue
            except httpcore.ReadError as error:
                raise Disconnected(_described(error)) from error
            if not data:
                raise Disconnected("the connection was cut")
            return data

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.write(data, timeout=_WRITE_SECONDS)
        except (httpcore.WriteError, httpcore.WriteTimeout) as error:
            raise Disconnected(_described(error)) from error


@asynccontextmanager
async def connect(http: httpx.AsyncClient, url: str, *, subprotocol: str) -> AsyncGenerator[WebSocket]:
    """Open a websocket at an http(s) URL; the connection is one of the client's, and ends with the context.

    Redirects are not followed: our credentials are for this URL only. Raises NotUpgraded, Disconnected for an
    answer that is none of a websocket server's, and httpx's own `TransportError`.
    """
    key = generate_nonce()
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
        if response.headers.get("Sec-WebSocket-Accept") != generate_accept_token(key).decode("ascii"):
            raise Disconnected("the answer to the handshake belongs to another one: is a cache in between?")
        websocket = WebSocket(cast("NetworkStream", response.extensions["network_stream"]))
        try:
            yield websocket
        finally:
            await websocket.say_goodbye()
    finally:
        await response.aclose()


def _described(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
