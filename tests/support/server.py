"""A real Prefect server in a directory of its own, and the environment that reaches it.

Owns start, readiness and end of `prefect server start`, and the scrubbed environment every subprocess of the
tests gets. Does not own what is said to the server: that is `tests/support/api.py`.
"""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.api import PrefectApi
from tests.support.services import MARK, Service, spawn

READY_TIMEOUT = 120.0
CLI_TIMEOUT = 120.0
ROLE_SERVER = "server"
# What the servers' interpreters import at start; it says why.
SITE = Path(__file__).parent / "server_site"

# Prefixes of variables that would let the developer's own set-up reach into a test.
_FOREIGN_PREFIXES = ("PREFECT_", "HEADRACE_", "GIT_")
_FOREIGN_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def free_port() -> int:
    """A loopback port nobody listens on right now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrubbed_environment(*, home: Path, mark: str) -> dict[str, str]:
    """This process's environment without anything of Prefect's or ours, at home in `home`.

    `mark` is carried by every process of the session, so that the leak check can find them all.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_FOREIGN_PREFIXES) and name.upper() not in _FOREIGN_NAMES
    }
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    executables = str(Path(sys.executable).parent)
    return kept | {
        "PATH": os.pathsep.join([executables, kept.get("PATH", os.defpath)]),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PREFECT_HOME": str(home / ".prefect"),
        "DO_NOT_TRACK": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "NO_COLOR": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "COLUMNS": "200",
        MARK: mark,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectServer:
    """A running server: where it is, and how its clients reach it."""

    api_url: str
    home: Path
    service: Service
    mark: str
    auth_string: str | None = None
    csrf: bool = False

    @property
    def pid(self) -> int:
        return self.service.pid

    @property
    def log(self) -> Path:
        return self.service.stdout_path

    @property
    def port(self) -> int:
        return int(httpx.URL(self.api_url).port or 0)

    @property
    def client_home(self) -> Path:
        return self.home / "client"

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a client of this server: the CLI, a script with the SDK, a worker."""
        environment = scrubbed_environment(home=self.client_home, mark=self.mark)
        environment["PREFECT_API_URL"] = self.api_url
        if self.auth_string is not None:
            environment["PREFECT_API_AUTH_STRING"] = self.auth_string
        return environment | dict(extra or {})

    def cli(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run the real `prefect` with these arguments; an unexpected exit shows what it printed."""
        return self._run([_prefect(), "--no-prompt", *arguments], cwd=cwd, env=env, check=check)

    def python(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run this interpreter with these arguments as a client of the server (a script using the SDK)."""
        return self._run([sys.executable, *arguments], cwd=cwd, env=env, check=check)

    def _run(
        self, command: list[str], *, cwd: Path | None, env: Mapping[str, str] | None, check: bool
    ) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            command,
            cwd=cwd or self.client_home,
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT,
            check=False,
        )
        if check and finished.returncode != 0:
            raise AssertionError(
                f"{command} exited with {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
            )
        return finished

    def api(self) -> PrefectApi:
        """A client of its own for the test's eyes; close it."""
        return PrefectApi(self.api_url, auth_string=self.auth_string, csrf=self.csrf)


@contextmanager
def running_server(
    directory: Path,
    *,
    mark: str,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    database: Path | None = None,
) -> Generator[PrefectServer]:
    """Start `prefect server start` in `directory`, wait until it is healthy, and stop it at the end.

    `settings` are environment variables of the server. A taken port is tried once more with another one,
    unless the caller asked for that very port. `database` is a migrated one to begin with, which saves two
    thirds of the start.
    """
    if database is not None:
        _database(directory).parent.mkdir(parents=True)
        shutil.copyfile(database, _database(directory))
    service, api_url = _start(directory, mark=mark, port=port, settings=settings or {})
    try:
        (directory / "client").mkdir(parents=True, exist_ok=True)
        yield PrefectServer(
            api_url=api_url,
            home=directory,
            service=service,
            mark=mark,
            auth_string=(settings or {}).get("PREFECT_SERVER_API_AUTH_STRING"),
            csrf=(settings or {}).get("PREFECT_SERVER_CSRF_PROTECTION_ENABLED") == "true",
        )
    finally:
        service.end()


def snapshot(server: PrefectServer, target: Path) -> Path:
    """A copy of the server's database as it is now, for other servers to begin with."""
    with (
        closing(sqlite3.connect(_database(server.home))) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
    return target


def _database(home: Path) -> Path:
    return home / ".prefect" / "prefect.db"


def _start(
    directory: Path, *, mark: str, port: int | None, settings: Mapping[str, str]
) -> tuple[Service, str]:
    for attempt in ("first", "second"):
        chosen = free_port() if port is None else port
        api_url = f"http://127.0.0.1:{chosen}/api"
        service = spawn(
            [_prefect(), "server", "start", "--host", "127.0.0.1", "--port", str(chosen)],
            name=f"prefect-server-{attempt}",
            role=ROLE_SERVER,
            directory=directory,
            environment=scrubbed_environment(home=directory, mark=mark)
            | {
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
                "PREFECT_SERVER_UI_ENABLED": "false",
                "PREFECT_SERVER_UI_API_URL": api_url,
                "PYTHONPATH": str(SITE),
            }
            | dict(settings),
        )
        if service.wait_until_true(lambda url=api_url: _healthy(url), timeout=READY_TIMEOUT):
            return service, api_url
        transcript = service.transcript()
        service.end()
        if port is not None or "address already in use" not in transcript:
            break
    raise AssertionError(f"the Prefect server did not become healthy:\n{transcript}")


def _healthy(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _prefect() -> str:
    return str(Path(sys.executable).parent / "prefect")
