"""What the journal holds of one attempt: plain values, that a later daemon can read."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from worker.processes.process import Exit
from worker.processes.process_table import Identity
from worker.runs.conclusion import Intent

FORMAT = 1
"""Of the journal's file; a daemon and its commands leave a later one alone."""


class Phase(StrEnum):
    """How far an attempt has come; written before the step it names, but for `LAUNCHED` and `EXITED`, which tell facts."""

    CLAIMING = "claiming"
    LAUNCHING = "launching"
    LAUNCHED = "launched"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt at one flow run, from before its claim until its outcome is on the server. Holds no secret.

    `attempt` is the claim's transition id, and the value of the marker that the attempt's processes carry.
    `state_id` and `due` are those the run was polled with; `since` is when it was claimed. `boot` tells of which
    boot of the machine `process` is. `concluded` is the state that the engine itself said it had reported, `evidence` what speaks for a
    lack of memory as the cause of the end. `engine`: the process is Prefect's engine, which takes a SIGTERM for a crash,
    unless `relinquished`: it was told that another daemon will attend to it. Hooks that have `hooks_begun` are not
    begun again. `flow` and `deployment` are names, for people.
    """

    attempt: UUID
    flow_run_id: UUID
    name: str
    since: datetime
    phase: Phase = Phase.CLAIMING
    state_id: UUID | None = None
    due: datetime | None = None
    directory: str | None = None
    stream_output: bool = True
    boot: str | None = None
    process: Identity | None = None
    started: float | None = None
    infrastructure_pid: str | None = None
    exit: Exit | None = None
    intent: Intent = Intent.NONE
    concluded: str | None = None
    evidence: str | None = None
    engine: bool = True
    relinquished: bool = False
    hooks_begun: bool = False
    flow: str | None = None
    deployment: str | None = None
