"""One live child process: who it is, how it is asked or made to end, and how it ended.

Owns: the pidfd, waiting, the exit status. Does not own: how it was started (`launcher`), which other processes belong
to it (`tree`), and what its exit means for the flow run (`worker.runs`).

As long as the exit of a child has not been collected, the kernel keeps its pid, and with it the number of its session
and group (pid_namespaces(7), setsid(2)). Everything that relies on these numbers therefore happens before: when the
leader has ended, `ProcessHandle.wait` first ends what is left of its tree and collects the exit afterwards.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio

from worker.processes.process_table import Identity, Marker, read_process
from worker.processes.tree import KillReport, ProcessTree

_POLL_SECONDS = 0.1
_NOT_YET = -1  # no wait status is negative
_UNKNOWN = (None, None)
_KILL_SECONDS = 10.0
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended.

    Exactly one of `code` (>= 0) and `signal` (> 0) is set; neither when the process was not our child (adopted from an
    earlier daemon), as only a parent learns it. `max_rss_bytes` is the largest resident set among the process and the
    descendants it waited for; None when it was below the daemon's own, because a forked child starts with its parent's.
    `started` and `ended` are wall-clock times, in seconds since the epoch.
    """

    code: int | None
    signal: int | None
    max_rss_bytes: int | None
    started: float
    ended: float

    @property
    def status_code(self) -> int | None:
        """As `subprocess` has it: the exit code, or minus the signal's number; None if unknown."""
        if self.signal is not None:
            return -self.signal
        return self.code

    def describe(self) -> str:
        """For people: `exit code 7`, `signal SIGKILL`."""
        if self.signal is not None:
            try:
                return f"signal {signal.Signals(self.signal).name}"
            except ValueError:  # real-time signals have no names
                return f"signal {self.signal}"
        return "unknown exit status" if self.code is None else f"exit code {self.code}"


class ProcessHandle:
    """A process that leads its own session, and all that it started. Made by `Launcher.launch` or `adopt`.

    Every method may be called at any time, by several tasks, and after the end; none signals a process that is not the
    run's. Use it on one event loop.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        marker: Marker | None,
        started: float,
        clock: Callable[[], float],
        is_child: bool,
        on_collected: Callable[[int], None],
    ) -> None:
        self.pid = identity.pid
        self.start_time = identity.start_time
        self.marker = marker
        self.started = started
        self._clock = clock
        self._is_child = is_child
        self._on_collected = on_collected
        self._collecting = anyio.Lock()
        self._exit: Exit | None = None
        self._leftovers = 0
        self._survivors: tuple[int, ...] = ()
        self._tree = ProcessTree(leader=identity, marker=marker, leader_held=self._pid_is_held)
        self._pidfd = _open_pidfd(identity)

    @classmethod
    def adopt(
        cls,
        *,
        identity: Identity,
        marker: Marker | None,
        started: float,
        clock: Callable[[], float],
    ) -> ProcessHandle | None:
        """A handle for a process that an earlier daemon started; None when it is gone. Its exit status stays unknown."""
        handle = cls(
            identity=identity,
            marker=marker,
            started=started,
            clock=clock,
            is_child=False,
            on_collected=lambda _: None,
        )
        if handle.alive():
            return handle
        handle.close()
        return None

    def __repr__(self) -> str:
        return f"<ProcessHandle pid={self.pid} {self._exit.describe() if self._exit else 'not collected'}>"

    def alive(self) -> bool:
        """Whether the leader runs. False from its death on, collected or not."""
        if self._exit is not None:
            return False
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            return not poll.poll(0)
        try:
            info = read_process(self.pid)
        except OSError:
            return True  # out of descriptors: nothing says that it has ended, and it will be asked again
        return info is not None and info.start_time == self.start_time and not info.dead

    async def wait(self) -> Exit:
        """Wait until the leader has ended, end what is left of its tree, return how the leader ended.

        A cancelled call leaves everything as it was; the next one goes on.
        """
        async with self._collecting:
            if self._exit is None:
                await self._leader_ended()
                ended = self._clock()
                report = await self._tree.kill(timeout=_KILL_SECONDS)
                self._leftovers += report.killed
                self._survivors = report.survivors
                self._exit = await self._collect(ended)
                self.close()
                self._on_collected(self.pid)
        return self._exit

    async def sweep(self) -> int:
        """Wait for the leader's end and that of all it left behind; returns how many processes outlived it."""
        await self.wait()
        if self._survivors:
            await self.kill_tree()
        return self._leftovers

    def interrupt(self) -> None:
        """Ask the run to end: SIGTERM to its process group, and SIGCONT in case it is stopped and could not hear it."""
        if not self._pid_is_held():
            return
        # Gone is what we want. Another user's (a setuid program) cannot be asked: `kill_tree` reports it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)
            os.killpg(self.pid, signal.SIGCONT)

    async def stop(self, *, grace: float) -> KillReport:
        """Ask the run to end, and after `grace` seconds kill all that is left of it. Reports what had to be killed."""
        if self._exit is None:
            self._tree.members()  # who forks twice on SIGTERM is remembered by its parent
            self.interrupt()
            with anyio.move_on_after(grace):
                await self.wait()
        return await self.kill_tree()

    async def kill_tree(self) -> KillReport:
        """SIGKILL every process of the run until none is left. Survivors are those that we may not or cannot kill.

        Once `wait` has found nothing left, this looks no more: what carries the marker from then on is another attempt
        at the run, or a hook of it.
        """
        if self._exit is not None and not self._survivors:
            return KillReport()
        report = await self._tree.kill(timeout=_KILL_SECONDS)
        if self._exit is not None:
            self._leftovers += report.killed
            self._survivors = report.survivors
        elif self.pid not in report.survivors:
            await self.wait()
        return report

    def close(self) -> None:
        """Give back the descriptor without ending the process: for a daemon that leaves its runs to the next one."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _pid_is_held(self) -> bool:
        return self._exit is None and (self._is_child or self.alive())

    async def _leader_ended(self) -> None:
        if self._pidfd is not None:
            await anyio.wait_readable(self._pidfd)
        while True:  # at once, or by polling where there is no pidfd
            if not self.alive():
                return
            await anyio.sleep(_POLL_SECONDS)

    async def _collect(self, ended: float) -> Exit:
        while True:
            status, usage = _wait4(self.pid) if self._is_child else _UNKNOWN
            if status != _NOT_YET:
                break
            await anyio.sleep(_POLL_SECONDS)  # a tracer collects it first (ptrace(2))
        code = None if status is None else os.waitstatus_to_exitcode(status)
        return Exit(
            code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            max_rss_bytes=_peak(usage),
            started=self.started,
            ended=ended,
        )


def _wait4(pid: int) -> tuple[int | None, resource.struct_rusage | None]:
    """Wait status and resource usage, `_NOT_YET`, or `_UNKNOWN` when someone else in this process was faster."""
    try:
        collected, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return _UNKNOWN
    return (status, usage) if collected == pid else (_NOT_YET, None)


def _peak(usage: resource.struct_rusage | None) -> int | None:
    """The largest resident set, where it is the child's own: it begins with that of the process it was forked from."""
    if usage is None or usage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        return None
    return usage.ru_maxrss * _MAXRSS_UNIT


def _open_pidfd(identity: Identity) -> int | None:
    """A pidfd, or None where there is none to be had; waiting then polls."""
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return None
    try:
        info = read_process(identity.pid)
    except OSError:
        info = None  # no descriptor left to look at the table with: waiting then polls
    if info is None or info.identity != identity:
        os.close(descriptor)
        return None
    return descriptor
