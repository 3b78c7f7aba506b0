"""Pages that every run writes to, copied before a run is let begin.

After a fork the two processes share their memory until one of them writes to a page: then the kernel interrupts it and
makes a copy. Python writes wherever it counts a reference, so an engine meets thousands of such interruptions before it
proposes Running, mostly the same ones in every run. A process that waits for the word has time to have all of these pages
copied at once, which is quicker, too, and costs no memory that its run would not take.

Owns: which pages those are, and having them copied. Does not own what is done to find them out (`warmth_rehearsal`).

Runs in the interpreter of the flows; the standard library only.
"""

from __future__ import annotations

import array
import ctypes
import itertools
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# madvise(2), since Linux 5.14; an older one knows no such advice, and takes none.
MADV_POPULATE_WRITE = 23
# Of an entry in /proc/PID/pagemap (proc_pid_pagemap(5)): in memory, mapped by nobody else, and still as in a file.
_PRESENT = 1 << 63
_EXCLUSIVE = 1 << 56
_OF_A_FILE = 1 << 61
_ENTRY = 8


class Pages:
    """Runs of pages in this process: the address and length of each, in bytes. Empty where they cannot be told."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._ranges = [(ctypes.c_void_p(start), ctypes.c_size_t(length)) for start, length in ranges]
        self._advise = ctypes.CDLL(None).madvise
        self._advice = ctypes.c_int(MADV_POPULATE_WRITE)

    def __len__(self) -> int:
        return len(self._ranges)

    def copy(self) -> None:
        """In a forked process: have these pages copied now. What cannot be is copied when it is written to, as ever."""
        for start, length in self._ranges:
            self._advise(start, length, self._advice)


def written_by(act: Callable[[], object]) -> Pages:
    """The pages of this process that one forked from it writes to while it does this; nothing else comes of it.

    What keeps them from being told is said on standard error, and means none.
    """
    inherited = _writable()
    reader, writer = os.pipe()
    scout = os.fork()
    if not scout:
        try:
            act()
            with open(writer, "w") as stream:
                json.dump(_own(inherited), stream)
        except BaseException as error:  # noqa: BLE001 - it ends here, whatever it is
            print(f"no pages are copied ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its log
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        told = stream.read()
    os.waitpid(scout, 0)
    return Pages(json.loads(told) if told else ())


def _writable() -> list[tuple[int, int]]:
    """The numbers of the first page, and of the one after the last, of each private mapping that can be written to."""
    size = os.sysconf("SC_PAGESIZE")
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, permissions = line.split(maxsplit=2)[:2]
            if permissions.startswith("rw") and permissions.endswith("p"):
                first, last = (int(address, 16) // size for address in addresses.split("-"))
                found.append((first, last))
    return found


def _own(mappings: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where in these mappings this process has pages to itself."""
    size = os.sysconf("SC_PAGESIZE")
    found: list[tuple[int, int]] = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for first, last in mappings:
            pagemap.seek(first * _ENTRY)
            at = first
            for entry, same in itertools.groupby(
                array.array("Q", pagemap.read((last - first) * _ENTRY)), _is_own
            ):
                count = len(list(same))
                if entry:
                    found.append((at * size, count * size))
                at += count
    return found


def _is_own(entry: int) -> bool:
    return entry & (_PRESENT | _EXCLUSIVE | _OF_A_FILE) == _PRESENT | _EXCLUSIVE
