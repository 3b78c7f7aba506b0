"""A run in flight as an operator sees it: what the journal says of it, and what its processes are doing.

Owns reading the processes of attempts and the decision what to call the phase. Showing it is `ps`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never
from uuid import UUID

from worker.commands.daemons import Attempt
from worker.processes.launcher import EXECUTION_ID
from worker.processes.process_table import Identity, ProcessInfo, boot_id, marks, snapshot
from worker.processes.tree import find_members
from worker.processes.usage import Usage, usage
from worker.runs.conclusion import Intent
from worker.runs.journal_entry import Phase

_NOBODY = Identity(0, 0.0)


class Shown(StrEnum):
    """The phase of a run in flight, in an operator's words."""

    CLAIMING = "claiming"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    STOPPING = "stopping"
    REPORTING = "reporting"
    LEFT_RUNNING = "left running"
    LEFT_BEHIND = "left behind"


def shown_phase(phase: Phase, intent: Intent, *, attended: bool, alive: bool) -> Shown:
    """What to call it. `attended`: its daemon runs; `alive`: a process of the attempt does."""
    if not attended:
        return Shown.LEFT_RUNNING if alive else Shown.LEFT_BEHIND
    match phase:
        case Phase.CLAIMING:
            return Shown.CLAIMING
        case Phase.LAUNCHING:
            return Shown.STARTING
        case Phase.LAUNCHED if not alive:
            return Shown.REPORTING  # it has ended this moment
        case Phase.LAUNCHED:
            return _intended(intent)
        case Phase.EXITED:
            return Shown.REPORTING
        case _:
            assert_never(phase)


def _intended(intent: Intent) -> Shown:
    match intent:
        case Intent.NONE:
            return Shown.RUNNING
        case Intent.CANCEL:
            return Shown.CANCELLING
        case Intent.STOP | Intent.RESCHEDULE:
            return Shown.STOPPING
        case _:
            assert_never(intent)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes of an attempt were seen to use, and when (seconds of any steady clock)."""

    at: float
    pid: int | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Row:
    """One run in flight. Times are in seconds, memory in bytes; `cpu_percent` is of one processor."""

    attempt: Attempt
    phase: Shown
    age: float
    sample: Sample
    cpu_percent: float | None


def take_samples(attempts: Sequence[Attempt], *, at: float) -> dict[UUID, Sample]:
    """Look at the processes of these attempts, by attempt."""
    processes = snapshot()
    marked = marks(EXECUTION_ID, processes)
    return {attempt.entry.attempt: _sample(attempt, processes, marked, at=at) for attempt in attempts}


def _sample(
    attempt: Attempt, processes: Mapping[int, ProcessInfo], marked: Mapping[int, str], *, at: float
) -> Sample:
    entry = attempt.entry
    leader = entry.process if entry.boot == boot_id() else None
    found = processes.get(leader.pid) if leader is not None else None
    alive = found is not None and found.identity == leader and not found.dead
    mark = entry.attempt.hex
    members = find_members(
        processes,
        leader=leader or _NOBODY,
        leader_held=alive,
        seen=(),
        marked=lambda pid: marked.get(pid) == mark,
        exclude=0,
    )
    pid = leader.pid if leader is not None and alive else next((member.pid for member in members), None)
    return Sample(at=at, pid=pid, usage=usage(member.pid for member in members))


def rows(
    attempts: Sequence[Attempt],
    *,
    before: Mapping[UUID, Sample],
    after: Mapping[UUID, Sample],
    now: float,
) -> list[Row]:
    """The runs in flight, the oldest first. `now` is in seconds since the epoch."""
    made = [
        Row(
            attempt=attempt,
            phase=shown_phase(
                attempt.entry.phase,
                attempt.entry.intent,
                attended=attempt.daemon.pid is not None,
                alive=sample.pid is not None,
            ),
            age=max(0.0, now - (attempt.entry.started or attempt.entry.since.timestamp())),
            sample=sample,
            cpu_percent=cpu_percent(before.get(attempt.entry.attempt), sample),
        )
        for attempt in attempts
        if (sample := after.get(attempt.entry.attempt)) is not None
    ]
    return sorted(made, key=lambda row: (-row.age, row.attempt.entry.flow_run_id))


def cpu_percent(before: Sample | None, after: Sample) -> float | None:
    """Of one processor, between two looks; None where there were none, or no process to look at.

    A process that ended in between takes its time along unless its parent is in the tree: that is no negative use.
    """
    if before is None or not after.usage.processes or not before.usage.processes or after.at <= before.at:
        return None
    used = after.usage.cpu_seconds - before.usage.cpu_seconds
    return max(0.0, 100.0 * used / (after.at - before.at))
