"""The frames of one websocket: what is said, signs of life, and the limits of what is kept in memory (RFC 6455).

Owns an open connection, from after the handshake (`websocket.py`) to its end. Kept apart because only those who
have events need it: wsproto is slow to import.
"""

from collections.abc import Iterator
from typing import Final

import anyio
import httpcore
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import ProtocolError

from worker.api.websocket import LARGEST_MESSAGE, PING_AFTER, Disconnected, NetworkStream

_CHUNK: Final = 64 * 1024
_WRITE_SECONDS: Final = 20.0
_GOODBYE_SECONDS: Final = 1.0


class FramedWebSocket:
    """An open connection, for one task to use; made by `websocket.connect`."""

    def __init__(self, stream: NetworkStream, *, ping_after: float = PING_AFTER) -> None:
        self._stream = stream
        self._ping_after = ping_after
        self._frames = Connection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._size = 0

    async def send(self, text: str) -> None:
        """As `websocket.WebSocket` promises."""
        await self._write(self._frames.send(TextMessage(data=text)))

    async def receive(self) -> list[str]:
        """As `websocket.WebSocket` promises."""
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


def _described(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
