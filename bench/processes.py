"""Processes of the benchmark: started in sessions of their own, watched while something is waited for, ended.

The benchmark is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): whatever a worker leaves behind becomes a child of
the benchmark, so that `end_descendants` finds all of it, whatever it did to its session, its group or its environment.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

TAIL_LINES = 25
# How long a process may take to end after each of these, in seconds.
PATIENCE = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))
_PR_SET_CHILD_SUBREAPER = 36


class BenchError(Exception):
    """The benchmark cannot go on; the message says what happened, or what was waited for, and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A process that lives for a while, and the file it logs to. `started` is seconds since the epoch."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def check(self) -> None:
        """Raises BenchError, with the end of the log, when the process is gone."""
        if self.process.poll() is not None:
            raise BenchError(f"{self.name} ended with exit code {self.process.returncode}.\n{tail(self.log)}")

    def tree(self) -> list[psutil.Process]:
        """The process and all that descend from it; empty when it is gone."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """SIGTERM, then SIGKILL; and SIGKILL for whatever of its tree is left then."""
        tree = self.tree()
        for number, seconds in PATIENCE:
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        _kill(tree)

    def kill(self) -> None:
        """SIGKILL for the process and its tree at once."""
        tree = self.tree()
        self.process.kill()
        self.process.wait(PATIENCE[-1][1])
        _kill(tree)


def start(
    name: str, argv: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path
) -> Service:
    """Start a process in its own session: Ctrl-C reaches the benchmark alone, which ends the others in order."""
    with log.open("wb") as output:
        started = time.time()
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Service(name=name, process=process, log=log, started=started)


def run(argv: Sequence[str], *, environment: Mapping[str, str], directory: Path, seconds: float) -> str:
    """Run a command to its end and give what it printed. Raises BenchError when it fails or takes too long."""
    command = " ".join([Path(argv[0]).name, *argv[1:]])
    try:
        result = subprocess.run(
            argv,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"`{command}` did not end within {seconds:.0f} s") from None
    if result.returncode:
        raise BenchError(f"`{command}` failed with exit code {result.returncode}:\n{result.stderr}")
    return result.stdout


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    services: Sequence[Service],
    interval: float = 0.1,
) -> None:
    """Wait until `condition` holds. Raises BenchError when it takes too long, or one of the services is gone."""
    deadline = time.monotonic() + seconds
    while not condition():
        for service in services:
            service.check()
        if time.monotonic() > deadline:
            logs = "\n".join(tail(service.log) for service in services)
            raise BenchError(f"waited {seconds:.0f} s in vain for this: {what}\n{logs}")
        time.sleep(interval)


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that waits to be reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def become_subreaper() -> None:
    """From now on orphans among the descendants become children of this process. Raises BenchError."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise BenchError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def end_descendants(*, keep: Sequence[Service] = ()) -> list[str]:
    """Kill and reap every descendant of this process but the services to keep. The command lines of those that lived.

    Raises BenchError when some do not go even so.
    """
    deadline = time.monotonic() + PATIENCE[-1][1]
    ended: list[str] = []
    while left := _left(keep):
        for process in left:
            if is_alive(process):
                command = _command_line(process)
                if command:
                    # One without a command line is ending by itself.
                    ended.append(command)
                _kill([process])
            _reap(process.pid)
        if time.monotonic() > deadline:
            raise BenchError(
                f"these processes survive SIGKILL: {', '.join(str(child.pid) for child in left)}"
            )
        time.sleep(0.02)
    return ended


def _left(keep: Sequence[Service]) -> list[psutil.Process]:
    """The descendants that belong to none of these services; one that forks meanwhile (PostgreSQL does) has them kept."""
    descendants = psutil.Process().children(recursive=True)
    kept = {process.pid for service in keep for process in service.tree()}
    return [process for process in descendants if process.pid not in kept]


def tail(log: Path) -> str:
    """The last lines of a log, introduced by its path."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"The end of {log}:", *(f"    {line}" for line in lines)])


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stderr.flush()


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return f"process {process.pid}"


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        # Somebody else's child still: it becomes ours, or is reaped by them.
        return
