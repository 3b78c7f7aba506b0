"""The HTTP server of the health endpoint, in a thread of its own, with the standard library's server.

What health is, is `health.py`'s, which imports this only when asked to serve: few daemons are, and `http.server`
would cost every start.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import Any

from worker.health import HealthServerError, Snapshot, is_healthy


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which can take long where there is no name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


@contextmanager
def serve(
    *, host: str, port: int, snapshot: Callable[[], Snapshot], now: Callable[[], datetime]
) -> Generator[int]:
    """Serve while the context lasts; yields the port in use. Raises HealthServerError when it is taken."""

    class Handler(BaseHTTPRequestHandler):
        # A connection that says nothing is given up after so many seconds, or it would keep its thread for ever.
        timeout = 5.0

        def do_GET(self) -> None:
            seen = snapshot()
            route = self.path.split("?", 1)[0]
            if route not in {"/health", "/ready"}:
                self._answer(HTTPStatus.NOT_FOUND, {"detail": "Not Found"})
            elif route == "/ready" and seen.draining:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"message": "draining"})
            elif is_healthy(seen, now=now()):
                self._answer(HTTPStatus.OK, {"message": "OK"})
            else:
                self._answer(
                    HTTPStatus.SERVICE_UNAVAILABLE, {"message": "Worker may be unresponsive at this time"}
                )

        def _answer(self, status: HTTPStatus, body: dict[str, str]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
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
