"""What examples/compose.yaml starts, started here without containers: PostgreSQL, a Prefect server on it, two daemons.

Environment, commands and health checks are read from the file. What is put in the place of Docker's: addresses of
services become ports of loopback, volumes and images what is installed here.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml

from bench.postgres import programs
from tests.support.api import PrefectApi
from tests.support.daemons import ROLE_DAEMON, StartWorker, Worker, worker_factory
from tests.support.postgres import Postgres, running_postgres
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port, running_server
from tests.support.wait import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
SERVICES = cast("Json", yaml.safe_load((ROOT / "examples/compose.yaml").read_text(encoding="utf-8")))[
    "services"
]
DAEMONS = {name: one for name, one in SERVICES.items() if one["image"] == "headrace"}
RUNS = 20


def healthy(service: Json, *, port: int, instead_of: int) -> bool:
    """Run the service's health check, as the file has it but for the port."""
    kind, program, *words = service["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    done = subprocess.run(
        [sys.executable, *(word.replace(f":{instead_of}/", f":{port}/") for word in words)],
        check=False,
        capture_output=True,
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, session_mark: str) -> Iterator[Postgres]:
    """The file's database."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed here")
    made = SERVICES["database"]["environment"]
    with running_postgres(
        tmp_path_factory.mktemp("postgres"),
        programs=found,
        mark=session_mark,
        user=made["POSTGRES_USER"],
        password=made["POSTGRES_PASSWORD"],
        database=made["POSTGRES_DB"],
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, session_mark: str
) -> Iterator[PrefectServer]:
    """The file's server."""
    service = SERVICES["server"]
    # The harness says the same, with an address and a port of loopback.
    assert shlex.split(service["command"])[:-1] == ["prefect", "server", "start", "--host"]
    environment = {
        name: value.replace("@database:5432/", f"@127.0.0.1:{postgres.cluster.port}/")
        for name, value in service["environment"].items()
    }
    with running_server(
        tmp_path_factory.mktemp("server-on-postgres"), mark=session_mark, settings=environment
    ) as running:
        yield running


@pytest.fixture
def start(server: PrefectServer, tmp_path: Path) -> Iterator[StartWorker]:
    with worker_factory(server, tmp_path / "daemons", role=ROLE_DAEMON) as factory:
        yield factory


def test_two_daemons_share_a_pool_on_postgresql(
    postgres: Postgres, server: PrefectServer, start: StartWorker, tmp_path: Path
) -> None:
    """As many runs at once as both have slots for, each of them by one of the two, exactly once."""
    assert healthy(SERVICES["server"], port=server.port, instead_of=4200)
    workers: dict[str, Worker] = {}
    ports = {name: free_port() for name in DAEMONS}
    for name, service in DAEMONS.items():
        command, *words = shlex.split(service["command"])
        options = dict(zip(words[::2], words[1::2], strict=False))
        assert (command, options["--name"]) == ("start", name)
        environment = {
            key: re.sub(r"//server:4200/", f"//127.0.0.1:{server.port}/", str(value))
            for key, value in service["environment"].items()
        }
        here = {
            "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(ports[name]),
        }
        assert here.keys() <= environment.keys()
        assert environment["PREFECT_API_URL"] == server.api_url
        assert not healthy(service, port=ports[name], instead_of=8080)
        # Both make the pool, at the same time. The factory gives pool and name, the rest is as it stands in the file.
        rest = [word for word in words if word not in {"--pool", options["--pool"], "--name", name}]
        workers[name] = start(
            pool=options["--pool"], name=name, args=rest, env=environment | here, wait=False
        )
    for name, worker in workers.items():
        worker.wait_started()
        wait_for(
            lambda name=name: healthy(DAEMONS[name], port=ports[name], instead_of=8080),
            description=f"health of {name}",
        )

    with server.api() as api:
        (pool,) = {worker.pool for worker in workers.values()}
        project = Project(api=api, pool=pool, out=tmp_path / "out")
        gate = project.gate()
        deployment = project.deploy("waits_for_file", parameters={"gate": str(gate)})
        runs = [api.create_flow_run(deployment) for _ in range(RUNS)]
        for worker in workers.values():
            wait_for(
                lambda worker=worker: len(worker.events("flow_run.launched")) == 4,
                timeout=120,
                description=lambda worker=worker: (
                    f"four runs of {worker.name}\n{worker.service.transcript()}"
                ),
            )
        assert sum(len(worker.events("flow_run.claimed")) for worker in workers.values()) == 8
        wait_for(lambda: len(project.all_facts("waiting")) == 8, description="eight flows at the gate")
        gate.touch()
        api.wait_for_all(runs)
        check_each_once(api, project, runs)
    launched = [
        event["flow_run_id"] for worker in workers.values() for event in worker.events("flow_run.launched")
    ]
    assert sorted(launched) == sorted(runs)
    for worker in workers.values():
        assert httpx.get(f"http://127.0.0.1:{ports[worker.name]}/readyz", timeout=30).status_code == 200
        assert worker.stop() == 0
    # It really was that database.
    assert postgres.query("SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'") == str(RUNS)


def check_each_once(api: PrefectApi, project: Project, runs: list[str]) -> None:
    for run in runs:
        assert api.state_names(run).count("Running") == 1
        assert api.state_names(run).count("Completed") == 1
        assert len(project.facts(run, "finished")) == 1
