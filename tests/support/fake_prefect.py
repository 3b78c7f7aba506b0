"""A real HTTP server on loopback that answers as scripted, for what only sockets can show.

Owns the listening socket, a minimal HTTP/1.1 and the misbehaviour: cut bodies, resets, silence. It runs in
the test's own task group, so nothing outlives `serving`. It knows nothing of Prefect but the CSRF answer;
where the server's rules matter, tests use the real one. For tests without sockets there is
`httpx.MockTransport`.
"""

import json
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from worker.settings import ApiSettings

_LARGEST_HEAD = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Answer with `body` as JSON. `reset`: then reset the connection, as uvicorn does after a 500."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    reset: bool = False


@dataclass(frozen=True, slots=True)
class CutMidBody:
    """Announce a body, send half of it, and close the connection."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Take the request and reset the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Take the request and never answer."""


Step = Reply | CutMidBody | Reset | Hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """Which connection it came on, counted from 1."""


class FakePrefect:
    """Answers requests with the steps in order; when they are used up, with the last one again."""

    def __init__(self, steps: Sequence[Step], *, address: str) -> None:
        self._steps = list(steps)
        self._connections = 0
        self.api_url = f"{address}/api"
        self.seen: list[Seen] = []

    async def handle(self, stream: ByteStream) -> None:
        """Serve one connection until it ends."""
        self._connections += 1
        connection = self._connections
        async with stream:
            requests = BufferedByteReceiveStream(stream)
            try:
                while await self._serve_one(stream, requests, connection):
                    pass
            except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                return

    async def _serve_one(
        self, stream: ByteStream, requests: BufferedByteReceiveStream, connection: int
    ) -> bool:
        first = await requests.receive_exactly(1)
        if not first.isalpha():
            await stream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return False
        seen = await _read(first, requests, connection)
        if seen.target.startswith("/api/csrf-token"):
            await _answer(stream, Reply(status=422, body={"detail": "CSRF protection is disabled."}))
            return True
        self.seen.append(seen)
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        match step:
            case Reply():
                await _answer(stream, step)
                if step.reset:
                    _reset_on_close(stream)
                return not step.reset
            case CutMidBody():
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"half": ')
                return False
            case Reset():
                _reset_on_close(stream)
                return False
            case Hang():
                await anyio.sleep_forever()
                return False


async def _read(beginning: bytes, requests: BufferedByteReceiveStream, connection: int) -> Seen:
    head = (beginning + await requests.receive_until(b"\r\n\r\n", _LARGEST_HEAD)).decode("ascii")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await requests.receive_exactly(int(headers.get("content-length", "0")))
    return Seen(method=method, target=target, headers=headers, body=body, connection=connection)


async def _answer(stream: ByteStream, reply: Reply) -> None:
    body = b"" if reply.status == HTTPStatus.NO_CONTENT else json.dumps(reply.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    await stream.send("\r\n".join([*lines, "", ""]).encode("ascii") + body)


def _reset_on_close(stream: ByteStream) -> None:
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


@asynccontextmanager
async def serving(
    *steps: Step, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[FakePrefect]:
    """A server that answers with `steps`, on a free loopback port unless one is given; https with `tls`."""
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    listener = plain if tls is None else TLSListener(plain, ssl_context=tls, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        scheme = "http" if tls is None else "https"
        fake = FakePrefect(steps, address=f"{scheme}://127.0.0.1:{plain.extra(SocketAttribute.local_port)}")
        tasks.start_soon(listener.serve, fake.handle)
        yield fake
        tasks.cancel_scope.cancel()


def api_settings(url: str | None, **changes: Any) -> ApiSettings:
    """Settings with Prefect's defaults that lead to `url`, but without jitter on `Retry-After`."""
    defaults: dict[str, Any] = {
        "key": None,
        "auth_string": None,
        "tls_insecure_skip_verify": False,
        "ssl_cert_file": None,
        "enable_http2": False,
        "request_timeout": 60.0,
        "custom_headers": {},
        "retry_extra_codes": frozenset[int](),
        "retry_jitter_factor": 0.0,
        "max_retries": 5,
        "cloud_api_url": "https://api.prefect.cloud/api",
    }
    return ApiSettings(url=url, **{**defaults, **changes})
