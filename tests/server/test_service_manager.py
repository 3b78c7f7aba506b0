"""A daemon under a service manager: what it says on a real notification socket, from its start to its end."""

import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port
from tests.support.services import spawn
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]

UNIT = Path(__file__).parents[2] / "examples/systemd/headrace@.service"


@dataclass(slots=True)
class Manager:
    """The service manager's side: the datagrams that came, as lists of their lines."""

    socket: socket.socket
    name: str
    heard: list[list[str]] = field(default_factory=list[list[str]])

    def listen(self) -> list[list[str]]:
        """Everything that has been said so far."""
        while True:
            try:
                self.heard.append(self.socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return self.heard

    def lines(self) -> list[str]:
        return [line for message in self.listen() for line in message]

    def wait_for_line(self, beginning: str, *, after: int = 0) -> int:
        """Wait for a line that begins so, past the first `after` ones; how many lines there are up to it."""

        def find() -> int | None:
            lines = self.lines()
            return next((i + 1 for i in range(after, len(lines)) if lines[i].startswith(beginning)), None)

        return wait_for(find, description=lambda: f"{beginning!r} among {self.heard}")

    def environment(self, watchdog_usec: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name, "WATCHDOG_USEC": watchdog_usec}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    directory = tmp_path_factory.mktemp("notify")
    name = str(directory / "socket") if request.param == "path" else f"@{directory}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.setblocking(False)
        ours.bind(name if request.param == "path" else "\0" + name[1:])
        yield Manager(ours, name)


def test_ready_alive_stopping(
    api: PrefectApi, project: Project, pool: str, daemon: StartWorker, manager: Manager
) -> None:
    worker = daemon(pool=pool, args=("--limit", "3"), env=manager.environment("1000000"))
    ready = manager.wait_for_line("READY=1")
    manager.wait_for_line(f"STATUS=Serving work pool '{pool}': 0 runs in flight, 3 of 3 slots free")
    beat = manager.wait_for_line("WATCHDOG=1", after=ready)
    manager.wait_for_line("WATCHDOG=1", after=beat)

    gate = project.gate()
    run = project.run("waits_for_file", parameters={"gate": str(gate)})
    project.wait_for_fact(run, "waiting")
    manager.wait_for_line(f"STATUS=Serving work pool '{pool}': 1 run in flight, 2 of 3 slots free")
    assert not [line for line in manager.lines() if line.startswith("STOPPING")]

    worker.service.signal(signal.SIGTERM)
    stopping = manager.wait_for_line("STOPPING=1")
    manager.wait_for_line(f"STATUS=Draining work pool '{pool}': 1 run in flight")
    # As long as it drains it asks for more time, again and again.
    first = manager.wait_for_line("EXTEND_TIMEOUT_USEC=", after=stopping)
    manager.wait_for_line("EXTEND_TIMEOUT_USEC=", after=first)
    gate.touch()
    assert worker.wait_exit() == 0
    api.wait_for_state(run, "COMPLETED")
    assert manager.lines().count("READY=1") == manager.lines().count("STOPPING=1") == 1


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_stopping_is_said_by_who_is_told_to_stop_before_all_of_it_is_loaded(
    pool: str, daemon: StartWorker, manager: Manager
) -> None:
    worker = daemon(
        pool=pool,
        program="tests.support.crashing_daemon",
        env={
            **manager.environment("1000000"),
            "CRASH_AT": "0",
            "CRASH_WHEN": "online",
            "CRASH_SIGNALS": "SIGTERM",
        },
        wait=False,
    )
    assert worker.wait_exit() == 0
    assert manager.lines().count("STOPPING=1") == 1
    assert "READY=1" not in manager.lines()


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_the_units_own_command_and_environment(
    api: PrefectApi,
    project: Project,
    pool: str,
    prefect_server: PrefectServer,
    manager: Manager,
    tmp_path: Path,
) -> None:
    """As systemd would: ExecStart with the unit's environment, ready, a flow, KillSignal to the daemon alone, the end."""
    text = UNIT.read_text().replace("%i", pool).replace("%S", str(tmp_path))
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert (unit["Type"], unit["KillMode"]) == ("notify", "process")
    program, *words = shlex.split(unit["ExecStart"])
    assert program.endswith("/bin/headrace")
    state = tmp_path / unit["StateDirectory"]
    state.mkdir()
    given = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.MULTILINE))
    assert given.keys() == {"HEADRACE_STATE_DIR", "PREFECT_HOME"}
    watchdog = {"WATCHDOG_USEC": str(1_000_000 * int(unit["WatchdogSec"]))}
    service = spawn(
        [sys.executable, "-m", "worker.cli", *words],
        name="unit",
        role="daemon",
        directory=tmp_path / "said",
        environment=prefect_server.env(given | {"NOTIFY_SOCKET": manager.name} | watchdog),
        cwd=Path(unit["WorkingDirectory"]),
    )
    try:
        manager.wait_for_line("READY=1")
        gate = project.gate()
        run = project.run("waits_for_file", parameters={"gate": str(gate)})
        project.wait_for_fact(run, "waiting")
        assert list(state.glob("*/journal.db"))
        service.signal(signal.Signals[unit["KillSignal"]])
        # It needs no more than it asks for, time and again: TimeoutStopSec does not end it.
        stopping = manager.wait_for_line("STOPPING=1")
        manager.wait_for_line("EXTEND_TIMEOUT_USEC=", after=stopping)
        gate.touch()
        assert service.wait_exit(timeout=int(unit["TimeoutStopSec"])) == 0
        api.wait_for_state(run, "COMPLETED")
    finally:
        service.end()


def test_flows_cannot_speak_for_the_daemon(
    project: Project, pool: str, daemon: StartWorker, manager: Manager
) -> None:
    daemon(pool=pool, env=manager.environment("30000000"))
    seen = project.seen(project.run())
    assert not {name for name in seen["env"] if name.startswith(("NOTIFY_SOCKET", "WATCHDOG_"))}


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_daemon_whose_event_loop_hangs_is_silent_and_not_alive(
    pool: str, daemon: StartWorker, manager: Manager, tmp_path: Path
) -> None:
    end, port = tmp_path / "end", free_port()
    worker = daemon(
        pool=pool,
        program="tests.support.hanging_daemon",
        args=("--with-healthcheck",),
        env={"HANG_UNTIL": str(end), "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        | manager.environment("1000000"),
    )
    manager.wait_for_line("WATCHDOG=1")
    assert status(port, "/livez") == 200
    worker.service.signal(signal.SIGUSR1)
    wait_for(end.with_suffix(".hanging").exists, description="the hang")
    before = len(manager.lines())
    wait_for(lambda: status(port, "/livez") == 503, description="a loop that is known to hang")
    assert len(manager.lines()) == before
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz")
    assert (answer.status_code, answer.json()["message"]) == (503, "hanging")
    # A scrape does not need the loop.
    assert status(port, "/metrics") == 200
    end.touch()
    manager.wait_for_line("WATCHDOG=1", after=before)
    wait_for(lambda: status(port, "/livez") == 200, description="a loop that turns again")
    assert worker.stop() == 0


def status(port: int, path: str) -> int:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30).status_code


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_daemon_that_waits_for_the_server_is_well_and_not_ready(
    pool: str, daemon: StartWorker, manager: Manager
) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    worker = daemon(pool=pool, env={"PREFECT_API_URL": url} | manager.environment("1000000"), wait=False)
    worker.wait_for_event("api.unreachable")
    alive = manager.wait_for_line("WATCHDOG=1")
    manager.wait_for_line("EXTEND_TIMEOUT_USEC=60000000", after=alive)
    manager.wait_for_line(f"STATUS=Connecting to {url}")
    assert "READY=1" not in manager.lines()


def test_a_socket_that_nobody_listens_on_is_told_once(pool: str, daemon: StartWorker, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "500000"}
    worker = daemon(pool=pool, env=environment)
    assert worker.stop() == 0
    (told,) = worker.events("service_manager.unreachable")
    assert told["reason"] == "No such file or directory"
