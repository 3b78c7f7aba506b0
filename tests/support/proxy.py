"""A loopback HTTP proxy between a daemon and a real Prefect server that can be made to misbehave at run time.

Owns the misbehaviour (`proxy_modes.Mode`) and the list of what was asked meanwhile. It speaks HTTP/1.1 with bodies of a
stated length, and passes websockets through as bytes. It runs in an event loop of its own thread, so that sync
tests can use it; every task, socket and the thread end with `outage_proxy`. Answers come from the real server
or are no answers; nothing here knows Prefect's rules.
"""

import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, assert_never

import anyio
import httpx
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.proxy_modes import Fault, Mode, Request, refusal

_LARGEST_HEAD: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_UPSTREAM_TIMEOUT: Final = 120.0
# A slow answer comes in so many pieces, with such a pause (in seconds) before each.
_PIECES: Final = 8
_PIECE_PAUSE: Final = 0.05
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}
)
_GONE: Final = (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(slots=True)
class _Relay:
    """The part inside the event loop."""

    upstream: httpx.URL
    seen: list[Request]
    port: int = 0
    _fault: Fault = field(default_factory=lambda: Fault(Mode.PASS))
    _switched: anyio.Event = field(default_factory=anyio.Event)
    _stopped: anyio.Event = field(default_factory=anyio.Event)
    _listening: anyio.CancelScope | None = None
    _tasks: anyio.abc.TaskGroup | None = None
    _client: httpx.AsyncClient | None = None

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Relay until `stop`; started once the port is open."""
        # Bound and never listening: between two openings the port refuses, and nobody else can take it.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            self.port = int(reserved.getsockname()[1])
            limits = httpx.Limits(max_keepalive_connections=0)
            async with (
                httpx.AsyncClient(
                    verify=False, trust_env=False, timeout=_UPSTREAM_TIMEOUT, limits=limits
                ) as self._client,
                anyio.create_task_group() as self._tasks,
            ):
                await self._tasks.start(self._listen)
                task_status.started()
                await self._stopped.wait()
                self._tasks.cancel_scope.cancel()

    async def stop(self) -> None:
        self._stopped.set()

    async def switch(self, fault: Fault) -> None:
        """Treat requests in this way from now on; what the former mode holds back is cut."""
        was_refusing = self._fault.mode is Mode.REFUSE
        self._fault = fault
        self._switched.set()
        self._switched = anyio.Event()
        if fault.mode is Mode.REFUSE and self._listening is not None:
            self._listening.cancel()
        elif was_refusing and fault.mode is not Mode.REFUSE and self._tasks is not None:
            await self._tasks.start(self._listen)

    async def _listen(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._listening:
            async with await anyio.create_tcp_listener(
                local_host="127.0.0.1", local_port=self.port
            ) as listener:
                task_status.started()
                await listener.serve(self._connection)

    async def _connection(self, stream: SocketStream) -> None:
        async with stream:
            requests = BufferedByteReceiveStream(stream)
            with suppress(*_GONE):
                while await self._serve_one(stream, requests):
                    pass

    async def _serve_one(self, stream: SocketStream, requests: BufferedByteReceiveStream) -> bool:
        """Serve one request; whether the connection is good for another one."""
        head = await requests.receive_until(b"\r\n\r\n", _LARGEST_HEAD)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await requests.receive_exactly(int(headers.get("content-length", "0")))
        fault = self._fault if self._fault.applies_to(target) else Fault(Mode.PASS)
        request = Request(mode=fault.mode, method=method, target=target, headers=headers, body=body)
        self.seen.append(request)
        if request.upgrades and fault.mode in {Mode.PASS, Mode.SLOW}:
            await self._tunnel(stream, requests, head + b"\r\n\r\n")
            return False
        if request.upgrades and fault.mode in {Mode.CUT_BODY, Mode.LOST_ANSWER, Mode.TRICKLE}:
            return _reset(stream)
        return await self._answer(stream, request, fault)

    async def _answer(self, stream: SocketStream, request: Request, fault: Fault) -> bool:
        match fault.mode:
            case Mode.PASS:
                return await self._pass(stream, request)
            case Mode.NO_WEBSOCKET:
                if request.upgrades:
                    await stream.send(refusal(HTTPStatus.FORBIDDEN))
                    return False
                return await self._pass(stream, request)
            case Mode.HANG:
                await self._switched.wait()
                return _reset(stream)
            case Mode.STATUS_500 | Mode.STATUS_502 | Mode.STATUS_503:
                await stream.send(refusal(HTTPStatus(int(fault.mode))))
                return True
            case Mode.THROTTLE_SECONDS | Mode.THROTTLE_DATE:
                await stream.send(refusal(HTTPStatus.TOO_MANY_REQUESTS, fault.retry_after_header()))
                return True
            case Mode.CUT_BODY | Mode.LOST_ANSWER:
                head, body = await self._forward(request) or (b"", b"")
                if fault.mode is Mode.CUT_BODY:
                    await stream.send(head + body[: len(body) // 2] if body else head[: len(head) // 2])
                return _reset(stream)
            case Mode.SLOW | Mode.TRICKLE:
                return await self._dribble(stream, request, endless=fault.mode is Mode.TRICKLE)
            case Mode.REFUSE:
                return _reset(stream)
            case _:
                assert_never(fault.mode)

    async def _pass(self, stream: SocketStream, request: Request) -> bool:
        answer = await self._forward(request)
        if answer is None:
            return _reset(stream)
        await stream.send(b"".join(answer))
        return request.headers.get("connection", "").lower() != "close"

    async def _dribble(self, stream: SocketStream, request: Request, *, endless: bool) -> bool:
        answer = await self._forward(request)
        if answer is None:
            return _reset(stream)
        text = b"".join(answer)
        size = 1 if endless else max(1, -(-len(text) // _PIECES))
        switched = self._switched
        for start in range(0, len(text), size):
            # The whole of an endless answer is never sent, however short it is.
            if endless and start == len(text) - 1:
                await switched.wait()
            with anyio.move_on_after(10 * _PIECE_PAUSE if endless else _PIECE_PAUSE):
                await switched.wait()
            if endless and switched.is_set():
                return _reset(stream)
            await stream.send(text[start : start + size])
        return True

    async def _forward(self, request: Request) -> tuple[bytes, bytes] | None:
        """The server's answer, head and body; None when it gives none."""
        if self._client is None:
            raise RuntimeError("the proxy is not running")
        url = self.upstream.copy_with(raw_path=request.target.encode("latin-1"))
        kept = {
            name: value for name, value in request.headers.items() if name not in {"connection", "keep-alive"}
        }
        try:
            response = await self._client.request(
                request.method, url, headers=kept, content=request.body, follow_redirects=False
            )
        except httpx.TransportError:
            return None
        lines = [f"HTTP/1.1 {response.status_code} {response.reason_phrase}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items() if name not in _HOP_BY_HOP]
        if response.status_code != HTTPStatus.NO_CONTENT:
            lines.append(f"content-length: {len(response.content)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), response.content

    async def _tunnel(self, client: SocketStream, buffered: BufferedByteReceiveStream, head: bytes) -> None:
        """Pass bytes both ways until one side ends or the mode changes."""
        switched = self._switched
        try:
            server = await anyio.connect_tcp(self.upstream.host, self.upstream.port or 80)
        except OSError:
            _reset(client)
            return
        async with server, anyio.create_task_group() as pumps:

            async def pump(source: BufferedByteReceiveStream | SocketStream, sink: SocketStream) -> None:
                with suppress(*_GONE):
                    while True:
                        await sink.send(await source.receive())
                pumps.cancel_scope.cancel()

            await server.send(head)
            pumps.start_soon(pump, buffered, server)
            pumps.start_soon(pump, server, client)
            await switched.wait()
            _reset(client)
            pumps.cancel_scope.cancel()


class OutageProxy:
    """The part the test holds; made by `outage_proxy`, safe to use from the test's thread only."""

    def __init__(self, *, relay: _Relay, portal: BlockingPortal) -> None:
        self._relay = relay
        self._portal = portal

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL is to be for those behind the proxy."""
        return str(self._relay.upstream.copy_with(host="127.0.0.1", port=self._relay.port)).rstrip("/")

    def switch(self, mode: Mode, *, only: str = "", retry_after: int = 120) -> None:
        """Begin this mode; on return it is in force. `only` restricts it to paths that contain the text."""
        self._portal.call(self._relay.switch, Fault(mode, only, retry_after))

    def requests(self, mode: Mode | None = None, *, path: str = "") -> list[Request]:
        """What was asked so far, in this mode, with this in its path; whatever the answer was."""
        return [
            request
            for request in tuple(self._relay.seen)
            if mode in {None, request.mode} and path in request.target
        ]


@contextmanager
def outage_proxy(upstream: str) -> Generator[OutageProxy]:
    """A proxy in front of the API at `upstream`, passing everything until it is told otherwise."""
    with start_blocking_portal() as portal:
        relay = _Relay(upstream=httpx.URL(upstream), seen=[])
        running, _ = portal.start_task(relay.run)
        try:
            yield OutageProxy(relay=relay, portal=portal)
        finally:
            portal.call(relay.stop)
            running.result()


def _reset(stream: SocketStream) -> bool:
    """Let the connection end in a reset; never good for another request."""
    raw = stream.extra(SocketAttribute.raw_socket)
    # The other side may have given up first.
    if raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    return False
