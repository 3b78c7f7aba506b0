"""What a test must not leave behind: processes, run directories, open descriptors.

Owns the comparison of before and after. Services that outlive a test on purpose (a session's server, a
module's daemon) are allowed by their identity, never by their name; what they started for a run is not.
"""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psutil

from tests.support import services
from tests.support.daemons import ROLE_DAEMON
from tests.support.server import ROLE_SERVER
from tests.support.wait import wait_for

# An engine may linger about a second after its final state, on a busy machine a few.
SETTLE_TIMEOUT = 45.0


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process and what they point at."""
    found: dict[int, str] = {}
    directory = Path("/proc/self/fd")
    for entry in directory.iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            # The descriptor of this very listing, or one closed meanwhile.
            continue
    return found


def leaked_processes(mark: str) -> list[str]:
    """Processes of this session that no running service accounts for, described."""
    servers = {service.mark for service in services.running if service.role == ROLE_SERVER}
    allowed = {service.pid for service in services.running}
    leaked: list[str] = []
    for process in services.marked_processes(services.MARK, mark):
        try:
            if process.pid in allowed or process.environ().get(services.SERVICE_MARK) in servers:
                continue
            if "forkserver_main" in process.cmdline() and process.ppid() in allowed:
                continue  # of a daemon that goes on; what it has forked is called something else
            leaked.append(f"pid {process.pid}: {' '.join(process.cmdline())[:200]}")
        except psutil.Error:
            continue
    return leaked + _zombies(allowed)


def left_run_directories() -> list[str]:
    """What live daemons keep in the `runs` of their state directory and in their temporary directory."""
    left: list[str] = []
    for service in services.running:
        if service.role != ROLE_DAEMON:
            continue
        for parent in _run_directories(service):
            left.extend(str(path) for path in parent.iterdir())
    return left


def open_journal_entries() -> list[str]:
    """What live daemons have on record as unsettled."""
    found: list[str] = []
    for service in services.running:
        if service.role == ROLE_DAEMON and service.home is not None:
            for path in service.home.glob("state/*/journal.db"):
                found.extend(entries(path))
    return found


def entries(journal: Path) -> list[str]:
    """The open entries in a journal's file, as they are written there."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=5)) as connection:
        try:
            return [entry for (entry,) in connection.execute("SELECT entry FROM attempts")]
        except sqlite3.OperationalError:
            return []  # a daemon that ended before it had made its tables


def wait_for_no_leaks(*, mark: str, descriptors_before: Mapping[int, str]) -> None:
    """Wait until nothing of the test is left; an `AssertionError` names what stayed."""
    wait_for(
        lambda: not _leaks(mark, descriptors_before),
        timeout=SETTLE_TIMEOUT,
        interval=0.1,
        description=lambda: (
            "a clean end of the test; left behind:\n" + "\n".join(_leaks(mark, descriptors_before))
        ),
    )


def _leaks(mark: str, descriptors_before: Mapping[int, str]) -> list[str]:
    processes = [f"process {text}" for text in leaked_processes(mark)]
    directories = [f"directory {path}" for path in left_run_directories()]
    descriptors = [
        f"descriptor {number}: {target}"
        for number, target in open_descriptors().items()
        if descriptors_before.get(number) is None
    ]
    journal = [f"journal entry {entry}" for entry in open_journal_entries()]
    return processes + directories + descriptors + journal


def _zombies(parents: set[int]) -> list[str]:
    """Ended children that a service of ours (or this process) never waited for."""
    found: list[str] = []
    for parent in {os.getpid(), *parents}:
        try:
            children = psutil.Process(parent).children()
            found.extend(
                f"zombie {child.pid} of {parent}"
                for child in children
                if child.pid not in parents and child.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            continue
    return found


def _run_directories(service: services.Service) -> list[Path]:
    if service.home is None:
        return []
    return [*service.home.glob("state/*/runs"), service.home / "tmp"]
