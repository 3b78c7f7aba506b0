"""The daemons under chaos: each has a name and a state directory that it keeps over all its lives.

Owns starting, killing, stopping and restarting them, and what each life printed. What is left when all have ended is
looked for by `remains`; what their ends mean is the verdict's business.
"""

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any

from tests.support.daemons import ROLE_DAEMON, Worker
from tests.support.services import Service, spawn

LONGEST_ABSENCE = 3.0
# How long a daemon that was told to stop may take: its runs take seconds.
STOP_PATIENCE = 300.0
DETACH_SHARE = 0.3
# How often the choice is among daemons with runs in their hands: hitting one that is idle shows little.
BUSY_SHARE = 0.8
POLL_SECONDS = "2"


class Told(Enum):
    """What the driver has done to a life."""

    NOTHING = auto()
    TO_STOP = auto()
    KILLED = auto()


@dataclass(slots=True, kw_only=True)
class Life:
    """A daemon from one start to its end; `since` is when it was last told something, in seconds since boot."""

    worker: Worker
    detaching: bool
    told: Told = Told.NOTHING
    since: float = 0.0

    @property
    def service(self) -> Service:
        return self.worker.service

    @property
    def over(self) -> bool:
        return self.service.returncode is not None

    @property
    def started(self) -> bool:
        return f"Worker '{self.worker.name}' started!" in self.worker.stdout()


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One name; `back_at` is when it is started again, in seconds since boot, None while it lives."""

    name: str
    lives: list[Life] = field(default_factory=list[Life])
    back_at: float | None = 0.0


class Fleet:
    """All daemons of a chaos run. `clock` gives seconds since boot; `end` kills whatever of them is left."""

    def __init__(
        self,
        *,
        pool: str,
        names: tuple[str, ...],
        limit: int,
        directory: Path,
        environment: Mapping[str, str],
        random: Random,
        clock: Callable[[], float],
    ) -> None:
        self.state_root = directory / "state"
        self.bad_ends: list[str] = []
        self._pool = pool
        self._limit = limit
        self._directory = directory
        self._environment = dict(environment)
        self._random = random
        self._clock = clock
        self._daemons = [Daemon(name=name) for name in names]

    def lives(self) -> list[Life]:
        return [life for daemon in self._daemons for life in daemon.lives]

    def tend(self) -> None:
        """Notice who has ended, and start again who has been away long enough."""
        for daemon in self._daemons:
            if daemon.back_at is None:
                self._notice_end(daemon)
            if daemon.back_at is not None and self._clock() >= daemon.back_at:
                daemon.lives.append(self._start(daemon.name))
                daemon.back_at = None

    def all_up(self) -> bool:
        """Whether every daemon is at work and has not been told to stop."""
        return all(
            daemon.back_at is None and daemon.lives[-1].told is Told.NOTHING and daemon.lives[-1].started
            for daemon in self._daemons
        )

    def kill_one(self) -> str | None:
        """SIGKILL a daemon, whatever it is doing; its name, None when none is alive."""
        life = self._choose(lambda life: life.told is not Told.KILLED)
        if life is not None:
            self._tell(life, Told.KILLED, signal.SIGKILL)
        return life and life.worker.name

    def stop_one(self) -> str | None:
        """SIGTERM a daemon that is at work; its name, None when there is none."""
        life = self._choose(lambda life: life.told is Told.NOTHING and life.started)
        if life is not None:
            self._tell(life, Told.TO_STOP, signal.SIGTERM)
        return life and life.worker.name

    def stop_all(self) -> None:
        """SIGTERM all that still run."""
        for daemon in self._daemons:
            life = daemon.lives[-1]
            if not life.over and life.told is Told.NOTHING:
                self._tell(life, Told.TO_STOP, signal.SIGTERM)

    def all_over(self) -> bool:
        """Whether every daemon has ended; notes how."""
        for daemon in self._daemons:
            if daemon.back_at is None:
                self._notice_end(daemon)
        return all(daemon.back_at is not None for daemon in self._daemons)

    def end(self) -> None:
        """End every process that any life has left. Safe to call twice."""
        for life in self.lives():
            life.service.end()

    def log_events(self) -> list[dict[str, Any]]:
        """The JSON events of all lives, in the order of time; each tells its `worker`."""
        events = [event for life in self.lives() for event in life.worker.logs()]
        return sorted(events, key=lambda event: str(event.get("timestamp", "")))

    def _choose(self, fits: Callable[[Life], bool]) -> Life | None:
        found = [
            daemon.lives[-1]
            for daemon in self._daemons
            if daemon.back_at is None and not daemon.lives[-1].over and fits(daemon.lives[-1])
        ]
        busy = [life for life in found if self._is_busy(life)]
        if busy and self._random.random() < BUSY_SHARE:
            return self._random.choice(busy)
        return self._random.choice(found) if found else None

    def _is_busy(self, life: Life) -> bool:
        return any(self.state_root.glob(f"{life.worker.name}-*/runs/*"))

    def _tell(self, life: Life, told: Told, number: signal.Signals) -> None:
        life.told, life.since = told, self._clock()
        life.service.signal(number)

    def _notice_end(self, daemon: Daemon) -> None:
        life = daemon.lives[-1]
        code = life.service.returncode
        if code is None:
            if life.told is Told.TO_STOP and self._clock() - life.since > STOP_PATIENCE:
                self.bad_ends.append(
                    f"{daemon.name} (pid {life.service.pid}) did not end in {STOP_PATIENCE:g} s"
                )
                self._tell(life, Told.KILLED, signal.SIGKILL)
            return
        if life.told is Told.NOTHING or (life.told is Told.TO_STOP and code != 0):
            told = "without being told to" if life.told is Told.NOTHING else "on SIGTERM"
            self.bad_ends.append(
                f"{daemon.name} (pid {life.service.pid}) ended {told} with {code}\n"
                + life.service.transcript(lines=10)
            )
        daemon.back_at = self._clock() + self._random.uniform(0, LONGEST_ABSENCE)

    def _start(self, name: str) -> Life:
        home = self._directory / name
        temporary = home / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        detaching = self._random.random() < DETACH_SHARE
        own = {"HOME": str(home), "TMPDIR": str(temporary), "PREFECT_HOME": str(home / ".prefect")}
        service = spawn(
            [
                *(sys.executable, "-m", "worker.cli", "start", "--python", sys.executable),
                *("--pool", self._pool, "--name", name, "--limit", str(self._limit)),
                *("--state-dir", str(self.state_root), "--log-format", "json", "--log-level", "info"),
                *(["--detach-on-stop"] if detaching else []),
            ],
            name=name,
            role=ROLE_DAEMON,
            directory=self._directory / "output",
            environment=self._environment | {"PREFECT_WORKER_QUERY_SECONDS": POLL_SECONDS} | own,
            cwd=home,
        )
        worker = Worker(service=service, pool=self._pool, name=name, home=home)
        return Life(worker=worker, detaching=detaching)
