"""Our daemon, with a journal that signals the process at one of its writes: `-m tests.support.crashing_daemon start …`.

CRASH_AT is the number of the write, from 1; CRASH_WHEN is `before` or `after` it is committed, or `held`: at no write, but
with a process forked that waits for the word, or `online`: while the rest of it is not loaded yet. CRASH_SIGNALS are the names of the signals, one after the other. SIGKILL
leaves everything as it is at that very moment.
"""

import itertools
import os
import signal
from collections.abc import Mapping, Sequence
from uuid import UUID

from worker import cli
from worker.going_online import GoingOnline
from worker.processes.held import Held
from worker.processes.process import ProcessHandle
from worker.runs.journal import Journal
from worker.runs.journal_entry import Entry


def send(names: Sequence[str]) -> None:
    for name in names:
        os.kill(os.getpid(), signal.Signals[name])


def signal_while_held(names: Sequence[str]) -> None:
    go = Held.go

    def crashing(self: Held) -> ProcessHandle:
        send(names)
        return go(self)

    Held.go = crashing


def signal_before_it_is_loaded(names: Sequence[str]) -> None:
    arrived = GoingOnline.arrived

    async def crashing(self: GoingOnline, *, within: float | None = None) -> None:
        if within is not None:
            send(names)
        await arrived(self, within=within)

    GoingOnline.arrived = crashing


def signal_at(number: int, when: str, names: Sequence[str]) -> None:
    writes = itertools.count(1)
    commit = Journal._commit  # pyright: ignore[reportPrivateUsage]

    def crashing(self: Journal, changes: Mapping[UUID, Entry | None]) -> None:
        mine = bool(changes) and next(writes) == number
        if mine and when == "before":
            send(names)
        commit(self, changes)
        if mine and when == "after":
            send(names)

    Journal._commit = crashing  # pyright: ignore[reportPrivateUsage]


if __name__ == "__main__":
    signals = os.environ["CRASH_SIGNALS"].split()
    match os.environ["CRASH_WHEN"]:
        case "held":
            signal_while_held(signals)
        case "online":
            signal_before_it_is_loaded(signals)
        case when:
            signal_at(int(os.environ["CRASH_AT"]), when, signals)
    cli.main()
