"""Reading the file that a run writes its output to, while it grows and once more when the run is dead.

Owns: bytes to lines, in bounded memory, and opening what a flow may have put in the file's place. Does not own: creating or
deleting the file, keeping it small (`output_limit`), where the lines go, and which secrets there are to hide.

What was dropped to keep it small is a hole at the file's beginning, so that every offset stays what it was. A hole reads as
NULs, but is not data (lseek(2), SEEK_DATA): readers skip it, and pass on the NULs that a flow has really written.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

LONGEST_LINE = 16 * 1024
_CHUNK = 64 * 1024
_LINES_AT_ONCE = 256


class Mask(Protocol):
    """Hides secrets, of which new ones may come at any time."""

    @property
    def longest(self) -> int:
        """Characters of the longest secret."""
        ...

    def text(self, text: str) -> str:
        """The text with every secret in it hidden."""
        ...


class NoMask:
    """There are no secrets."""

    longest = 0

    def text(self, text: str) -> str:
        """The text."""
        return text


class LineSplitter:
    r"""Bytes in, lines out: UTF-8 with replacement, split at \n, a \r before it dropped.

    A line longer than `limit` characters comes in pieces, so that no output, however long without a line end, is held.
    What `mask` hides is hidden before that: cut in two, a secret could not be found any more.
    """

    def __init__(self, *, limit: int = LONGEST_LINE, mask: Mask | None = None) -> None:
        self._limit = limit
        self._mask = mask or NoMask()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""

    @property
    def empty(self) -> bool:
        """Whether no line is half given."""
        return not self._pending

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[str]:
        """The lines that `data` completes; with `final` also the last one, which has no end. Exhaust it."""
        *lines, self._pending = (self._pending + self._decoder.decode(data, final)).split("\n")
        for line in lines:
            yield from self._pieces(self._mask.text(line.removesuffix("\r")))
        if len(self._pending) > self._limit + self._mask.longest:
            self._pending = self._mask.text(self._pending)
        while len(self._pending) > self._limit + self._mask.longest:
            # What is kept is long enough for the beginning of any secret.
            piece, self._pending = self._pending[: self._limit], self._pending[self._limit :]
            yield piece
        if final and self._pending:
            yield from self._pieces(self._mask.text(self._pending.removesuffix("\r")))
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
    delivered: Callable[[int], None] = lambda _: None,
    limit: int = LONGEST_LINE,
    mask: Mask | None = None,
) -> int:
    """Give every line of a growing file to `sink`, from `offset` on, until `done` is set and the rest is delivered.

    Returns the offset reached. The file may not exist yet, and may be deleted meanwhile: what is open is read on. A file
    that became shorter was truncated and is read from its start. Output that was dropped before it could be read is
    one line that says how many bytes it was. Memory: one chunk and one line, whatever the file holds; other tasks run
    after every chunk and every 256 lines. What `sink` raises is raised here. `delivered` is told every offset up to which
    all lines have been given, for a later reader to begin at.
    """
    splitter = LineSplitter(limit=limit, mask=mask)
    descriptor: int | None = None
    try:
        while True:
            last = done.is_set()  # asked before reading: what is written later is not from the run
            if descriptor is None:
                descriptor = open_output(path)
            if descriptor is not None:
                size = os.fstat(descriptor).st_size
                if offset > size:
                    offset = 0
                while offset < size:
                    lines, offset = _read(descriptor, offset, size, splitter)
                    for number, line in enumerate(lines, start=1):
                        sink(line)
                        if number % _LINES_AT_ONCE == 0:
                            await checkpoint()
                    await checkpoint()
                    if splitter.empty:
                        delivered(offset)
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


def _read(descriptor: int, offset: int, size: int, splitter: LineSplitter) -> tuple[Iterator[str], int]:
    """The lines of the next chunk, or one for what is missing there, and the offset after it."""
    data = os.pread(descriptor, min(_CHUNK, size - offset), offset)
    # Asked after reading: what was being dropped just then is a hole by now. Nothing read: truncated meanwhile.
    start = next_data(descriptor, offset, size=size) if data else size
    if start > offset:
        return _gap(splitter, start - offset), start
    return splitter.feed(data), offset + len(data)


def _gap(splitter: LineSplitter, count: int) -> Iterator[str]:
    """The beginning of a line whose end was dropped, and a line for what was."""
    yield from splitter.feed(b"", final=True)
    yield f"[... {count} bytes of output dropped ...]"


def next_data(descriptor: int, offset: int, *, size: int) -> int:
    """Where data begins at or after `offset`: `offset` itself outside of a hole, `size` in one that goes to the end."""
    if sys.platform != "linux":
        return offset
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return max(offset, size) if error.errno == errno.ENXIO else offset


def tail(
    path: Path, *, max_bytes: int = LONGEST_LINE, max_lines: int = 20, mask: Mask | None = None
) -> list[str]:
    """The last lines of a file, at most so many and from at most so many bytes at its end; [] if there is none."""
    descriptor = open_output(path)
    if descriptor is None:
        return []
    try:
        size = os.fstat(descriptor).st_size
        start = next_data(descriptor, max(0, size - max_bytes), size=size)
        data = os.pread(descriptor, max_bytes, start)
    finally:
        os.close(descriptor)
    lines = list(LineSplitter(mask=mask).feed(data, final=True))
    if start and lines:
        # Most likely the end of a line only, beginning with what may be the end of a secret.
        lines[0:1] = [lines[0][mask.longest if mask else 0 :]] if len(lines) == 1 else []
    return lines[-max_lines:] if max_lines > 0 else []


def open_output(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor, or None if nothing is there. Raises OSError, also for what is no file.

    The run may have put anything in the place of its output: opening a FIFO would wait for a writer, and what a link
    leads to is not ours to read, let alone to shorten.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return descriptor
