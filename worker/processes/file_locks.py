"""Who holds a lock on a file, asked without taking one.

Trying the lock would tell as well, and would for that moment keep out a daemon that is just starting.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def lock_holder(path: Path, *, locks: Path = Path("/proc/locks")) -> int | None:
    """The pid that holds an exclusive lock on the file; None if nobody does, or nobody that can be seen from here.

    Linux lists all locks of the processes that can be seen (proc_locks(5)). File systems that lie over others show another
    device there than stat(2) does: then the pid that the file itself holds has to be the one in the list. Where there is
    no list, that pid is asked for, whether it lives. Raises OSError for a file that is there and cannot be looked at.
    """
    try:
        status = path.stat()
        written = _pid_in(path)
    except FileNotFoundError:
        return None
    if sys.platform != "linux":
        return written if written is not None and _lives(written) else None
    try:
        lines = locks.read_text(encoding="ascii").splitlines()
    except OSError:  # a sandbox without the list
        return written if written is not None and _lives(written) else None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return parse_locks(lines, device=device, inode=status.st_ino, written=written)


def parse_locks(lines: list[str], *, device: str, inode: int, written: int | None) -> int | None:
    """The pid in the list that holds the file for writing. `written` is the pid that the file holds."""
    for line in lines:
        match line.split():
            case [_, _, _, "WRITE", pid, place, *_] if pid.isdecimal():
                where, _, number = place.rpartition(":")
                if number == str(inode) and (where == device or pid == str(written)):
                    return int(pid)
            case _:
                pass  # a waiter (`->`), or one that only reads
    return None


def _pid_in(path: Path) -> int | None:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    return int(text) if text.isdecimal() else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
