"""Which processes belong to a run, and how every one of them is ended.

Owns: deciding membership, signalling a process without ever hitting a stranger that was given the same number later,
and reaping what was re-parented to the daemon.
Does not own: reading the process table (`process_table`), the run's leader (`process` collects its exit), and any
notion of grace.

A process belongs to a run when it is the leader, is in the leader's session, descends from a member, was seen as a
member before, or carries the run's marker in its initial environment (/proc/<pid>/environ, proc(5)). The last rule
finds the daemon that forked twice and called setsid(2). It does not find one that did so, was never seen while its
parents lived, and was started with an emptied environment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from worker.processes.process_table import (
    Identity,
    Marker,
    ProcessInfo,
    carries,
    read_process,
    snapshot,
)

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_FREEZE_ROUNDS = 20
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class KillReport:
    """How many processes were killed, and the pids of those that are still there (another user's, or stuck)."""

    killed: int = 0
    survivors: tuple[int, ...] = ()


class Sent(StrEnum):
    """What became of a signal."""

    DELIVERED = "delivered"
    GONE = "gone"
    DENIED = "denied"


def become_subreaper() -> bool:
    """Have orphaned descendants re-parented to this process instead of init (prctl(2), Linux 3.4+).

    Returns whether it is in effect; without it orphans are found by their marker all the same.
    """
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def find_members(
    processes: Mapping[int, ProcessInfo],
    *,
    leader: Identity,
    leader_held: bool,
    seen: Collection[Identity],
    marked: Callable[[int], bool],
    exclude: int,
) -> list[ProcessInfo]:
    """The living processes of a run, parents before children. Decides only; reads nothing but through `marked`.

    `leader_held` says that the leader's pid cannot have been given away: it lives, or is a zombie that we have not
    collected. Only then do pid and session number mean anything. `exclude` is our own pid.
    """
    children: defaultdict[int, list[ProcessInfo]] = defaultdict(list)
    roots: list[ProcessInfo] = []
    for process in processes.values():
        children[process.ppid].append(process)
        if process.start_time < leader.start_time:
            continue  # a descendant is never older than its ancestor
        if (leader_held and process.session == leader.pid) or process.identity in seen or marked(process.pid):
            roots.append(process)
    members: dict[int, ProcessInfo] = {}
    pending = sorted(roots, key=lambda process: process.start_time, reverse=True)
    while pending:
        process = pending.pop()
        if process.pid in members or process.pid == exclude:
            continue
        members[process.pid] = process
        pending.extend(children[process.pid])
    return [process for process in members.values() if not process.dead]


def send_signal(process: Identity, number: signal.Signals) -> Sent:
    """Signal exactly this process: through a pidfd where there is one (pidfd_send_signal(2)), never a later namesake."""
    try:
        descriptor = os.pidfd_open(process.pid) if sys.platform == "linux" else None
    except ProcessLookupError:
        return Sent.GONE
    except OSError:
        descriptor = None  # no pidfd in this kernel or sandbox, or no descriptor left
    try:
        if not _is_still(process):
            return Sent.GONE
        if sys.platform == "linux" and descriptor is not None:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(process.pid, number)
    except ProcessLookupError:
        return Sent.GONE
    except PermissionError:
        return Sent.DENIED
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return Sent.DELIVERED


def _is_still(process: Identity) -> bool:
    try:
        info = read_process(process.pid)
    except OSError as error:
        if error.errno not in _SHORTAGES:
            raise
        return True  # it was, a moment ago, when the caller listed it
    return info is not None and info.identity == process


@dataclass(slots=True)
class ProcessTree:
    """The processes of one run. Lives as long as its handle, which alone calls it."""

    leader: Identity
    marker: Marker | None
    leader_held: Callable[[], bool]
    _seen: set[Identity] = field(default_factory=set[Identity])

    def members(self) -> list[ProcessInfo]:
        """The living processes of the run now; each is remembered, so that it cannot leave by being orphaned."""
        marker = self.marker
        members = find_members(
            snapshot(),
            leader=self.leader,
            leader_held=self.leader_held(),
            seen=self._seen,
            marked=(lambda pid: carries(pid, marker)) if marker else (lambda _: False),
            exclude=os.getpid(),
        )
        self._seen.update(member.identity for member in members)
        return members

    async def kill(self, *, timeout: float) -> KillReport:
        """SIGKILL every process of the run, again and again until none is left or `timeout` seconds have passed.

        All are stopped first: what is stopped cannot fork, so none slips away between being listed and being killed.
        """
        killed: set[Identity] = set()
        deadline = anyio.current_time() + timeout
        pause = _FIRST_PAUSE
        while True:
            # No await between stopping and killing: a cancelled caller must not leave stopped processes behind.
            try:
                alive = self._freeze()
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                await anyio.sleep(
                    _LONGEST_PAUSE
                )  # the process table cannot be read: nothing was signalled yet
                continue
            # Children first: a death that orphans a stopped group makes the kernel continue it (setpgid(2)).
            answers = {process: send_signal(process, signal.SIGKILL) for process in reversed(alive)}
            killed |= {process for process, answer in answers.items() if answer is Sent.DELIVERED}
            if all(answer is Sent.DENIED for answer in answers.values()) or anyio.current_time() >= deadline:
                break
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._collect(killed)
        self._collect(killed)
        return KillReport(killed=len(killed), survivors=tuple(sorted(process.pid for process in alive)))

    def _freeze(self) -> list[Identity]:
        """Stop the whole tree; what was stopped, roughly parents before children."""
        stopped: dict[Identity, Sent] = {}
        for _ in range(_FREEZE_ROUNDS):
            try:
                members = self.members()
            except OSError:
                if not stopped:
                    raise
                break  # kill those first; the next round sees the others
            found = [member.identity for member in members if member.identity not in stopped]
            if not found:
                break
            stopped |= {process: send_signal(process, signal.SIGSTOP) for process in found}
        return list(stopped)

    def _collect(self, processes: Iterable[Identity]) -> None:
        """Reap those that were re-parented to us. The leader is left to its handle, which wants the exit status."""
        for process in processes:
            try:
                info = read_process(process.pid) if process != self.leader else None
            except OSError:
                continue  # out of descriptors: the orphan reaper comes by later
            if info is not None and info.identity == process and info.dead and info.ppid == os.getpid():
                _reap(process.pid)


async def end_strays(marker: Marker, *, timeout: float = 10.0) -> KillReport:
    """SIGKILL every process that carries the marker: what an attempt left behind whose leader is gone."""
    tree = ProcessTree(leader=Identity(0, 0.0), marker=marker, leader_held=lambda: False)
    return await tree.kill(timeout=timeout)


def _reap(pid: int) -> bool:
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


class OrphanReaper:
    """Reaps zombies that were re-parented to us, as PID 1 or as subreaper. One per daemon, called now and then.

    Each is reaped by its own pid, so nobody's exit status is taken but the orphan's. A zombie is reaped only when two
    calls in a row have seen it: a child that someone in this process waits for, without being in `known_pids`, is
    collected by that waiter long before.
    """

    def __init__(self) -> None:
        self._suspects: frozenset[Identity] = frozenset()

    def reap_orphans(self, known_pids: Collection[int]) -> int:
        """Reap; returns how many. `known_pids`: the children that a handle waits for (`Launcher.waited_for`)."""
        own = os.getpid()
        zombies = {
            process.identity
            for process in snapshot().values()
            if process.dead and process.ppid == own and process.pid not in known_pids
        }
        reaped = {process for process in zombies & self._suspects if _reap(process.pid)}
        self._suspects = frozenset(zombies - reaped)
        return len(reaped)
