"""What the process table shows of a forked process. Runs in the interpreter of the flows; the standard library only."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As long as `-m prefect.engine`, so that one can be written over the other.
_ARGUMENTS = b"forkserver_main\x000\x00"
_ENGINE_ARGUMENTS = b"-m\x00prefect.engine\x00"
# proc_pid_stat(5), counted from the field after the command name.
_ARG_START, _ARG_END, _ENV_START, _ENV_END = 45, 46, 47, 48


class Portrait:
    """What the process table shows of this process: its first arguments and environment, which fork(2) copies.

    exec(2) would replace them. A forked process writes over its copy, so that it is found by its own run's mark
    (/proc/pid/environ), and is called what it is.
    """

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            stat = file.read()
        fields = stat[stat.rindex(b")") + 2 :].split()
        self._arguments = int(fields[_ARG_START]), int(fields[_ARG_END])
        self._environment = int(fields[_ENV_START]), int(fields[_ENV_END])

    def check(self, mark: bytes) -> None:
        """Find out now, not in the flow process, whether the mark can be written over. Raises OSError or ValueError."""
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            self._find(memory, mark)

    def repaint(self, name: str, value: str) -> None:
        """Write this mark over the one that the process was started with; it has the same length."""
        mark = os.fsencode(name + "=" + value) + b"\0"
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            place = self._find(memory, mark)
            memory.seek(place)
            memory.write(mark)
            start, end = self._arguments
            if _read(memory, start, end).endswith(b"\0" + _ARGUMENTS):
                memory.seek(end - len(_ENGINE_ARGUMENTS))
                memory.write(_ENGINE_ARGUMENTS)

    def _find(self, memory: Any, mark: bytes) -> int:
        start, end = self._environment
        environment = b"\0" + _read(memory, start, end)
        name = b"\0" + mark[: mark.index(b"=") + 1]
        place = environment.find(name)
        if place < 0 or environment.find(b"\0", place + 1) - place != len(mark):
            msg = "the initial environment has no place for the mark of a run"
            raise ValueError(msg)
        return start + place


def _read(memory: Any, start: int, end: int) -> bytes:
    memory.seek(start)
    return bytes(memory.read(end - start))
