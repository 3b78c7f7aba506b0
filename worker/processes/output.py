"""Reading the file that a run writes its output to: while it grows, and once more when the run is dead.

Owns: bytes to lines, in bounded memory. Does not own: creating or deleting the file, where the lines go, and hiding
secrets in them.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

LONGEST_LINE = 16 * 1024
_CHUNK = 64 * 1024


class LineSplitter:
    r"""Bytes in, lines out: UTF-8 with replacement, split at \n, a \r before it dropped.

    A line longer than `limit` characters comes in pieces, so that no output, however long without a line end, is held.
    """

    def __init__(self, *, limit: int = LONGEST_LINE) -> None:
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[str]:
        """The lines that `data` completes; with `final` also the last one, which has no end. Exhaust it."""
        *lines, self._pending = (self._pending + self._decoder.decode(data, final)).split("\n")
        for line in lines:
            yield from self._pieces(line.removesuffix("\r"))
        if len(self._pending) > self._limit:
            *pieces, self._pending = self._pieces(self._pending)
            yield from pieces
        if final and self._pending:
            yield from self._pieces(self._pending.removesuffix("\r"))
            self._pending = ""

    def _pieces(self, line: str) -> Iterator[str]:
        for start in range(0, max(len(line), 1), self._limit):
            yield line[start : start + self._limit]


async def follow(
    path: Path,
    *,
    sink: Callable[[str], None],
    done: anyio.Event,
    poll_interval: float = 0.2,
    offset: int = 0,
    limit: int = LONGEST_LINE,
) -> int:
    """Give every line of a growing file to `sink`, from `offset` on, until `done` is set and the rest is delivered.

    Returns the offset reached. The file may not exist yet, and may be deleted meanwhile: what is open is read on. A file
    that became shorter was truncated and is read from its start. What `sink` raises is raised here.
    """
    splitter = LineSplitter(limit=limit)
    descriptor: int | None = None
    try:
        while True:
            last = done.is_set()  # asked before reading: what is written later is not from the run
            if descriptor is None:
                descriptor = _open(path)
            if descriptor is not None:
                size = os.fstat(descriptor).st_size
                if offset > size:
                    offset = 0
                while offset < size and (data := os.pread(descriptor, min(_CHUNK, size - offset), offset)):
                    offset += len(data)
                    for line in splitter.feed(data):
                        sink(line)
                    await checkpoint()
            if last:
                break
            with anyio.move_on_after(poll_interval):
                await done.wait()
        for line in splitter.feed(b"", final=True):
            sink(line)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return offset


def tail(path: Path, *, max_bytes: int = LONGEST_LINE, max_lines: int = 20) -> list[str]:
    """The last lines of a file, at most so many and from at most so many bytes at its end; [] if there is none."""
    descriptor = _open(path)
    if descriptor is None:
        return []
    try:
        start = max(0, os.fstat(descriptor).st_size - max_bytes)
        data = os.pread(descriptor, max_bytes, start)
    finally:
        os.close(descriptor)
    lines = list(LineSplitter().feed(data, final=True))
    if start and len(lines) > 1:
        del lines[0]  # most likely the end of a line only
    return lines[-max_lines:] if max_lines > 0 else []


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
