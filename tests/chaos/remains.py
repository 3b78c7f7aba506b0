"""What is left on the machine when a chaos run is over, or not yet settled while it goes on.

Owns looking: processes, run directories, journals, slots. Says nothing of whether that is wrong.
"""

import os
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import psutil

from tests.chaos.fleet import Fleet
from tests.support.services import SERVICE_MARK


def left_processes(fleet: Fleet) -> tuple[str, ...]:
    """Living processes that descend from a daemon of the fleet and are none of its daemons."""
    services = [life.service for life in fleet.lives()]
    daemons = {service.pid for service in services if service.returncode is None}
    return tuple(_marked({service.mark for service in services}, besides=daemons))


def left_directories(state_root: Path) -> tuple[str, ...]:
    """What is in the `runs` of any daemon."""
    return tuple(sorted(str(path) for path in state_root.glob("*/runs/*")))


def journal_entries(state_root: Path) -> tuple[str, ...]:
    """The open entries of every journal, described. A journal that cannot be read is told as one of them."""
    found: list[str] = []
    for path in sorted(state_root.glob("*/journal.db")):
        try:
            # Not `mode=ro`: a journal whose daemon is gone may have a WAL to be recovered first (sqlite.org/wal.html).
            with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=5)) as journal:
                rows = journal.execute("SELECT attempt, flow_run, phase FROM attempts").fetchall()
        except sqlite3.Error as error:
            found.append(f"{path}: {error}")
            continue
        found += [
            f"{path.parent.name}: run {run}, attempt {attempt}, {phase}" for attempt, run, phase in rows
        ]
    return tuple(found)


def held_slots(fleet: Fleet, *, active_slots: int) -> tuple[str, ...]:
    """Slots that daemons still held when they were told to stop at last, and those the server still counts."""
    found: list[str] = []
    for life in {life.worker.name: life for life in fleet.lives()}.values():
        found += [
            f"{life.worker.name} had {event.get('in_flight')} in flight when it was told to stop"
            for event in life.worker.events("worker.draining")
        ]
    if active_slots:
        found.append(f"the server counts {active_slots} in the pool")
    return tuple(found)


def _marked(marks: Collection[str], *, besides: Collection[int]) -> list[str]:
    found: list[str] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid() or process.pid in besides:
            continue
        try:
            if process.environ().get(SERVICE_MARK) in marks:
                found.append(f"pid {process.pid}: {' '.join(process.cmdline())[:200]}")
        except psutil.Error:
            # Gone meanwhile, a zombie that only its parent can remove, or somebody else's.
            continue
    return found
