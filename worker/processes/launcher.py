"""Cold start: a launch spec becomes a running process.

Owns: what a fresh process looks like, and saying in one sentence why one could not be started.
Does not own: what is in the spec (`worker.runs`), and the process once it runs (`process`).

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

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from worker.processes.process import ProcessHandle
from worker.processes.process_table import Identity, Marker, read_process

EXECUTION_ID = "HEADRACE_EXECUTION_ID"
# An earlier process of the run may have put a pipe or a link there: neither is to be waited for or followed.
_FOR_OUTPUT = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
_LARGEST_STRING = 128 * 1024  # execve(2): MAX_ARG_STRLEN, 32 pages


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that is needed to start a run's process. The representation names no value of the environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    stream_output: bool


class LaunchError(Exception):
    """The process could not be started. The message is one sentence that names the thing and the fix, and no secret."""


class Shortage(LaunchError):
    """The machine has run out of something; nothing is wrong with the process that was to be started."""


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
        self, spec: LaunchSpec, *, output: Path, marker: Marker | tuple[str, str] | None = None
    ) -> ProcessHandle:
        """Start the process and return its handle. Raises LaunchError.

        `output` is created with mode 0600, or appended to. By `marker`, a variable in the environment, processes are
        found that have left the session. It has to be unique to this attempt: two attempts at one flow run may live on
        one machine, under two daemons, and the end of one must not end the other. Default: one that is added here.
        """
        marker = Marker(*marker) if marker else Marker(EXECUTION_ID, uuid4().hex)
        if problem := find_problem(spec):
            raise LaunchError(problem)
        started = self._clock()
        identity = _identify(self._start(spec, {**spec.env, marker.name: marker.value}, output))
        self._waited_for.add(identity.pid)
        return ProcessHandle(
            identity=identity,
            marker=marker,
            started=started,
            clock=self._clock,
            is_child=True,
            on_collected=self._waited_for.discard,
        )

    def _start(self, spec: LaunchSpec, env: Mapping[str, str], output: Path) -> int:
        try:
            descriptor = os.open(output, _FOR_OUTPUT, 0o600)
            os.set_blocking(descriptor, True)
        except OSError as error:
            raise _launch_error(error, f"cannot open the output file {output}: {_reason(error)}") from error
        try:
            with _fresh_signals():
                process = subprocess.Popen(
                    spec.argv,
                    env=env,
                    cwd=os.fspath(spec.cwd),
                    stdin=subprocess.DEVNULL,
                    stdout=descriptor,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise _launch_error(error, explain_failure(spec, error)) from error
        finally:
            os.close(descriptor)
        process.returncode = 0  # from here on the handle alone waits for this pid; Popen must not
        return process.pid


def _launch_error(error: OSError, reason: str) -> LaunchError:
    shortage = _explain_shortage(error)
    return LaunchError(reason) if shortage is None else Shortage(shortage)


def _identify(pid: int) -> Identity:
    """The identity of a child just started; a child stays in the table until it is collected, which is ours to do."""
    try:
        info = read_process(pid)
    except OSError as error:
        reason = _reason(error)
    else:
        if info is not None:
            return info.identity
        reason = "it is not there: mount /proc where the daemon runs, and do not ignore SIGCHLD"
    with suppress(ProcessLookupError, ChildProcessError):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise LaunchError(f"the new process {pid} cannot be found in the process table: {reason}")


def find_problem(spec: LaunchSpec) -> str | None:
    """What makes the spec impossible to start on any machine, as a sentence; None if nothing does."""
    if not spec.argv or not spec.argv[0]:
        return "the command is empty: set `command` to a program, or leave it out to run the Prefect engine"
    for position, argument in enumerate(spec.argv):
        if problem := _unusable(argument):
            return f"argument {position} of the command {problem}"
    if problem := _unusable(os.fspath(spec.cwd)):
        return f"the working directory's path {problem}"
    for name, value in spec.env.items():
        if not name or "=" in name or _unusable(name):
            return f"{name!r} cannot be the name of an environment variable: rename it in `env`"
        if problem := _unusable(value):
            return f"the value of the environment variable {name} {problem}"
    return None


def _unusable(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character, which ends a string for the operating system: remove it"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return "contains a character that cannot be encoded: remove the lone surrogate"
    return None


def explain_failure(spec: LaunchSpec, error: OSError) -> str:
    """One sentence for an error of fork, chdir or exec."""
    if error.errno == errno.E2BIG:
        return _explain_too_big(spec)
    if shortage := _explain_shortage(error):
        return shortage
    # `subprocess` sets the file name to the directory if chdir failed, else to argv[0].
    if error.filename == os.fspath(spec.cwd) and error.filename != spec.argv[0]:
        return _explain_directory(spec.cwd, error)
    return f"the command {spec.argv[0]!r} {_command_problem(spec, error)}"


def _explain_shortage(error: OSError) -> str | None:
    """What the machine has run out of, if that is the reason: nothing is wrong with this run then."""
    match error.errno:
        case errno.EAGAIN:
            return "cannot start a process: the limit on processes is reached; raise it (ulimit -u, cgroup pids.max)"
        case errno.ENOMEM:
            return "cannot start a process: out of memory; lower --limit or give the machine more"
        case errno.EMFILE | errno.ENFILE:
            return f"cannot start a process: {_reason(error)}; raise the limit on open files (ulimit -n)"
        case _:
            return None


def _explain_directory(cwd: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the working directory {cwd} does not exist: create it or change `working_dir`"
        case errno.ENOTDIR:
            return f"the working directory {cwd} is not a directory: change `working_dir`"
        case errno.EACCES:
            return f"the working directory {cwd} may not be entered by user {os.geteuid()}: grant it the x permission"
        case _:
            return f"cannot enter the working directory {cwd}: {_reason(error)}"


def _command_problem(spec: LaunchSpec, error: OSError) -> str:
    has_slash = "/" in spec.argv[0]
    path = spec.cwd / spec.argv[0]
    match error.errno:
        case errno.ENOENT if has_slash and _exists(path):
            return "cannot run: the interpreter that its first line names does not exist"
        case errno.ENOENT if has_slash:
            return f"does not exist (seen from {spec.cwd}): correct its path"
        case errno.ENOENT:
            where = spec.env.get("PATH", os.defpath)
            return f"is not in PATH ({where}): install it or give its full path"
        case errno.EISDIR | errno.EACCES if has_slash and _is_directory(path):
            return "is a directory: give the path of a program"
        case errno.EACCES:
            return (
                f"may not be executed by user {os.geteuid()}: chmod +x it, and check the directories above it"
            )
        case _:
            hint = ": begin a script with a #! line" if error.errno == errno.ENOEXEC else ""
            return f"cannot be started: {_reason(error)}{hint}"


def _exists(path: Path) -> bool:
    return os.access(path, os.F_OK)


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a directory above may not be entered


def _explain_too_big(spec: LaunchSpec) -> str:
    sizes = {f"argument {n} of the command": len(os.fsencode(text)) for n, text in enumerate(spec.argv)}
    sizes |= {f"the environment variable {n}": len(os.fsencode(n + v)) + 1 for n, v in spec.env.items()}
    largest = max(sizes, key=lambda what: sizes[what])
    total = sum(sizes.values())
    if sizes[largest] >= _LARGEST_STRING:
        return f"{largest} has {sizes[largest]} bytes and the system allows {_LARGEST_STRING - 1}: pass it in a file"
    return (
        f"command and environment have {total} bytes, more than the system takes (a quarter of ulimit -s); "
        f"the largest is {largest} with {sizes[largest]}: pass it in a file"
    )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


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
