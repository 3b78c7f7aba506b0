"""A real PostgreSQL cluster of a test's own, on loopback.

Owns finding the programs, the cluster's directory, its start and its end. What is kept in it is Prefect's business.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import free_port, scrubbed_environment
from tests.support.services import spawn

ROLE_POSTGRES = "postgres"
START_TIMEOUT = 60.0
# PostgreSQL refuses to run as root; Debian's package has this user.
_USER = "postgres"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A running cluster with one database."""

    port: int
    user: str
    password: str
    database: str
    programs: Path

    def query(self, sql: str) -> str:
        """What `psql` prints for it, without decoration."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--username", self.user, self.database]
        return subprocess.run(
            [self.programs / "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", sql, *where],
            env=os.environ | {"PGPASSWORD": self.password},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()


def programs() -> Path | None:
    """The directory of the newest PostgreSQL's programs; None when there is none here."""
    if (found := shutil.which("postgres")) is not None:
        return Path(found).resolve().parent
    installed = [path for path in _DEBIAN.glob("*/bin") if (path / "postgres").exists()]
    return max(installed, key=lambda path: float(path.parent.name), default=None)


@contextmanager
def running_postgres(
    directory: Path, *, programs: Path, mark: str, user: str, password: str, database: str
) -> Generator[Postgres]:
    """Make a cluster and start it, as `postgres` when this is root; stopped and removed at the end.

    The cluster has a temporary directory of its own, since that user cannot look into `directory`, where its output goes.
    """
    environment = scrubbed_environment(home=directory, mark=mark) | {"LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-") as place:
        cluster = Path(place)
        secret = cluster / "password"
        secret.write_text(password)
        _give_away(cluster, secret)

        def run(program: str, *words: str) -> None:
            command = _as_user([str(programs / program), *words])
            subprocess.run(command, env=environment, cwd=place, check=True, capture_output=True, text=True)

        data = str(cluster / "data")
        run(
            *("initdb", "--pgdata", data, "--username", user, "--pwfile", str(secret)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync"),
        )
        port = free_port()
        service = spawn(
            _as_user(
                [
                    *(str(programs / "postgres"), "-D", data, "-k", place, "-p", str(port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ]
            ),
            name="postgres",
            role=ROLE_POSTGRES,
            directory=directory,
            environment=environment,
            cwd=cluster,
        )
        try:
            ready = [str(programs / "pg_isready"), "--host", "127.0.0.1", "--port", str(port)]
            alive = service.wait_until_true(
                lambda: subprocess.run(ready, check=False, capture_output=True).returncode == 0,
                timeout=START_TIMEOUT,
            )
            assert alive, service.transcript()
            environment |= {"PGPASSWORD": password}
            run("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", user, database)
            yield Postgres(port=port, user=user, password=password, database=database, programs=programs)
        finally:
            # SIGTERM: it ends when the last client has gone; those that have not are the test's fault, and are ended.
            service.end()


def _as_user(command: Sequence[str]) -> list[str]:
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", *command]


def _give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_USER)
        for path in paths:
            os.chown(path, entry.pw_uid, entry.pw_gid)
