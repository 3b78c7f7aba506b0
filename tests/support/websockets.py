"""The other end of a websocket in memory: a script of what arrives, a record of what was said.

For unit tests of `worker.api`: the transport below httpx is replaced, never the client.
"""

from collections import deque
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import httpcore
import httpx
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing arrives until the reader's patience ends; takes no time."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The network says that the connection is no more."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes as they are."""

    data: bytes


Step = str | Event | Silence | Broken | Raw


@dataclass(slots=True)
class OtherEnd:
    """Says `steps` one after the other, then nothing for ever; `auth_success` answers the auth frame by itself."""

    steps: deque[Step] = field(default_factory=deque[Step])
    greets: bool = True
    said: list[str] = field(default_factory=list[str])
    pings: int = 0
    pongs: list[bytes] = field(default_factory=list[bytes])
    closes: list[int] = field(default_factory=list[int])
    closed: bool = False
    refuses_writes: bool = False
    _frames: Connection = field(default_factory=lambda: Connection(ConnectionType.SERVER))
    _news: anyio.Event = field(default_factory=anyio.Event)

    def then(self, *steps: Step) -> None:
        """Say these, too."""
        self.steps.extend(steps)
        self._news.set()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        assert max_bytes > 0
        assert timeout is not None, "a read that may wait for ever"
        await anyio.lowlevel.checkpoint()
        while not self.steps:
            self._news = anyio.Event()
            await self._news.wait()
        match step := self.steps.popleft():
            case Silence():
                raise httpcore.ReadTimeout
            case Broken():
                raise httpcore.ReadError
            case Raw(data=data):
                return data
            case str():
                return self._frames.send(TextMessage(data=step))
            case _:
                return self._frames.send(step)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        assert timeout is not None, "a write that may wait for ever"
        await anyio.lowlevel.checkpoint()
        if self.refuses_writes:
            raise httpcore.WriteError
        self._frames.receive_data(buffer)
        for event in self._frames.events():
            match event:
                case TextMessage(data=text):
                    self.said.append(text)
                    if self.greets and '"auth"' in text:
                        self.steps.appendleft('{"type": "auth_success"}')
                        self._news.set()
                case Ping():
                    self.pings += 1
                case Pong(payload=payload):
                    self.pongs.append(bytes(payload))
                case CloseConnection(code=code):
                    self.closes.append(int(code))
                case _:
                    raise AssertionError(f"unexpected: {event}")


def accepting(request: httpx.Request, other: OtherEnd) -> httpx.Response:
    """The answer that turns a request into a connection with `other`."""
    key = request.headers["Sec-WebSocket-Key"].encode()
    return httpx.Response(
        101,
        headers={
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": generate_accept_token(key).decode(),
            "Sec-WebSocket-Protocol": "prefect",
        },
        extensions={"network_stream": other},
        stream=_Closing(other),
    )


class _Closing(httpx.AsyncByteStream):
    def __init__(self, other: OtherEnd) -> None:
        self._other = other

    async def aclose(self) -> None:
        self._other.closed = True


def binary(data: bytes) -> BytesMessage:
    return BytesMessage(data=data)
