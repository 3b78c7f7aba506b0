"""Cold start: a launch spec becomes a running process.

Owns: what a fresh process looks like. Does not own: what is in the spec (`worker.runs`), what to say when it cannot be
started (`launch_problems`), and the process once it runs (`process`).

What the process gets, and why:

- its own session and process group, so that a terminal's signals do not reach it and the group can be signalled;
- standard input from /dev/null: reading it yields end of file. Prefect's worker gives a pipe that nobody writes to, on
  which a flow that reads its input waits for ever;
- standard output and error appended to one file of its own, readable by its owner only. No pipe: it must be able to
  write when the daemon is dead;
- no other descriptor, no blocked and no ignored signal. Signals that the daemon itself was started with as ignored
  (nohup, a shell's `&`) would otherwise be inherited across exec (signal(7)), and the flow be deaf to them;
- the daemon's umask and resource limits;
- `argv[0]` without a slash is looked up in the PATH of the *new* environment, as `subprocess` and so Prefect do;
  relative to the new directory if the entry, or `argv[0]` itself, is relative.

`launch` runs on the event loop's thread and blocks it until exec has succeeded: `subprocess` uses vfork(2) here, so that
is about a millisecond whatever the daemon's size, and no other launch, wait or reaping can come in between.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from worker.processes.launch_problems import (
    LaunchError,
    LaunchSpec,
    explain_failure,
    find_problem,
    launch_error,
    reason_of,
)
from worker.processes.process import ProcessHandle
from worker.processes.process_table import Identity, Marker, read_process

EXECUTION_ID = "HEADRACE_EXECUTION_ID"
# An earlier process of the run may have put a pipe or a link there: neither is to be waited for or followed.
_FOR_OUTPUT = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class Launcher:
    """Starts processes. One per daemon; use it on the event loop's thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._waited_for: set[int] = set()
        # An ignored SIGCHLD (some supervisors leave it so) makes the kernel throw exit statuses away (wait(2)).
        if _in_main_thread() and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    @property
    def waited_for(self) -> frozenset[int]:
        """The pids of children whose exit has not been collected: not to be reaped by anyone but their handle."""
        return frozenset(self._waited_for)

    def launch(
        self,
        spec: LaunchSpec,
        *,
        output: Path,
        marker: Marker | tuple[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> ProcessHandle:
        """Start the process and return its handle. Raises LaunchError.

        `output` is created with mode 0600, or appended to. By `marker`, a variable in the environment, processes are
        found that have left the session. It has to be unique to this attempt: two attempts at one flow run may live on
        one machine, under two daemons, and the end of one must not end the other. Default: one that is added here.
        `stdin` is the descriptor that the process gets as its standard input, for processes of the daemon's own.
        """
        marker = Marker(*marker) if marker else Marker(EXECUTION_ID, uuid4().hex)
        if problem := find_problem(spec):
            raise LaunchError(problem)
        started = self._clock()
        pid = self._start(spec, {**spec.env, marker.name: marker.value}, output, stdin)
        return self.take(pid, marker=marker, started=started)

    def take(self, pid: int, *, marker: Marker, started: float) -> ProcessHandle:
        """The handle of a child of ours that was started otherwise (`forkserver`); raises LaunchError if it is not there."""
        identity = _identify(pid)
        self._waited_for.add(identity.pid)
        return ProcessHandle(
            identity=identity,
            marker=marker,
            started=started,
            clock=self._clock,
            is_child=True,
            on_collected=self._waited_for.discard,
        )

    def _start(self, spec: LaunchSpec, env: Mapping[str, str], output: Path, stdin: int) -> int:
        descriptor = open_output(output)
        try:
            with _fresh_signals():
                process = subprocess.Popen(
                    spec.argv,
                    env=env,
                    cwd=os.fspath(spec.cwd),
                    stdin=stdin,
                    stdout=descriptor,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise launch_error(error, explain_failure(spec, error)) from error
        finally:
            os.close(descriptor)
        process.returncode = 0  # from here on the handle alone waits for this pid; Popen must not
        return process.pid


def open_output(output: Path) -> int:
    """A descriptor of a run's output file, created with mode 0600 or appended to; raises LaunchError."""
    try:
        descriptor = os.open(output, _FOR_OUTPUT, 0o600)
        os.set_blocking(descriptor, True)
    except OSError as error:
        raise launch_error(error, f"cannot open the output file {output}: {reason_of(error)}") from error
    return descriptor


def _identify(pid: int) -> Identity:
    """The identity of a child just started; a child stays in the table until it is collected, which is ours to do."""
    try:
        info = read_process(pid)
    except OSError as error:
        reason = reason_of(error)
    else:
        if info is not None:
            return info.identity
        reason = "it is not there: mount /proc where the daemon runs, and do not ignore SIGCHLD"
    with suppress(ProcessLookupError, ChildProcessError):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise LaunchError(f"the new process {pid} cannot be found in the process table: {reason}")


@contextmanager
def _fresh_signals() -> Generator[None]:
    """Let the process that is started inside begin with no signal ignored and none blocked.

    exec(2) keeps ignored signals ignored, and resets caught ones. So an ignored signal is caught meanwhile, by a handler
    that does nothing: to the daemon the same, to its child the default. Only the main thread may do this.
    """
    ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    if not _in_main_thread():
        ignored = []
    for number in ignored:
        signal.signal(number, _do_nothing)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(_number: int, _frame: object) -> None:
    pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
