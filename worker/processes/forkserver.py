"""The daemon's side of the warm start: keeping a fork server in service, and having it fork a process for a run.

Owns: starting it, noticing that it is no longer fit and replacing it, and the conversation (described in
`forkserver_main`, which is the other side). Does not own: which runs may be started warm (`worker.runs.start_method`),
and the flow process once it runs (`process`).

A flow process is *held* at first: it has its directory, its environment and all of Prefect, and waits for one byte.
Nothing of the run has begun until then, and it ends by itself if the byte does not come, whatever became of the daemon.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import anyio
import structlog

from worker.processes.held import (
    Held,
    NotWarm,
    Unfit,
    forked,
    held_output,
    receive_line,
    request,
    send_line,
)
from worker.processes.launch_problems import LaunchError, LaunchSpec, launch_error
from worker.processes.launcher import EXECUTION_ID, Launcher
from worker.processes.output import tail
from worker.processes.process import ProcessHandle
from worker.processes.process_table import Marker

MAIN = Path(__file__).with_name("forkserver_main")
# How long importing Prefect and what was asked for may take, in seconds.
START_LIMIT = 120.0
# How long a run waits for a fork server that is being started, before it is started cold.
START_PATIENCE = 15.0
ANSWER_LIMIT = 20.0
LOOK_INTERVAL = 5.0
# After a refusal that only a change to the installation or the flags can end.
REFUSED_INTERVAL = 600.0
RETIRE_LIMIT = 2.0
# One that has lived so long was a good one; after others the next is put off, and for longer each time, in seconds.
STEADY = 60.0
LONGEST_PAUSE = 300.0


class ForkServerError(Exception):
    """The fork server could not be started, or has died; another will be tried."""


class ForkServerRefused(ForkServerError):
    """The fork server refused what it was asked to be; another would, too."""


@dataclass(frozen=True, slots=True)
class _Server:
    handle: ProcessHandle
    control: socket.socket


class ForkServer:
    """One fork server for one interpreter, replaced when it has to be; lives as long as the daemon.

    `environment` is what its process gets, and so what the processes it forks start from; `log` is the file for what it
    prints, emptied whenever one is started. `wake` is rung when there is something to do before the next look.
    """

    def __init__(
        self,
        *,
        python: str,
        environment: Mapping[str, str],
        preload: Sequence[str],
        log: Path,
        launcher: Launcher,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.python = python
        self.environment = environment
        self._preload = tuple(preload)
        self.output = log
        self._launcher = launcher
        self._wake = wake
        self._clock = clock
        self._log = structlog.get_logger()
        self._server: _Server | None = None
        self._unfit: str | None = None
        self._absence = "the fork server has not been started yet"
        self._settled = anyio.Event()
        self._began = self._not_before = float("-inf")
        self._awaited_since: float | None = None
        self._short_lives = 0

    @property
    def absence(self) -> str | None:
        """Why there is none that could fork now; None when there is one."""
        return None if self._server is not None and self._unfit is None else self._unfit or self._absence

    async def keep_once(self) -> float:
        """Start one if there is none, replace one that is not fit; returns the seconds until the next look.

        Raises ForkServerError when that failed.
        """
        if self._server is not None:
            if not self._server.handle.alive():
                # A request may have met its end first.
                self._unfit = self._unfit or f"the fork server has ended{self._last_words()}"
                self._not_before = anyio.current_time() + self._pause_after_death()
            if self._unfit is not None:
                self._log.info("forkserver.replaced", python=self.python, reason=self._unfit)
                await self._retire()
        if self._server is None:
            return self._not_before - anyio.current_time() if self._resting() else await self._start()
        return LOOK_INTERVAL

    def _resting(self) -> bool:
        return anyio.current_time() < self._not_before

    def _pause_after_death(self) -> float:
        """Seconds until another one is tried: one that dies soon may have a reason that the next one has, too."""
        lived = anyio.current_time() - self._began
        self._short_lives = self._short_lives + 1 if lived < STEADY else 0
        return min(LONGEST_PAUSE, 2.0**self._short_lives) if self._short_lives > 1 else 0.0

    async def close(self) -> None:
        """Retire the one in service."""
        self._absence = "the daemon is ending"
        self._settled.set()
        await self._retire()

    @asynccontextmanager
    async def hold(self, spec: LaunchSpec, *, output: Path, marker: Marker) -> AsyncGenerator[Held]:
        """Have a process forked that waits for the word; one that was not given it is gone when this is left.

        Raises NotWarm, and LaunchError for what would keep a cold start from succeeding, too.
        """
        await self._in_service()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise launch_error(error, f"cannot make a socket: {error.strerror}") from error
        waiting = held_output(output)
        try:
            with ours:
                ours.setblocking(False)
                with theirs:
                    self._request(theirs, waiting)
                handle = await self._forked(ours, spec, marker)
                held = Held(handle=handle, stream=ours, output=output)
                try:
                    yield held
                finally:
                    await held.discard()
        finally:
            waiting.unlink(missing_ok=True)

    def _request(self, theirs: socket.socket, output: Path) -> None:
        if self._server is None:
            raise NotWarm(self._absence)
        try:
            request(self._server.control, theirs, output)
        except Unfit as error:
            raise self._give_up(str(error)) from error

    async def _forked(self, ours: socket.socket, spec: LaunchSpec, marker: Marker) -> ProcessHandle:
        def take(pid: int) -> ProcessHandle:
            try:
                return self._launcher.take(pid, marker=marker, started=started)
            except LaunchError as error:
                # It has ended, having done nothing: it may have been killed with the fork server.
                raise NotWarm(f"the forked process has ended: {error}") from error

        started = self._clock()
        try:
            with anyio.move_on_after(ANSWER_LIMIT):
                return await forked(ours, spec, marker, take)
        except Unfit as error:
            raise self._give_up(str(error)) from error
        raise self._give_up(f"the fork server did not answer within {ANSWER_LIMIT:g} s")

    async def _start(self) -> float:
        self._began = began = anyio.current_time()
        try:
            self._server, self._unfit = await self._spawn(), None
        except (OSError, LaunchError, ForkServerError) as error:
            self._absence = f"the fork server of {self.python} cannot be started: {error}"
            if isinstance(error, ForkServerRefused):
                self._log.warning(
                    "forkserver.refused",
                    python=self.python,
                    reason=str(error),
                    consequence="runs are started cold",
                )
                return REFUSED_INTERVAL
            raise ForkServerError(self._absence) from error
        finally:
            self._settled.set()
        self._log.info(
            "forkserver.started",
            python=self.python,
            pid=self._server.handle.pid,
            seconds=round(anyio.current_time() - began, 2),
            preload=list(self._preload),
        )
        return LOOK_INTERVAL

    async def _spawn(self) -> _Server:
        self.output.unlink(missing_ok=True)
        marker = Marker(EXECUTION_ID, uuid4().hex)
        spec = LaunchSpec(
            argv=(self.python, MAIN.name, "0"), env=self.environment, cwd=MAIN.parent, stream_output=False
        )
        handle = None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                handle = self._launcher.launch(spec, output=self.output, marker=marker, stdin=theirs.fileno())
            await send_line(ours, {"preload": self._preload, "mark": marker})
            await self._greeted(ours)
        except BaseException:
            await _end(handle, ours)
            raise
        return _Server(handle, ours)

    async def _greeted(self, control: socket.socket) -> None:
        """Wait until it is ready. Raises ForkServerError."""
        with anyio.move_on_after(START_LIMIT):
            match await receive_line(control):
                case {"ready": int()}:
                    return
                case {"failed": str(reason), "lasting": True}:
                    raise ForkServerRefused(reason)
                case {"failed": str(reason)}:
                    raise ForkServerError(reason)
                case _:
                    raise ForkServerError(f"it ended while starting{self._last_words()}")
        raise ForkServerError(f"it was not ready after {START_LIMIT:g} s")

    async def _retire(self) -> None:
        server, self._server = self._server, None
        if self._unfit is not None:
            self._absence, self._unfit = self._unfit, None
        if server is not None:
            self._settled, self._awaited_since = anyio.Event(), None
            await _end(server.handle, server.control)

    async def _in_service(self) -> None:
        if self._server is None and not self._resting():
            # Counted once for all runs: a slow one holds up the first ones for this long, and no other.
            if self._awaited_since is None:
                self._awaited_since = anyio.current_time()
            patience = self._awaited_since + START_PATIENCE - anyio.current_time()
            with anyio.move_on_after(max(0.0, patience)):
                await self._settled.wait()
        if self._server is None or self._unfit is not None:
            raise NotWarm(self.absence or self._absence)

    def _give_up(self, reason: str) -> NotWarm:
        """No further request to this one: it is replaced at once."""
        if self._server is not None:
            self._unfit = self._unfit or reason
            self._wake()
        return NotWarm(reason)

    def _last_words(self) -> str:
        words = tail(self.output, max_lines=1)
        return f"; it printed: {words[0]}" if words else ""


async def _end(handle: ProcessHandle | None, control: socket.socket) -> None:
    """Close the line, which ends it when it is idle, and make sure that it has ended."""
    control.close()
    if handle is not None:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(RETIRE_LIMIT):
                await handle.wait()
            await handle.kill_tree()
