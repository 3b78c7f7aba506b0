"""Starting, watching and stopping what the demo needs: a Prefect server, the daemon, and commands that end by themselves.

Each long-lived process gets a session of its own, so that Ctrl-C reaches the demo alone and the demo decides in what
order the others stop. All of them write to files, and every error shows the end of the right one.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

TAIL_LINES = 25
# How long a process may take to stop before it is asked again, more sternly each time, in seconds.
PATIENCE = 30.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)


class DemoError(Exception):
    """The demo cannot go on; the message says why and shows where to look."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process that lives as long as the demo, and the file it logs to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    good_exits: tuple[int, ...]

    def check(self) -> None:
        """Raises DemoError, with the end of the log, when the process is gone."""
        if self.process.poll() is not None:
            raise DemoError(f"{self.name} ended with exit code {self.process.returncode}. {tail(self.log)}")

    def stop(self) -> bool:
        """End the process and whatever it started. Whether it ended as it does when all is well."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        for number in STOP_SIGNALS:
            if self.process.poll() is None:
                self.process.send_signal(number)
            try:
                self.process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                continue
        for left in psutil.wait_procs(children, timeout=1)[1]:
            left.kill()
        return self.process.returncode in self.good_exits


def start(
    name: str,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    good_exits: tuple[int, ...] = (0,),
) -> Service:
    """Start a process in its own session, its output in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Service(name=name, process=process, log=log, good_exits=good_exits)


@contextmanager
def stopped_afterwards(service: Service, *, keep: bool) -> Generator[Service]:
    """Lend the service; stop it at the end whatever happened, unless all went well and it is to be kept."""
    try:
        yield service
    except BaseException:
        # From here on nothing interrupts the stopping: what was started must not outlive the demo.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        print(f"stopping {service.name}", file=sys.stderr, flush=True)
        service.stop()
        raise
    if not keep and not service.stop():
        raise DemoError(
            f"{service.name} stopped with exit code {service.process.returncode}. {tail(service.log)}"
        )


def run(argv: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path) -> str:
    """Run a command to its end and give what it printed; raises DemoError when it fails."""
    with log.open("wb") as errors:
        result = subprocess.run(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
    with log.open("a") as output:
        output.write(result.stdout)
    if result.returncode:
        command = " ".join(Path(part).name if part.startswith("/") else part for part in argv)
        raise DemoError(f"`{command}` failed with exit code {result.returncode}. {tail(log)}")
    return result.stdout


def tail(log: Path) -> str:
    """The last lines of a log, introduced by its path."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"The end of {log}:", *(f"    {line}" for line in lines)])


def wait_until(
    condition: Callable[[], bool], *, what: str, seconds: float, services: Sequence[Service]
) -> None:
    """Wait until `condition` holds. Raises DemoError when it takes too long, or one of the services is gone."""
    deadline = time.monotonic() + seconds
    while not condition():
        for service in services:
            service.check()
        if time.monotonic() > deadline:
            logs = "\n".join(tail(service.log) for service in services)
            raise DemoError(f"{what}: not within {seconds:.0f} seconds.\n{logs}")
        time.sleep(0.2)


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def clean_environment(**additions: str) -> dict[str, str]:
    """This process's environment, less what would tie the demo to the user's own Prefect, flows or git."""
    own = ("PREFECT_", "HEADRACE_", "GIT_", "DEMO_", "EXECUTION_ENVIRONMENT", "MY_NOT_SO_SECRET_CONFIG")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(own)}
    # The server is on loopback: a proxy for the world outside has no part in it.
    direct = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return {**kept, **direct, **additions}
