"""The one real Prefect server that all workers of a session are measured against."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.environment import BIN, environment, free_port
from bench.processes import BenchError, Service, say, start, wait_until

READY_SECONDS = 180.0
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server. `port` is on the loopback interface."""

    service: Service
    port: int

    @property
    def api_url(self) -> str:
        """Where its clients find it."""
        return f"http://127.0.0.1:{self.port}/api"


@contextmanager
def running_server(directory: Path) -> Generator[Server]:
    """Start a server with a database of its own, wait until it is healthy, and end it afterwards.

    Raises BenchError when it does not come up; a port that was taken meanwhile is replaced once.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        port = free_port()
        service = _start(directory, port)
        server = Server(service=service, port=port)
        try:
            try:
                wait_until(
                    lambda server=server: _is_healthy(server.api_url),
                    what="the Prefect server is healthy",
                    seconds=READY_SECONDS,
                    services=[service],
                )
            except BenchError:
                taken = "address already in use" in service.log.read_text(errors="replace")
                if taken and attempt < _ATTEMPTS:
                    continue
                raise
            yield server
            return
        finally:
            service.end()


def _start(directory: Path, port: int) -> Service:
    say("starting a Prefect server")
    extra = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    return start(
        "the Prefect server",
        [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        environment=environment(home=directory / "server", extra=extra),
        directory=directory,
        log=directory / "server.log",
    )


def _is_healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False
