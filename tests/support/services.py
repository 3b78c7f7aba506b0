"""Long-lived subprocesses of the tests: a server, a daemon, a stock worker.

Owns their start, their captured output and their end, the whole process group and everything that carries
the service's mark included. Knows nothing of what the programs say.
"""

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.wait import wait_for

# In the environment of every process of a test session, with the session's own value.
MARK = "TEST_SESSION_MARK"
# In the environment of every process that descends from one service.
SERVICE_MARK = "TEST_SERVICE_MARK"
# In the environment of a service: what kind it is.
ROLE = "TEST_SERVICE_ROLE"

TERM_TIMEOUT = 60.0

# Services not yet ended, for the leak check and for the report of a failed test. The one piece of state of
# the harness: pytest has a single process, and fixtures of every scope must see the same list.
running: list["Service"] = []


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """One subprocess with its own session and its output in two files; made by `spawn`, ended by `end`."""

    name: str
    role: str
    mark: str
    directory: Path
    stdout_path: Path
    stderr_path: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    home: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def stdout(self) -> str:
        return self.stdout_path.read_text(errors="replace")

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def transcript(self, *, lines: int = 80) -> str:
        """The last lines of both outputs, for a failure's message."""
        parts: list[str] = [f"--- {self.name} (pid {self.pid}, exit {self.returncode})"]
        for title, text in (("stdout", self.stdout()), ("stderr", self.stderr())):
            parts.append(f"--- {title}")
            parts.extend(text.splitlines()[-lines:])
        return "\n".join(parts)

    def wait_until_true(self, predicate: Callable[[], bool], *, timeout: float) -> bool:
        """Wait until `predicate` holds; False when the process ended before that."""
        wait_for(
            lambda: self.returncode is not None or predicate(),
            timeout=timeout,
            description=lambda: f"readiness of {self.name}\n{self.transcript()}",
        )
        return self.returncode is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_exit(self, *, timeout: float = TERM_TIMEOUT) -> int:
        """The exit code; negative is the signal that ended it."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not exit within {timeout:g} s\n{self.transcript()}"
            ) from None

    def stop(self, *, timeout: float = TERM_TIMEOUT) -> int:
        """SIGTERM, wait, and return the exit code; nothing is killed on its behalf."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
        return self.wait_exit(timeout=timeout)

    def end(self) -> None:
        """Stop it in whatever way works, and whatever it left behind. Safe to call twice."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for survivor in marked_processes(SERVICE_MARK, self.mark):
            _kill(survivor)
        wait_for(
            lambda: not marked_processes(SERVICE_MARK, self.mark),
            description=f"the end of every process of {self.name}",
        )
        if self in running:
            running.remove(self)


def spawn(
    command: Sequence[str],
    *,
    name: str,
    role: str,
    directory: Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    home: Path | None = None,
) -> Service:
    """Start `command` in its own session with its output in files under `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    unique = mark[:6]
    stdout_path = directory / f"{name}-{unique}.out"
    stderr_path = directory / f"{name}-{unique}.err"
    with stdout_path.open("wb") as out, stderr_path.open("wb") as err:
        process = subprocess.Popen(
            list(command),
            cwd=cwd or directory,
            env=dict(environment) | {SERVICE_MARK: mark, ROLE: role},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    service = Service(
        name=name,
        role=role,
        mark=mark,
        directory=directory,
        stdout_path=stdout_path,
        stderr_path=stderr_path,
        process=process,
        home=home,
    )
    running.append(service)
    return service


def marked_processes(variable: str, value: str) -> list[psutil.Process]:
    """Every live process that started with `variable=value` in its environment."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.environ().get(variable) == value:
                found.append(process)
        except psutil.Error:
            # Gone meanwhile, a zombie, or somebody else's.
            continue
    return found


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
