"""What a process's end means for its run: a pure decision over plain values.

The table is PROTOCOL 4.3. Performing the outcome is `states`' work.
"""

from dataclasses import dataclass
from enum import StrEnum
from signal import SIGKILL
from typing import assert_never
from uuid import UUID

from worker.api.models import FlowRun, StateType
from worker.processes.evidence import describe_bytes
from worker.processes.process import Exit

IN_PROCESS_RETRY = "in_process"
STOPPED = "The worker was told to stop before the run had finished"
MINUTE, HOUR = 60, 3600


class Intent(StrEnum):
    """What this daemon asked of the process before it ended.

    STOP and RESCHEDULE: to end because the daemon ends, its run to be reported crashed or to be scheduled again.
    """

    NONE = "none"
    CANCEL = "cancel"
    STOP = "stop"
    RESCHEDULE = "reschedule"


class Verdict(StrEnum):
    """What the daemon has to do with the run's state on the server."""

    SETTLED = "settled"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    RESCHEDULED = "rescheduled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to report: nothing (settled), Cancelled, or Crashed with the message that says why."""

    verdict: Verdict
    message: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """How the server can tell this attempt from another one of the same run.

    `transition_id` was sent with the claim; `infrastructure_pid` is set once the server has accepted it
    (a retried run still carries the one of its previous attempt until then, PROTOCOL 2.6).
    """

    transition_id: UUID
    infrastructure_pid: str | None


@dataclass(frozen=True, slots=True)
class ServerRun:
    """What the server says of the run after its process ended."""

    state_type: StateType
    state_name: str
    transition_id: UUID | None
    retry_type: str | None
    infrastructure_pid: str | None

    @classmethod
    def of(cls, flow_run: FlowRun) -> "ServerRun | None":
        """The facts a conclusion needs; None for a run that has no state at all."""
        state = flow_run.state
        state_type = state.type if state else flow_run.state_type
        if state_type is None:
            return None
        return cls(
            state_type=state_type,
            state_name=(state.name if state else flow_run.state_name) or state_type.value.capitalize(),
            transition_id=state.state_details.transition_id if state else None,
            retry_type=flow_run.retry_type,
            infrastructure_pid=flow_run.infrastructure_pid,
        )


def conclude(
    *, ended: Exit, intent: Intent, attempt: Attempt, server: ServerRun | None, evidence: str | None = None
) -> Outcome:
    """Decide what to report for a run whose process has ended.

    `server` is None when the run no longer exists. Final states stand, but for a crash that we caused ourselves; a run
    that has meanwhile been given to another attempt is not ours to judge; a run being cancelled can only become
    Cancelled (PROTOCOL 2.6); everything else the process left unfinished is scheduled again if that was the intent, else
    Crashed, with the reason. `evidence` is what the operating system says of a death for lack of memory, as a clause.
    """
    if server is None:
        return Outcome(Verdict.SETTLED, "the run was deleted")
    if _belongs_to_another_attempt(attempt, server):
        return Outcome(Verdict.SETTLED, "another attempt of the run has begun")
    crashed = Outcome(
        Verdict.CRASHED,
        crash_message(ended, intent=intent, state_name=server.state_name, evidence=evidence),
    )
    match server.state_type:
        case StateType.COMPLETED | StateType.FAILED | StateType.CANCELLED:
            return Outcome(Verdict.SETTLED, f"the run is {server.state_name}")
        case StateType.CRASHED:
            # An engine takes a SIGTERM that no intent announced for a crash, and reports it (PROTOCOL 4.3): so does
            # one whose control channel ended with an earlier daemon, or was not open yet.
            settled = Outcome(Verdict.SETTLED, f"the run is {server.state_name}")
            return _as_asked(ended, intent, otherwise=settled)
        case StateType.CANCELLING:
            return Outcome(Verdict.CANCELLED, _cancelled_message(ended))
        case StateType.PAUSED:
            # A suspended run has no process, and should have none. A run that waits for its resumption
            # inside a process is lost with it.
            if server.state_name == "Suspended" or ended.status_code == 0:
                return Outcome(Verdict.SETTLED, f"the run is {server.state_name}")
            return crashed
        case StateType.SCHEDULED:
            if server.retry_type != IN_PROCESS_RETRY:
                return Outcome(Verdict.SETTLED, f"the run is {server.state_name} again")
            return _rescheduled() if intent is Intent.RESCHEDULE else crashed
        case StateType.PENDING | StateType.RUNNING:
            return _as_asked(ended, intent, otherwise=crashed)
        case _:
            assert_never(server.state_type)


def _as_asked(ended: Exit, intent: Intent, *, otherwise: Outcome) -> Outcome:
    match intent:
        case Intent.CANCEL:
            return Outcome(Verdict.CANCELLED, _cancelled_message(ended))
        case Intent.RESCHEDULE:
            return _rescheduled()
        case Intent.NONE | Intent.STOP:
            return otherwise
        case _:
            assert_never(intent)


def _rescheduled() -> Outcome:
    return Outcome(Verdict.RESCHEDULED, f"{STOPPED}; it is scheduled again.")


def _belongs_to_another_attempt(attempt: Attempt, server: ServerRun) -> bool:
    if server.state_type is StateType.PENDING and server.transition_id is not None:
        return server.transition_id != attempt.transition_id
    return (
        attempt.infrastructure_pid is not None
        and server.infrastructure_pid is not None
        and server.infrastructure_pid != attempt.infrastructure_pid
    )


def crash_message(ended: Exit, *, intent: Intent, state_name: str, evidence: str | None = None) -> str:
    """One line for the Crashed state: how the process ended, the likely cause, what it used."""
    if ended.status_code is None:
        parts = [
            "Process ended, and its exit status could not be read, as happens when the worker that started it is gone."
        ]
        if evidence is not None:
            parts.append(f"The likely cause: {evidence}.")
    else:
        parts = [f"Process exited with status code: {ended.status_code}."]
        if ended.signal == SIGKILL and evidence is None and intent is not Intent.NONE:
            parts.append("It was killed (SIGKILL): it had not ended in the time it was given.")
        else:
            parts.append(explain_exit(ended, evidence=evidence))
    if intent in {Intent.STOP, Intent.RESCHEDULE}:
        parts.append(f"{STOPPED}.")
    elif ended.status_code == 0:
        parts.append(f"The run was still {state_name}: the command ended without finishing it.")
    return " ".join([*parts, *_usage(ended)])


def explain_exit(ended: Exit, *, evidence: str | None = None) -> str:
    """The likely cause of an exit, in a sentence; `evidence` counts for one that was killed.

    Codes 126 and 127 are the shell's (POSIX sh, exit status for commands), 128+N a signal seen by a shell.
    """
    match ended.status_code:
        case 0:
            return "It ended normally."
        case -9 | 137:
            return (
                f"It was killed (SIGKILL): {evidence or 'as the operating system does when memory runs out'}."
            )
        case -15 | 143:
            return "It was terminated (SIGTERM), as on a shutdown or a cancellation."
        case -11 | 139:
            return "It crashed (SIGSEGV): a fault in native code."
        case -6 | 134:
            return "It aborted (SIGABRT): native code gave up."
        case 126:
            return "The command was found but could not be executed; check its permissions."
        case 127:
            return "The command was not found; check it and the PATH of the run's environment."
        case 1:
            return "It failed before the flow could report a state; the last lines of its output say why."
        case _ if ended.signal is not None:
            return f"It was ended by {ended.describe()}."
        case _:
            return "It ended without reporting a final state."


def describe_seconds(seconds: float) -> str:
    """For people: `0.8 s`, `12.3 s`, `4 min 10 s`, `2 h 5 min`."""
    if round(seconds, 1) < MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def _usage(ended: Exit) -> list[str]:
    """Peak memory and run time; no time where it was not seen, or a clock was set back."""
    known: list[str] = []
    if ended.max_rss_bytes is not None:
        known.append(f"peak memory {describe_bytes(ended.max_rss_bytes)}")
    if ended.ended > ended.started:
        known.append(f"ran for {describe_seconds(ended.ended - ended.started)}")
    text = ", ".join(known)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def _cancelled_message(ended: Exit) -> str:
    return f"Flow run was cancelled; its process ended with {ended.describe()}."
