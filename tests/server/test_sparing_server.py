"""Which database a real server has is found out, and one with many writers is not spared."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.postgres import programs
from tests.support.daemons import ROLE_DAEMON, StartWorker, worker_factory
from tests.support.postgres import running_postgres
from tests.support.project import Project
from tests.support.server import PrefectServer, running_server
from worker.api.events import FLOW_RUN_SCHEDULED
from worker.runs.arrivals import MANY

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture
def server_on_postgres(tmp_path: Path, session_mark: str) -> Iterator[PrefectServer]:
    """A server with PostgreSQL."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed here")
    directory = tmp_path / "postgres"
    directory.mkdir()
    with running_postgres(
        directory, programs=found, mark=session_mark, user="prefect", password="secret", database="prefect"
    ) as postgres:
        settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.cluster.url(postgres.database)}
        place = tmp_path / "server"
        place.mkdir()
        with running_server(place, mark=session_mark, settings=settings) as server:
            yield server


def make_runs(project: Project, deployment: str) -> None:
    project.api.wait_for_all([project.api.create_flow_run(deployment) for _ in range(2 * MANY)])


def test_sqlite_is_spared(daemon: StartWorker, project: Project) -> None:
    worker = daemon(pool=project.pool)
    assert not worker.wait_for_event("server.database_known")["many_writers"]
    worker.wait_for_event("push.connected")
    deployment = project.deploy()
    for _ in range(5):  # they may have come too slowly to be a stream
        make_runs(project, deployment)
        if worker.events("arrivals.held"):
            break
    assert worker.events("arrivals.held")


def test_postgresql_is_not(server_on_postgres: PrefectServer, tmp_path: Path) -> None:
    """Runs that are made in a row are begun at once."""
    with (
        server_on_postgres.api() as api,
        worker_factory(server_on_postgres, tmp_path / "daemons", role=ROLE_DAEMON) as start,
    ):
        project = Project(api=api, pool=api.create_pool(), out=tmp_path / "out")
        deployment = project.deploy()
        worker = start(pool=project.pool)
        assert worker.wait_for_event("server.database_known")["many_writers"]
        worker.wait_for_event("push.connected")
        make_runs(project, deployment)
        heard = [event["name"] for event in worker.events("push.event")]
        assert heard.count(FLOW_RUN_SCHEDULED) >= MANY
        assert not worker.events("arrivals.held")
