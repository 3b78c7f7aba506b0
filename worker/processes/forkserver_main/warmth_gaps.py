"""Gaps in memory that forked processes share, filled before the fork.

An allocator puts what is new where something old was freed, anywhere among what is still in use. In a forked process that
writes to a shared page, which the kernel then copies for the sake of a few bytes; with two megabytes of gaps these are
hundreds of pages. Without gaps it is put on new pages, one thing beside the other.

Owns: finding out where Python's allocator of small objects and the C library's have gaps, and filling them. What cannot be
filled is left as it is: it costs memory, and nothing else.

Runs in the interpreter of the flows; the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# A line of the table that CPython prints: the number of the class, the size of its blocks in bytes, its pools, its blocks
# in use and its blocks available in these pools.
_CLASS = re.compile(r"^ +\d+ +(\d+) +\d+ +\d+ +(\d+)$", re.MULTILINE)
_FORMAT = "class   size   num pools   blocks in use  avail blocks"
# What is put into the smallest blocks; text of bytes is larger.
_OBJECT = 16
_INTEGER = 32
# The C library is asked for its largest gaps first. Below a certain size they are many, and small together.
_LARGEST = 1 << 16
_SMALLEST = 32
_STEP = 16
_MOST = 50_000


def fill_gaps() -> list[object]:
    """Fill what gaps there are. What is returned has to be kept: without it the gaps are there again.

    What keeps them from being filled is said on standard error.
    """
    try:
        _fill_heap()
        before = _available()
        kept = list(_fill_pools(before))
        # An allocator that looks for mistakes puts bytes of its own around each block, and so has put these elsewhere.
        return kept if sum(_available().values()) < sum(before.values()) / 2 else []
    except (OSError, ValueError, MemoryError) as error:
        os.write(2, f"gaps in memory are not filled: {type(error).__name__}: {error}\n".encode())
        return []


def _available() -> dict[int, int]:
    """How many more blocks there are in the pools of each size, in bytes; empty when this Python does not tell.

    It prints that on standard error, and nowhere else. Raises OSError.
    """
    tell = getattr(sys, "_debugmallocstats", None)
    if tell is None or not hasattr(os, "memfd_create"):
        return {}
    # Not a temporary file: looking for the directory of these is remembered, and a module that is imported afterwards
    # would not read TMPDIR where it can be seen to.
    with open(os.memfd_create("gaps"), "rb") as told:
        stderr = os.dup(2)
        try:
            os.dup2(told.fileno(), 2)
            tell()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        told.seek(0)
        text = told.read().decode(errors="replace")
    if _FORMAT not in text:
        return {}
    return {int(size): int(count) for size, count in _CLASS.findall(text)}


def _fill_pools(available: dict[int, int]) -> Iterator[object]:
    """An object for each of these blocks."""
    number = 1 << 29
    smallest = sys.getsizeof(b"")
    for size, count in available.items():
        for _ in range(count):
            if size == _OBJECT:
                yield object()
            elif size == _INTEGER:
                number -= 1
                yield number
            elif size > smallest:
                yield bytes(size - smallest)


class _Heap(ctypes.Structure):
    """mallinfo(3): sizes in bytes; `keepcost` is what is free at the top."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks"),
            *("fordblks", "keepcost"),
        )
    )


def _fill_heap() -> None:
    """Allocate for good from the C library's gaps; none if it is no glibc, or one before 2.33."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return
    allocate, free, end = library.malloc, library.free, library.sbrk
    library.mallinfo2.restype = _Heap
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    end.restype, end.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    top = end(0) - library.mallinfo2().keepcost
    size = _LARGEST
    for _ in range(_MOST):
        block = allocate(size)
        if block is not None and block < top:
            continue
        # There is no gap of that size: it was taken from the top.
        free(block)
        size = size * 3 // 4 // _STEP * _STEP if size > _LARGEST >> 5 else size - _STEP
        if size < _SMALLEST:
            return
