"""Our daemon, with a journal that ends the process at one of its writes: `-m tests.support.crashing_daemon start …`.

CRASH_AT is the number of the write, from 1; CRASH_WHEN is `before` or `after` it is committed. The end is SIGKILL, as
nothing else leaves everything as it is at that very moment.
"""

import itertools
import os
import signal
from collections.abc import Mapping
from uuid import UUID

from worker import cli
from worker.runs.journal import Entry, Journal


def crash_at(number: int, when: str) -> None:
    writes = itertools.count(1)
    commit = Journal._commit  # pyright: ignore[reportPrivateUsage]

    def crashing(self: Journal, changes: Mapping[UUID, Entry | None]) -> None:
        mine = bool(changes) and next(writes) == number
        if mine and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self, changes)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal._commit = crashing  # pyright: ignore[reportPrivateUsage]


if __name__ == "__main__":
    crash_at(int(os.environ["CRASH_AT"]), os.environ["CRASH_WHEN"])
    cli.main()
