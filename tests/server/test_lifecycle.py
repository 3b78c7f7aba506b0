"""The daemon's own life: before the server, with wrong credentials, on a wrong pool, told to stop."""

import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port
from tests.support.wait import wait_for
from worker.fatal import EXIT_CONFIGURATION, EXIT_CREDENTIALS, EXIT_HEALTH_ADDRESS, EXIT_POOL

pytestmark = pytest.mark.timeout(300)

StartServer = Callable[..., AbstractContextManager[PrefectServer]]


def test_sigterm_drains(api: PrefectApi, pool: str, project: Project, daemon: StartWorker) -> None:
    worker = daemon(pool=pool)
    gate = project.gate()
    running = project.run("waits_for_file", parameters={"gate": str(gate)})
    project.wait_for_fact(running, "waiting")
    worker.service.signal(signal.SIGTERM)
    worker.wait_for_event("worker.draining")
    late = project.run()
    assert worker.service.returncode is None, "it stays until its run has ended"
    gate.touch()
    assert worker.wait_exit() == 0
    assert api.flow_run(running)["state_type"] == "COMPLETED"
    assert "Pending" not in api.state_names(late), "a stopping daemon takes nothing new"
    assert f"Worker '{worker.name}' stopped!" in worker.stdout()
    assert not list(worker.state_dir.glob("*/runs/*"))


def test_a_second_sigterm_ends_the_runs_and_reports_them(
    api: PrefectApi, pool: str, project: Project, daemon: StartWorker
) -> None:
    worker = daemon(pool=pool)
    running = project.run("sleeps")
    project.wait_for_fact(running, "sleeping")
    api.wait_for_state(running, "RUNNING")
    worker.service.signal(signal.SIGTERM)
    worker.wait_for_event("worker.draining")
    worker.service.signal(signal.SIGTERM)
    worker.wait_exit()
    run = api.flow_run(running)
    assert run["state_type"] == "CRASHED", api.story(running)


def test_an_idle_daemon_comes_online_and_stops_at_once(
    api: PrefectApi, pool: str, daemon: StartWorker
) -> None:
    worker = daemon(pool=pool)
    wait_for(
        lambda: [
            one for one in api.workers(pool) if one["name"] == worker.name and one["status"] == "ONLINE"
        ],
        description="the worker, online",
    )
    assert worker.stop() == 0
    assert f"Worker '{worker.name}' stopped!" in worker.stdout()


def test_a_port_for_health_that_is_taken_is_told_before_the_worker_is_seen(
    api: PrefectApi, pool: str, daemon: StartWorker
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = daemon(
            pool=pool,
            args=["--with-healthcheck"],
            env={"PREFECT_WORKER_WEBSERVER_PORT": str(taken.getsockname()[1])},
            wait=False,
        )
        assert worker.wait_exit() == EXIT_HEALTH_ADDRESS
    assert not [one for one in api.workers(pool) if one["name"] == worker.name]


def test_told_to_stop_while_the_server_does_not_answer_it_says_so_and_stops(daemon: StartWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        worker = daemon(pool="never-reached", env={"PREFECT_API_URL": url}, wait=False)
        connection, _ = silent.accept()
        with connection:
            worker.service.signal(signal.SIGTERM)
            assert worker.wait_exit() == 0
    assert f"Worker '{worker.name}' stopped!" in worker.stdout()
    assert "started!" not in worker.stdout()


def test_a_daemon_started_before_its_server_waits_and_makes_the_pool(
    daemon: StartWorker, start_prefect_server: StartServer, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    worker = daemon(pool="made-by-the-daemon", env={"PREFECT_API_URL": url}, wait=False)
    wait_for(
        lambda: [event for event in worker.logs() if event.get("level") == "warning"],
        description=lambda: f"a warning that the server is away\n{worker.service.transcript()}",
    )
    assert worker.service.returncode is None
    with start_prefect_server(port=port) as server, server.api() as api:
        worker.wait_started()
        assert api.pool("made-by-the-daemon")["type"] == "process"
        project = Project(api=api, pool="made-by-the-daemon", out=tmp_path)
        project.seen(project.run())
        assert worker.stop() == 0


def test_credentials(daemon: StartWorker, start_prefect_server: StartServer, tmp_path: Path) -> None:
    """The wrong auth string ends the daemon with a sentence; the right one reaches the flow, and no log."""
    secret = "admin:p:ss-w0rd-77"
    with (
        start_prefect_server(
            PREFECT_SERVER_API_AUTH_STRING=secret, PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true"
        ) as server,
        server.api() as api,
    ):
        pool = api.create_pool()
        project = Project(api=api, pool=pool, out=tmp_path)
        run_id = project.run()
        right = daemon(pool=pool, at=server)
        wrong = daemon(
            pool=pool, at=server, env={"PREFECT_API_AUTH_STRING": "admin:not-this-8841"}, wait=False
        )
        assert wrong.wait_exit() == EXIT_CREDENTIALS
        assert "PREFECT_API_AUTH_STRING" in wrong.output()
        assert "not-this-8841" not in wrong.output()
        assert "Traceback" not in wrong.output()
        project.seen(run_id)
        assert right.stop() == 0
        assert "p:ss-w0rd-77" not in right.output()


def test_a_pool_of_another_type_is_refused_with_a_sentence(api: PrefectApi, daemon: StartWorker) -> None:
    pool = api.create_pool(kind="docker", template={})
    worker = daemon(pool=pool, wait=False)
    assert worker.wait_exit() == EXIT_POOL
    said = worker.output()
    assert pool in said
    assert "docker" in said
    assert "process" in said
    assert "Traceback" not in said


def test_no_address_is_a_sentence(pool: str, daemon: StartWorker, prefect_server: PrefectServer) -> None:
    environment = {name: value for name, value in prefect_server.env().items() if name != "PREFECT_API_URL"}
    worker = daemon(pool=pool, environment=environment, wait=False)
    assert worker.wait_exit() == EXIT_CONFIGURATION
    assert "PREFECT_API_URL" in worker.output()
    assert "Traceback" not in worker.output()
