"""Launching real processes in tests of `worker.processes`, and seeing what is left of them.

Owns a launcher whose processes carry the session's mark and a mark of their own, and are ended with the test.
"""

import ctypes
import os
import signal
import sys
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support import services
from worker.processes.launch_problems import LaunchSpec
from worker.processes.launcher import Launcher
from worker.processes.process import ProcessHandle

RUN_MARK = "TEST_RUN_MARK"


class Launches:
    """Starts processes below `directory`; `end` kills what a failed test has left."""

    def __init__(self, *, directory: Path, session_mark: str) -> None:
        self.launcher = Launcher()
        self.directory = directory
        self._handles: list[ProcessHandle] = []
        self.output = directory / "output"
        self.mark = uuid.uuid4().hex
        """In the environment of all of them, so that `left` finds them by other means than the code under test."""
        self._environment = {
            "PATH": os.environ["PATH"],
            services.MARK: session_mark,
            RUN_MARK: self.mark,
        }

    def spec(self, *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> LaunchSpec:
        return LaunchSpec(
            argv=argv,
            env={**self._environment, **(env or {})},
            cwd=cwd or self.directory,
            stream_output=False,
        )

    def __call__(
        self, *argv: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> ProcessHandle:
        handle = self.launcher.launch(self.spec(*argv, env=env, cwd=cwd), output=self.output)
        self._handles.append(handle)
        return handle

    def shell(self, script: str, *, env: Mapping[str, str] | None = None) -> ProcessHandle:
        return self("bash", "-c", script, env=env)

    def python(self, script: str, *arguments: str, env: Mapping[str, str] | None = None) -> ProcessHandle:
        return self(sys.executable, "-c", script, *arguments, env=env)

    def lines(self) -> list[str]:
        """The lines that the processes have written so far."""
        return self.output.read_text().splitlines() if self.output.exists() else []

    def left(self) -> list[int]:
        """The living processes that carry this test's mark, whoever their parent is."""
        return [process.pid for process in services.marked_processes(RUN_MARK, self.mark) if lives(process)]

    def end(self) -> None:
        """Kill what is left, until nothing is: they may fork as fast as they are found."""
        while left := self.left():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for pid in self.launcher.waited_for:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        for handle in self._handles:
            handle.close()


def lives(process: psutil.Process) -> bool:
    """Whether it is there, and has not ended; it may end while it is asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def not_a_subreaper_afterwards() -> Generator[None]:
    """Undo `become_subreaper`, so that later tests' orphans go where they always do."""
    try:
        yield
    finally:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
