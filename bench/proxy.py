"""A proxy on loopback that passes bytes on untouched and counts the HTTP/1.1 requests among them.

What follows an upgrade to a websocket is opaque: it counts as the one request that opened it. Request bodies with
chunked transfer coding end the counting of their connection in an error, which `Counts.check` reports: neither worker
sends any.
"""

import socket
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from bench.processes import BenchError

_CHUNK = 65536
_HEAD_END = b"\r\n\r\n"
_CONNECT_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class Counts:
    """Requests seen so far, by method and path. Safe to share between threads."""

    _seen: Counter[str] = field(default_factory=Counter[str])
    _errors: list[str] = field(default_factory=list[str])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: str) -> None:
        """One more."""
        with self._lock:
            self._seen[request] += 1

    def fail(self, error: str) -> None:
        """Something that could not be counted."""
        with self._lock:
            self._errors.append(error)

    def total(self) -> int:
        """All requests so far. Raises BenchError when some could not be counted."""
        with self._lock:
            if self._errors:
                raise BenchError(f"requests could not be counted: {self._errors[0]}")
            return self._seen.total()


class RequestParser:
    """Finds the requests in one connection's stream from client to server."""

    def __init__(self) -> None:
        self._head = b""
        self._body = 0
        self._opaque = False

    def feed(self, data: bytes) -> list[str]:
        """The requests that begin here, as "METHOD /path". Raises ValueError for what it cannot follow."""
        found: list[str] = []
        while data and not self._opaque:
            skipped = min(self._body, len(data))
            self._body -= skipped
            data = data[skipped:]
            if not data:
                break
            head, end, data = (self._head + data).partition(_HEAD_END)
            if not end:
                self._head = head
                break
            self._head = b""
            found.append(self._begin(head.decode("latin-1")))
        return found

    def _begin(self, head: str) -> str:
        request, *lines = head.split("\r\n")
        method, path, _version = request.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if "transfer-encoding" in headers:
            raise ValueError(f"{method} {path} has a body in transfer coding")
        self._opaque = "upgrade" in headers
        self._body = int(headers.get("content-length", "0"))
        return f"{method} {path}"


@contextmanager
def counting_proxy(port: int) -> Generator[tuple[int, Counts]]:
    """A proxy in front of the loopback port: its own port, and what it counts."""
    counts = Counts()
    connections: set[socket.socket] = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(
            target=_accept, args=(listener, port, counts, connections), name="proxy", daemon=True
        )
        accepting.start()
        try:
            yield listener.getsockname()[1], counts
        finally:
            # Wakes accept(2), which a mere close does not.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in list(connections):
                _end(connection)


def _accept(listener: socket.socket, port: int, counts: Counts, connections: set[socket.socket]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            counts.fail(f"the server could not be reached: {error}")
            client.close()
            continue
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections |= {client, server}
        threading.Thread(
            target=_serve, args=(client, server, counts, connections), name="proxy connection", daemon=True
        ).start()


def _serve(
    client: socket.socket, server: socket.socket, counts: Counts, connections: set[socket.socket]
) -> None:
    answers = threading.Thread(
        target=_pass_on, args=(server, client, None), name="proxy answers", daemon=True
    )
    answers.start()
    _pass_on(client, server, counts)
    answers.join()
    for end in (client, server):
        connections.discard(end)
        end.close()


def _pass_on(source: socket.socket, sink: socket.socket, counts: Counts | None) -> None:
    """Copy until either side ends; then end both."""
    parser = RequestParser()
    # A connection that breaks ends the copying, as one that is closed does.
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            if counts is not None:
                try:
                    for request in parser.feed(data):
                        counts.add(request)
                except ValueError as error:
                    counts.fail(str(error))
                    counts = None
            sink.sendall(data)
    for end in (source, sink):
        _end(end)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
