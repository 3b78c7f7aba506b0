"""Our daemon and Prefect's own worker as real subprocesses of one server.

Owns their command lines and what they print: the line that says they started, and our JSON events.
"""

import json
import sys
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.log_catalogue import faults
from tests.support.server import PrefectServer
from tests.support.services import Service, spawn
from tests.support.wait import wait_for

ROLE_DAEMON = "daemon"
ROLE_STOCK = "stock-worker"
START_TIMEOUT = 90.0
# The default interval is made for production; a test should not wait ten seconds for a poll.
FAST = {"PREFECT_WORKER_QUERY_SECONDS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A started worker, ours or stock: where it lives, what it says, how to end it."""

    service: Service
    pool: str
    name: str
    home: Path

    @property
    def pid(self) -> int:
        return self.service.pid

    @property
    def state_dir(self) -> Path:
        return self.home / "state"

    @property
    def temporary(self) -> Path:
        """Where the worker's temporary files go: its own TMPDIR."""
        return self.home / "tmp"

    def stdout(self) -> str:
        return self.service.stdout()

    def stderr(self) -> str:
        return self.service.stderr()

    def output(self) -> str:
        """Everything it printed, on both streams."""
        return self.stdout() + self.stderr()

    @property
    def journal(self) -> Path:
        """The file of its journal, once there is one."""
        (found,) = self.state_dir.glob("*/journal.db")
        return found

    def logs(self) -> list[dict[str, Any]]:
        """The JSON events on stderr; lines of other programs between them are skipped."""
        return [event for line in self.stderr().splitlines() if (event := _event(line)) is not None]

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The logged events of this name that have these fields."""
        return [
            event for event in self.logs() if event.get("event") == name and fields.items() <= event.items()
        ]

    def wait_for_event(self, name: str, *, timeout: float = 60.0, **fields: Any) -> dict[str, Any]:
        return wait_for(
            lambda: next(iter(self.events(name, **fields)), None),
            timeout=timeout,
            description=lambda: f"log event {name} {fields}\n{self.service.transcript()}",
        )

    def wait_started(self, *, timeout: float = START_TIMEOUT) -> None:
        alive = self.service.wait_until_true(
            lambda: f"Worker '{self.name}' started!" in self.stdout(), timeout=timeout
        )
        if not alive:
            raise AssertionError(f"{self.name} ended before it started\n{self.service.transcript()}")

    def stop(self, *, timeout: float = 180.0) -> int:
        """SIGTERM and wait; the exit code."""
        return self.service.stop(timeout=timeout)

    def wait_exit(self, *, timeout: float = 60.0) -> int:
        return self.service.wait_exit(timeout=timeout)


StartWorker = Callable[..., Worker]


@contextmanager
def worker_factory(server: PrefectServer, directory: Path, *, role: str) -> Generator[StartWorker]:
    """A function that starts workers of `server`; all of them are ended when the context is left."""
    started: list[Worker] = []

    def start(
        *,
        pool: str,
        name: str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        at: PrefectServer | None = None,
        environment: Mapping[str, str] | None = None,
        job_variables: str = "layered",
        successor_of: Worker | None = None,
        program: str = "worker.cli",
        wait: bool = True,
    ) -> Worker:
        """Start one worker on `pool`.

        `env` is laid over the clean client environment of the server (`at`, or the factory's own), which
        `environment` replaces as a whole. With `wait` the worker has said that it started. The `successor_of` one that
        has ended has its name and its home, and so its state. `program` is the module that is run instead of the daemon's.
        """
        if successor_of is not None:
            name, home = successor_of.name, successor_of.home
        else:
            name = name or f"worker-{uuid.uuid4().hex[:8]}"
            home = directory / f"home-{uuid.uuid4().hex[:8]}"
        temporary = home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        base = dict(environment) if environment is not None else (at or server).env()
        own = {"HOME": str(home), "TMPDIR": str(temporary), "PREFECT_HOME": str(home / ".prefect")}
        service = spawn(
            [
                *_program(role, state_dir=home / "state", job_variables=job_variables, program=program),
                *("--pool", pool, "--name", name, *args),
            ],
            name=name,
            role=role,
            directory=directory,
            environment=base | FAST | own | dict(env or {}),
            cwd=cwd or home,
            home=home,
        )
        worker = Worker(service=service, pool=pool, name=name, home=home)
        started.append(worker)
        if wait:
            worker.wait_started()
        return worker

    try:
        yield start
    finally:
        for worker in started:
            worker.service.end()
        if role == ROLE_DAEMON:
            # Whatever a test makes daemons do, they may say nothing that docs/logs.md does not list.
            undocumented = {fault for worker in started for line in worker.logs() for fault in faults(line)}
            assert not undocumented, "\n".join(sorted(undocumented))


def _program(role: str, *, state_dir: Path, job_variables: str, program: str) -> list[str]:
    if role == ROLE_STOCK:
        return [str(Path(sys.executable).parent / "prefect"), "worker", "start", "--type", "process"]
    return [
        *(sys.executable, "-m", program, "start", "--python", sys.executable),
        *("--state-dir", str(state_dir), "--job-variables", job_variables),
        *("--log-format", "json", "--log-level", "debug"),
    ]


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event if "event" in event else None
