"""A real PostgreSQL cluster of a test's own, on loopback.

Owns the cluster's directory, its start and its end. How a cluster is made is `bench.postgres`'; what is kept in it is
Prefect's business.
"""

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.postgres import Cluster
from tests.support.server import free_port, scrubbed_environment
from tests.support.services import spawn

ROLE_POSTGRES = "postgres"
START_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """A running cluster with one database."""

    cluster: Cluster
    database: str

    def query(self, sql: str) -> str:
        """What `psql` prints for it, without decoration."""
        where = ["--host", "127.0.0.1", "--port", str(self.cluster.port), "--username", self.cluster.user]
        how = ["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql]
        return subprocess.run(
            [self.cluster.programs / "psql", *how, *where, self.database],
            env=os.environ | {"PGPASSWORD": self.cluster.password},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()


@contextmanager
def running_postgres(
    directory: Path, *, programs: Path, mark: str, user: str, password: str, database: str
) -> Generator[Postgres]:
    """Make a cluster and start it, as `postgres` when this is root; stopped and removed at the end.

    The cluster has a temporary directory of its own, since that user cannot look into `directory`, where its output goes.
    """
    environment = scrubbed_environment(home=directory, mark=mark) | {"LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix="headrace-postgres-") as place:
        cluster = Cluster(
            programs=programs, place=Path(place), port=free_port(), user=user, password=password
        )
        cluster.make(environment)
        service = spawn(
            cluster.argv,
            name="postgres",
            role=ROLE_POSTGRES,
            directory=directory,
            environment=environment,
            cwd=cluster.place,
        )
        try:
            assert service.wait_until_true(cluster.is_ready, timeout=START_TIMEOUT), service.transcript()
            cluster.create(database, environment)
            yield Postgres(cluster=cluster, database=database)
        finally:
            # SIGTERM: it ends when the last client has gone; those that have not are the test's fault, and are ended.
            service.end()
