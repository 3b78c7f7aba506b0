"""The daemon's side of the warm start: keeping a fork server in service, and having it fork a process for a run.

Owns: starting it, noticing that it is no longer fit and replacing it, and the conversation (described in
`forkserver_main`, which is the other side). Does not own: which runs may be started warm (`worker.runs.start_method`),
and the flow process once it runs (`process`).

A flow process is *held* at first: it has its directory, its environment and all of Prefect, and waits for one byte.
Nothing of the run has begun until then, and it ends by itself if the byte does not come, whatever became of the daemon.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import anyio
import structlog

from worker.processes.held import Held, NotWarm, receive_line, send_line
from worker.processes.launch_problems import LaunchError, LaunchSpec, explain_failure, launch_error
from worker.processes.launcher import EXECUTION_ID, Launcher, open_output
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
        self._output = log
        self._launcher = launcher
        self._wake = wake
        self._clock = clock
        self._log = structlog.get_logger()
        self._server: _Server | None = None
        self._unfit: str | None = None
        self._absence = "the fork server has not been started yet"
        self._settled = anyio.Event()

    @property
    def absence(self) -> str | None:
        """Why there is none that could fork now; None when there is one."""
        return None if self._server is not None and self._unfit is None else self._unfit or self._absence

    async def keep_once(self) -> float:
        """Start one if there is none, replace one that is not fit; returns the seconds until the next look.

        Raises ForkServerError when that failed.
        """
        if self._server is not None:
            if self._unfit is None and not self._server.handle.alive():
                self._unfit = f"the fork server has ended{self._last_words()}"
            if self._unfit is not None:
                self._log.info("forkserver.replaced", reason=self._unfit)
                await self._retire()
        if self._server is None:
            return await self._start()
        return LOOK_INTERVAL

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
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            started = self._clock()
            with theirs:
                await self._request(theirs, output)
            pid = await self._ask(ours, spec, marker)
            handle = self._launcher.take(pid, marker=marker, started=started)
            held = Held(handle=handle, stream=ours)
            try:
                yield held
            finally:
                await held.discard()

    async def _start(self) -> float:
        began = anyio.current_time()
        try:
            self._server, self._unfit = await self._spawn(), None
        except (OSError, LaunchError, ForkServerError) as error:
            self._absence = f"the fork server cannot be started: {error}"
            if isinstance(error, ForkServerRefused):
                self._log.warning(
                    "forkserver.refused", reason=str(error), consequence="runs are started cold"
                )
                return REFUSED_INTERVAL
            raise ForkServerError(self._absence) from error
        finally:
            self._settled.set()
        self._log.info(
            "forkserver.started",
            pid=self._server.handle.pid,
            seconds=round(anyio.current_time() - began, 2),
            preload=list(self._preload),
        )
        return LOOK_INTERVAL

    async def _spawn(self) -> _Server:
        self._output.unlink(missing_ok=True)
        marker = Marker(EXECUTION_ID, uuid4().hex)
        spec = LaunchSpec(
            argv=(self.python, MAIN.name, "0"), env=self.environment, cwd=MAIN.parent, stream_output=False
        )
        handle = None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                handle = self._launcher.launch(
                    spec, output=self._output, marker=marker, stdin=theirs.fileno()
                )
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
            self._settled = anyio.Event()
            await _end(server.handle, server.control)

    async def _in_service(self) -> None:
        if self._server is None:
            with anyio.move_on_after(START_PATIENCE):
                await self._settled.wait()
        if self._server is None or self._unfit is not None:
            raise NotWarm(self.absence or self._absence)

    async def _request(self, theirs: socket.socket, output: Path) -> None:
        descriptor = open_output(output)
        try:
            server = self._server
            if server is None:
                raise NotWarm(self._absence)
            socket.send_fds(server.control, [b"r"], [theirs.fileno(), descriptor])
        except OSError as error:
            raise self._give_up(
                f"the fork server does not listen: {os.strerror(error.errno or 0)}"
            ) from error
        finally:
            os.close(descriptor)

    async def _ask(self, ours: socket.socket, spec: LaunchSpec, marker: Marker) -> int:
        """The pid of the held process."""
        question = {
            "directory": os.fspath(spec.cwd.absolute()),
            "environment": {**spec.env, marker.name: marker.value},
            "mark": marker,
        }
        answer = None
        try:
            with anyio.move_on_after(ANSWER_LIMIT) as limit:
                await send_line(ours, question)
                answer = await receive_line(ours)
        except OSError as error:
            raise self._give_up(f"the fork server has ended: {os.strerror(error.errno or 0)}") from error
        if limit.cancelled_caught:
            raise self._give_up(f"the fork server did not answer within {ANSWER_LIMIT:g} s")
        match answer:
            case {"pid": int(pid)}:
                # It was forked, could not become what it was to be, and has ended: it is ours to collect.
                await self._launcher.take(pid, marker=marker, started=self._clock()).wait()
            case _:
                pass
        match answer:
            case {"ready": int(pid)}:
                return pid
            case {"refused": str(reason)}:
                raise NotWarm(reason)
            case {"stale": str(reason)}:
                raise self._give_up(reason)
            case {"failed": int(number), "step": str(step)}:
                name = os.fspath(spec.cwd) if step == "directory" else None
                error = OSError(number, os.strerror(number), name)
                raise launch_error(error, explain_failure(spec, error))
            case _:
                raise self._give_up("the fork server has ended")

    def _give_up(self, reason: str) -> NotWarm:
        """No further request to this one: it is replaced at once."""
        if self._server is not None:
            self._unfit = self._unfit or reason
            self._wake()
        return NotWarm(reason)

    def _last_words(self) -> str:
        words = tail(self._output, max_lines=1)
        return f"; it printed: {words[0]}" if words else ""


async def _end(handle: ProcessHandle | None, control: socket.socket) -> None:
    """Close the line, which ends it when it is idle, and make sure that it has ended."""
    control.close()
    if handle is not None:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(RETIRE_LIMIT):
                await handle.wait()
            await handle.kill_tree()
