"""A process that a fork server has forked and that waits for the word: asking for one, and giving the word.

Owns the conversation about one process, in JSON lines on a socket. Does not own the fork server (`forkserver`), and the
other side of the conversation (`forkserver_main`).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import anyio

from worker.processes.launch_problems import LaunchSpec, explain_failure, launch_error, reason_of
from worker.processes.launcher import open_output
from worker.processes.process import ProcessHandle
from worker.processes.process_table import Marker

_GO = b"g"


class NotWarm(Exception):
    """A run cannot be started warm now; the message says why, and a cold start is the answer."""


def held_output(output: Path) -> Path:
    """Where the output of a held process is: the run's own file is there only once its process may have begun."""
    return output.with_name(f"{output.name}.held")


class Unfit(NotWarm):
    """Nor can any other: the fork server is to be replaced."""


class Held:
    """A forked process that waits for the word. Made by `ForkServer.hold`. Its output goes to `output`, once it may run."""

    def __init__(self, *, handle: ProcessHandle, stream: socket.socket, output: Path) -> None:
        self.handle = handle
        self._stream = stream
        self._output = output
        self.gone = False

    def go(self) -> ProcessHandle:
        """Let it run; from now on it is the caller's.

        Raises NotWarm if it has ended meanwhile, having done nothing, and LaunchError if its output has no place.
        """
        if not self.handle.alive():
            raise NotWarm("the forked process has ended")
        try:
            # Before the word: whoever finds this file takes the run for begun (`worker.runs.recovery`).
            held_output(self._output).rename(self._output)
        except OSError as error:
            reason = f"cannot make the output file {self._output}: {error.strerror}"
            raise launch_error(error, reason) from error
        try:
            self._stream.send(_GO)
        except OSError as error:
            raise NotWarm(f"the forked process has ended: {error.strerror}") from error
        self.gone = True
        return self.handle

    async def discard(self) -> None:
        """End it, unless it was let go. Before anything else is started for the attempt: it carries the same mark."""
        if not self.gone:
            with anyio.CancelScope(shield=True):
                await self.handle.kill_tree()
            self.gone = True


def request(control: socket.socket, stream: socket.socket, output: Path) -> None:
    """Ask a fork server for a process that talks on `stream` and writes to this file; raises Unfit and LaunchError."""
    descriptor = open_output(output)
    try:
        socket.send_fds(control, [b"r"], [stream.fileno(), descriptor])
    except OSError as error:
        raise Unfit(f"the fork server does not listen: {reason_of(error)}") from error
    finally:
        os.close(descriptor)


async def forked(
    stream: socket.socket, spec: LaunchSpec, marker: Marker, take: Callable[[int], ProcessHandle]
) -> ProcessHandle:
    """Tell the process what it is to be, and wait until it is that, and waits itself.

    `take` gives the handle of a child by its pid. Raises NotWarm, Unfit, and LaunchError for what would keep a cold start
    from succeeding, too.
    """
    question = {
        "directory": os.fspath(spec.cwd.absolute()),
        "environment": {**spec.env, marker.name: marker.value},
        "mark": marker,
    }
    try:
        await send_line(stream, question)
        answer = await receive_line(stream)
    except OSError as error:
        raise Unfit(f"the fork server has ended: {reason_of(error)}") from error
    match answer:
        case {"pid": int(pid)}:
            # It was forked, could not become what it was to be, and has ended: it is ours to collect.
            await take(pid).wait()
        case _:
            pass
    match answer:
        case {"ready": int(pid)}:
            return take(pid)
        case {"refused": str(reason)}:
            raise NotWarm(reason)
        case {"stale": str(reason)}:
            raise Unfit(reason)
        case {"failed": int(number), "step": str(step)}:
            name = os.fspath(spec.cwd) if step == "directory" else None
            error = OSError(number, os.strerror(number), name)
            raise launch_error(error, explain_failure(spec, error))
        case _:
            raise Unfit("the fork server has ended")


async def send_line(connection: socket.socket, content: Mapping[str, Any]) -> None:
    """One JSON object, a line. Raises OSError when the other side is gone."""
    rest = memoryview(json.dumps(content).encode() + b"\n")
    while rest:
        try:
            rest = rest[connection.send(rest) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)


async def receive_line(connection: socket.socket) -> dict[str, Any] | None:
    """One JSON object; None when the other side has closed. Raises OSError."""
    received = bytearray()
    while not received.endswith(b"\n"):
        try:
            part = connection.recv(1 << 16)
        except BlockingIOError:
            await anyio.wait_readable(connection)
            continue
        except ConnectionResetError:
            return None
        if not part:
            return None
        received += part
    return cast("dict[str, Any]", json.loads(received))
