"""Keeping the file that a run writes its output to small, while the run goes on writing.

Owns: dropping the oldest output beyond a limit. Reading what is left, and telling what is not, is `output`'s.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from worker.processes.output import next_data, open_output

LEAST_KEPT = 64 * 1024
_STAT_BLOCK = 512  # stat(2): the unit of st_blocks
_SHORTEST_INTERVAL = 0.01
# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Give back the disk space of a part of a file, whose size stays; raises OSError where that is not possible.

    fallocate(2), PUNCH_HOLE. The standard library has posix_fallocate only.
    """
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    library = ctypes.CDLL(None, use_errno=True)
    try:
        fallocate = library.fallocate64  # glibc on 32 bit machines has a narrower fallocate beside it
    except AttributeError:
        fallocate = library.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        if (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))


async def bound(
    path: Path,
    *,
    limit: int,
    keep: int = LEAST_KEPT,
    done: anyio.Event,
    poll_interval: float = 0.2,
    punch: Callable[[int, int, int], None] = punch_hole,
) -> int:
    """Keep the disk space of a growing file at `limit` bytes by dropping its oldest part, until `done` is set.

    Whenever the file occupies more than `limit`, only the latest half of `limit` is left, and at least the latest `keep`
    bytes. Between two checks a writer can exceed the limit by what it writes in that time: the space used is at
    most `limit` + rate x interval, where the interval is short for a fast writer (10 ms) and `poll_interval` for one that
    would need long to get there. A last check follows `done`: set it when no writer is left.

    Where no hole can be made (`punch` raises OSError), the file is truncated; whoever writes must have opened it with
    O_APPEND. Then all of it is dropped at once, and `follow` cannot tell a file that has grown past the place it had
    reached, before it looked again, from one that was never truncated: what is missing is then not told.

    Returns how many bytes were dropped since the file was begun, those that became a hole before this call included; 0
    if none. Raises OSError if the file cannot be opened for writing or shortened. The file may not exist yet.
    """
    descriptor: int | None = None
    dropped = 0
    interval = min(_SHORTEST_INTERVAL, poll_interval)
    occupied, looked = 0, anyio.current_time()
    try:
        while True:
            last = done.is_set()
            if descriptor is None and (descriptor := open_output(path, os.O_WRONLY)) is not None:
                dropped = next_data(descriptor, 0, size=os.fstat(descriptor).st_size)
            if descriptor is not None:
                before, now = occupied, anyio.current_time()
                occupied = _occupied(descriptor)
                interval = next_interval(
                    interval,
                    grown=occupied - before,
                    elapsed=now - looked,
                    limit=limit,
                    longest=poll_interval,
                )
                if occupied > limit:
                    # In a thread: freeing pages that are being written waits for the disk.
                    dropped += await anyio.to_thread.run_sync(
                        _drop_oldest, descriptor, max(limit // 2, keep), punch
                    )
                    occupied = _occupied(descriptor)
                looked = anyio.current_time()
            if last:
                return dropped
            with anyio.move_on_after(interval):
                await done.wait()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def next_interval(interval: float, *, grown: int, elapsed: float, limit: int, longest: float) -> float:
    """Seconds to the next look at a file that has grown by so many bytes in so many seconds.

    In that time it may grow by a quarter of the limit; the interval at most doubles, so that a writer that pauses for a
    moment is not lost sight of.
    """
    until_quarter = limit / 4 * elapsed / grown if grown > 0 else longest
    return min(longest, max(_SHORTEST_INTERVAL, min(until_quarter, 2 * interval)))


def _drop_oldest(descriptor: int, remain: int, punch: Callable[[int, int, int], None]) -> int:
    """Drop all but the last `remain` bytes, cut at a block of the file system; returns how many."""
    status = os.fstat(descriptor)
    begin = next_data(descriptor, 0, size=status.st_size)
    end = (status.st_size - remain) // status.st_blksize * status.st_blksize
    if end <= begin:
        return 0  # what is too much is not data: the file system allocates ahead of a growing file
    try:
        punch(descriptor, begin, end - begin)
        seen = next_data(descriptor, begin, size=status.st_size) >= end
    except OSError:
        seen = False
    if not seen:
        # Also where holes are made but not told of: readers cannot know them from data, but for this one moment.
        end = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, 0)
    return end - begin


def _occupied(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * _STAT_BLOCK
