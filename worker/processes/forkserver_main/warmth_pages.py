"""Pages that every run writes to, copied before a run is let begin.

After a fork the two processes share their memory until one of them writes to a page: then the kernel interrupts it and
makes a copy. Python writes wherever it counts a reference, so an engine meets thousands of such interruptions before it
proposes Running, mostly the same ones in every run. A process that waits for the word has time to have these pages copied.

Owns: which pages those are, and having them copied. Does not own what is done to find them out (`warmth_rehearsal`).

Runs in the interpreter of the flows; the standard library only.
"""

from __future__ import annotations

import array
import ctypes
import itertools
import json
import mmap
import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# madvise(2), since Linux 5.14; an older one knows no such advice.
MADV_POPULATE_WRITE = 23
# Of an entry in /proc/PID/pagemap (proc_pid_pagemap(5)): in memory, mapped by nobody else, and still as in a file.
_PRESENT = 1 << 63
_EXCLUSIVE = 1 << 56
_OF_A_FILE = 1 << 61
_ENTRY = 8
# So many runs of pages are copied, in a millisecond or two, before it is asked again whether to go on.
_PORTION = 128
# What takes a tenth of a second must not keep the fork server from its service, in seconds.
_LONGEST_SCOUT = 10.0


class Pages:
    """Runs of pages in this process: the address and length of each, in bytes.

    Kept as numbers in two objects: each object more would be one that the collector visits in every forked process.
    """

    def __init__(self, runs: Sequence[tuple[int, int]] = ()) -> None:
        self._numbers = array.array("Q", itertools.chain.from_iterable(runs))
        self._advise = ctypes.CDLL(None).madvise

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(0, len(self._numbers), 2):
            yield self._numbers[at], self._numbers[at + 1]

    def copy(self, *, until: Callable[[], bool]) -> None:
        """In a forked process: have these pages copied, unless there is something else to do.

        What is not copied, or cannot be, is copied when it is written to, as ever.
        """
        for number, (start, length) in enumerate(self):
            if number % _PORTION == 0 and until():
                return
            _advise(self._advise, start, length)


def written_by(act: Callable[[], object]) -> Pages:
    """The pages of this process that one forked from it writes to while it does this; nothing else comes of it.

    What keeps them from being told is said on standard error, and means none.
    """
    try:
        return Pages(_scouted(act, _writable())) if is_possible() else Pages()
    except (OSError, ValueError) as error:
        print(f"no pages are copied ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its log
        return Pages()


def is_possible() -> bool:
    """Whether the kernel takes the advice."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        view = ctypes.c_char.from_buffer(page)
        try:
            return _advise(ctypes.CDLL(None).madvise, ctypes.addressof(view), mmap.PAGESIZE)
        finally:
            del view


def _advise(madvise: Callable[..., int], start: int, length: int) -> bool:
    return madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_POPULATE_WRITE) == 0


def _scouted(act: Callable[[], object], mappings: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What a forked process tells of itself. Raises OSError, and ValueError where it does not come to an end."""
    reader, writer = os.pipe()
    try:
        scout = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if not scout:
        status = 1
        try:
            act()
            with open(writer, "w") as stream:
                json.dump(_own(mappings), stream)
            status = 0
        except BaseException as error:  # noqa: BLE001 - it ends here, whatever it is
            print(f"the scout: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the fork server's log
        finally:
            os._exit(status)
    os.close(writer)
    told = _everything(reader)
    os.close(reader)
    if told is None:
        os.kill(scout, signal.SIGKILL)
    _, status = os.waitpid(scout, 0)
    if told is None or status:
        how = (
            f"has not come back within {_LONGEST_SCOUT:g} s"
            if told is None
            else f"ended with wait status {status}"
        )
        msg = f"the scout {how}"
        raise ValueError(msg)
    return [(start, length) for start, length in json.loads(told)]


def _everything(reader: int) -> bytes | None:
    """What is told until the other end is closed; None when it stays open for longer than may be waited."""
    parts = [b""]
    while select.select([reader], [], [], _LONGEST_SCOUT)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _writable() -> list[tuple[int, int]]:
    """The numbers of the first page, and of the one after the last, of each private mapping that can be written to."""
    size = mmap.PAGESIZE
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            addresses, permissions = line.split(maxsplit=2)[:2]
            if permissions.startswith(b"rw") and permissions.endswith(b"p"):
                first, last = (int(address, 16) // size for address in addresses.split(b"-"))
                found.append((first, last))
    return found


def _own(mappings: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where in these mappings this process has pages to itself."""
    size = mmap.PAGESIZE
    found: list[tuple[int, int]] = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for first, last in mappings:
            pagemap.seek(first * _ENTRY)
            at = first
            entries = array.array("Q", pagemap.read((last - first) * _ENTRY))
            for own, same in itertools.groupby(entries, _is_own):
                count = len(list(same))
                if own:
                    found.append((at * size, count * size))
                at += count
    return found


def _is_own(entry: int) -> bool:
    return entry & (_PRESENT | _EXCLUSIVE | _OF_A_FILE) == _PRESENT | _EXCLUSIVE
