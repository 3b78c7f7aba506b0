"""A process that a fork server has forked and that waits for the word, and the lines in which it is talked about.

Owns the word, and JSON lines on a socket. Does not own asking for such a process (`forkserver`), and its own side
(`forkserver_main`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any, cast

import anyio

from worker.processes.process import ProcessHandle

_GO = b"g"


class NotWarm(Exception):
    """A run cannot be started warm now; the message says why, and a cold start is the answer."""


class Held:
    """A forked process that waits for the word. Made by `ForkServer.hold`."""

    def __init__(self, *, handle: ProcessHandle, stream: socket.socket) -> None:
        self.handle = handle
        self._stream = stream
        self.gone = False

    def go(self) -> ProcessHandle:
        """Let it run; from now on it is the caller's. Raises NotWarm if it has ended meanwhile, having done nothing."""
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
