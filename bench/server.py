"""The one real Prefect server that all workers of a session are measured against, and its database."""

import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import httpx

from bench import postgres
from bench.environment import BIN, environment, free_port
from bench.processes import BenchError, Service, say, start, wait_until

READY_SECONDS = 180.0
_ATTEMPTS = 2
_DATABASE = "prefect"


class Database(StrEnum):
    """What a server keeps its runs in."""

    SQLITE = "SQLite"
    POSTGRES = "PostgreSQL"

    @property
    def is_here(self) -> bool:
        """Whether this machine has it."""
        return self is Database.SQLITE or postgres.programs() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server. `port` is on the loopback interface; `beside` is what runs for it, such as its database's."""

    service: Service
    port: int
    database: Database = Database.SQLITE
    beside: tuple[Service, ...] = ()

    @property
    def api_url(self) -> str:
        """Where its clients find it."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def services(self) -> tuple[Service, ...]:
        """All of its processes."""
        return (self.service, *self.beside)


@contextmanager
def running_server(directory: Path, database: Database = Database.SQLITE) -> Generator[Server]:
    """Start a server with a database of its own, wait until it is healthy, and end it afterwards. Raises BenchError."""
    if database is Database.SQLITE:
        with _running(directory, database, {}, ()) as server:
            yield server
        return
    with _running_postgres(directory) as (url, service):
        variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
        with _running(directory, database, variables, (service,)) as server:
            yield server


@contextmanager
def _running_postgres(directory: Path) -> Generator[tuple[str, Service]]:
    programs = postgres.programs()
    if programs is None:
        raise BenchError("PostgreSQL is not installed here; on Debian and Ubuntu: apt install postgresql")
    say(f"starting PostgreSQL {postgres.version(programs)}")
    variables = environment(home=directory / "database", extra={})
    # Not in `directory`, which its user cannot look into.
    with tempfile.TemporaryDirectory(prefix="headrace-bench-postgres-") as place:
        cluster = postgres.Cluster(
            programs=programs, place=Path(place), port=free_port(), user=_DATABASE, password=_DATABASE
        )
        _try(partial(cluster.make, variables))
        service = start(
            "PostgreSQL",
            cluster.argv,
            environment=variables,
            directory=cluster.place,
            log=directory / "database.log",
        )
        try:
            wait_until(
                cluster.is_ready,
                what="PostgreSQL takes connections",
                seconds=READY_SECONDS,
                services=[service],
            )
            _try(partial(cluster.create, _DATABASE, variables))
            yield cluster.url(_DATABASE), service
        finally:
            service.end()


def _try(make: Callable[[], None]) -> None:
    """Raises BenchError, with what the program said, instead of whatever kept it from being done."""
    try:
        make()
    except (OSError, LookupError) as error:
        raise BenchError(f"no PostgreSQL cluster can be made: {error}") from error
    except subprocess.CalledProcessError as error:
        raise BenchError(f"no PostgreSQL cluster can be made: {error}\n{error.stderr}") from error


@contextmanager
def _running(
    directory: Path, database: Database, variables: Mapping[str, str], beside: tuple[Service, ...]
) -> Generator[Server]:
    """A server with these settings besides its usual ones.

    Raises BenchError when it does not come up; a port that was taken meanwhile is replaced once.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        port = free_port()
        service = _start(directory, port, variables)
        server = Server(service=service, port=port, database=database, beside=beside)
        try:
            try:
                wait_until(
                    lambda server=server: _is_healthy(server.api_url),
                    what="the Prefect server is healthy",
                    seconds=READY_SECONDS,
                    services=[service, *beside],
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


def _start(directory: Path, port: int, variables: Mapping[str, str]) -> Service:
    say("starting a Prefect server")
    extra = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    return start(
        "the Prefect server",
        [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        environment=environment(home=directory / "server", extra=extra | dict(variables)),
        directory=directory,
        log=directory / "server.log",
    )


def _is_healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False
