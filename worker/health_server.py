"""The HTTP server of the health endpoints, in a thread of its own, with the standard library's server.

What health is, is `health.py`'s, which imports this only when asked to serve: few daemons are, and `http.server`
would cost every start.
"""

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import Any

import structlog

from worker.health import (
    HealthServerError,
    Readiness,
    Scrape,
    Snapshot,
    is_alive,
    is_healthy,
    readiness,
)

_JSON = "application/json"
# Stock's words (PROTOCOL 8).
_UNHEALTHY = "Worker may be unresponsive at this time"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which can take long where there is no name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's
        """Log what went wrong with one request; a client that has gone away is not news."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            structlog.get_logger().warning("health.unanswered", reason=str(error), exc_info=error)


@contextmanager
def serve(
    *, host: str, port: int, snapshot: Callable[[], Snapshot], now: Callable[[], datetime], scrape: Scrape
) -> Generator[int]:
    """Serve while the context lasts; yields the port in use. Raises HealthServerError when it is taken."""

    class Handler(BaseHTTPRequestHandler):
        # A connection that says nothing is given up after so many seconds, or it would keep its thread for ever.
        timeout = 5.0

        def do_GET(self) -> None:
            match self.path.split("?", 1)[0]:
                case "/health":
                    healthy = is_healthy(snapshot(), now=now())
                    self._answer(ok=healthy, body={"message": "OK" if healthy else _UNHEALTHY})
                case "/livez":
                    alive = is_alive(snapshot())
                    self._answer(ok=alive, body={"message": "OK" if alive else Readiness.HANGING.value})
                case "/readyz":
                    self._answer_ready(snapshot(), now())
                case "/metrics":
                    content, content_type = scrape(self.headers.get("Accept", ""))
                    self._send(HTTPStatus.OK, content, content_type)
                case _:
                    self._send(HTTPStatus.NOT_FOUND, b'{"detail": "Not Found"}', _JSON)

        def _answer_ready(self, seen: Snapshot, when: datetime) -> None:
            judged = readiness(seen, now=when)
            body = {
                "message": judged.value,
                "ready": judged is Readiness.READY,
                "draining": seen.draining,
                "last_contact": seen.last_contact.isoformat(),
                "last_contact_seconds": round((when - seen.last_contact).total_seconds(), 3),
            }
            self._answer(ok=judged is Readiness.READY, body=body)

        def _answer(self, *, ok: bool, body: dict[str, Any]) -> None:
            status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, json.dumps(body).encode(), _JSON)

        def _send(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Probes come every few seconds; they are not news."""

    try:
        server = _Server((host, port), Handler)
    except OSError as error:
        msg = (
            f"cannot serve health on {host}:{port}: {error.strerror};"
            " choose another address with PREFECT_WORKER_WEBSERVER_HOST and PREFECT_WORKER_WEBSERVER_PORT"
        )
        raise HealthServerError(msg) from error
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="health", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
