"""How much memory the processes of runs use now: their proportional set size.

Owns the sampling and its bounds: it is done when somebody asks, at most every few seconds, and for a limited time.
Does not own who asks, and the peak of a process that has ended (`process.Exit`).
"""

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.processes.process_table import Identity, ProcessInfo, snapshot

# Who asks more often gets the same answer, in seconds.
FRESH = 5.0
# How long one look may take, in seconds; what is not reached is shown as it was, and looked at first the next time.
BUDGET = 0.25


class MemorySampler:
    """Proportional set sizes of runs by name, each with all its processes; one for the daemon's life, for any thread.

    A process counts that is in its leader's session or descends from one that is. One that has left both counts for none.
    Nothing is known where the system has no /proc/<pid>/smaps_rollup (proc(5), Linux 4.14).
    """

    def __init__(
        self,
        *,
        monotonic: Callable[[], float],
        table: Callable[[], Mapping[int, ProcessInfo]] = snapshot,
        pss: Callable[[int], int | None] | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._table = table
        self._pss = proportional_set_size if pss is None else pss
        self._lock = threading.Lock()
        self._looked: float | None = None
        # By name: when it was last looked at, and how much it was, in bytes.
        self._known: dict[str, tuple[float, int]] = {}

    def sample(self, leaders: Mapping[str, Identity]) -> dict[str, int]:
        """Bytes by run, for these leaders; a run of which nothing can be read is absent."""
        with self._lock:
            self._known = {name: known for name, known in self._known.items() if name in leaders}
            began = self._monotonic()
            if leaders and (self._looked is None or began - self._looked >= FRESH):
                self._look(leaders, began)
                self._looked = began
            return {name: size for name, (_, size) in self._known.items()}

    def _look(self, leaders: Mapping[str, Identity], began: float) -> None:
        members = runs_members(self._table(), leaders)
        for name in sorted(leaders, key=lambda name: self._known.get(name, (0.0, 0))[0]):
            if (now := self._monotonic()) - began > BUDGET:
                return
            sizes = [size for pid in members.get(name, []) if (size := self._pss(pid)) is not None]
            if sizes:
                self._known[name] = now, sum(sizes)
            else:
                self._known.pop(name, None)


def runs_members(
    processes: Mapping[int, ProcessInfo], leaders: Mapping[str, Identity]
) -> dict[str, list[int]]:
    """The living processes of each run, by name; pids."""
    names = {leader.pid: name for name, leader in leaders.items() if _lives(processes, leader)}
    owners: dict[int, str] = {}
    # Parents first: a child never starts before its parent.
    for process in sorted(processes.values(), key=lambda process: (process.start_time, process.pid)):
        name = names.get(process.session) or owners.get(process.ppid)
        if name is not None:
            owners[process.pid] = name
    members: dict[str, list[int]] = {}
    for pid, name in owners.items():
        if not processes[pid].dead:
            members.setdefault(name, []).append(pid)
    return members


def _lives(processes: Mapping[int, ProcessInfo], leader: Identity) -> bool:
    found = processes.get(leader.pid)
    return found is not None and found.identity == leader


def proportional_set_size(pid: int) -> int | None:
    """Bytes of the process, each page that it shares with others divided among them; None when it cannot be read."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return None  # it has ended, or is another user's
    for line in lines:
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None
