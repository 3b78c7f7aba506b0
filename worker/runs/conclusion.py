"""What a process's end means for its run: a pure decision over plain values.

The table is PROTOCOL 4.3. Performing the outcome is `states`' work.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never
from uuid import UUID

from worker.api.models import FlowRun, StateType
from worker.processes.process import Exit

IN_PROCESS_RETRY = "in_process"


class Intent(StrEnum):
    """What this daemon asked of the process before it ended."""

    NONE = "none"
    CANCEL = "cancel"
    STOP = "stop"


class Verdict(StrEnum):
    """What the daemon has to do with the run's state on the server."""

    SETTLED = "settled"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


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


def conclude(*, ended: Exit, intent: Intent, attempt: Attempt, server: ServerRun | None) -> Outcome:
    """Decide what to report for a run whose process has ended.

    `server` is None when the run no longer exists. Final states stand; a run that has meanwhile been
    given to another attempt is not ours to judge; a run being cancelled can only become Cancelled
    (PROTOCOL 2.6); everything else the process left unfinished is Crashed, with the reason.
    """
    if server is None:
        return Outcome(Verdict.SETTLED, "the run was deleted")
    if _belongs_to_another_attempt(attempt, server):
        return Outcome(Verdict.SETTLED, "another attempt of the run has begun")
    match server.state_type:
        case StateType.COMPLETED | StateType.FAILED | StateType.CRASHED | StateType.CANCELLED:
            return Outcome(Verdict.SETTLED, f"the run is {server.state_name}")
        case StateType.CANCELLING:
            return Outcome(Verdict.CANCELLED, _cancelled_message(ended))
        case StateType.PAUSED:
            # A suspended run has no process, and should have none. A run that waits for its resumption
            # inside a process is lost with it.
            if server.state_name == "Suspended" or ended.status_code == 0:
                return Outcome(Verdict.SETTLED, f"the run is {server.state_name}")
            return Outcome(Verdict.CRASHED, crash_message(ended, intent=intent, state_name=server.state_name))
        case StateType.SCHEDULED:
            if server.retry_type == IN_PROCESS_RETRY:
                return Outcome(
                    Verdict.CRASHED, crash_message(ended, intent=intent, state_name=server.state_name)
                )
            return Outcome(Verdict.SETTLED, f"the run is {server.state_name} again")
        case StateType.PENDING | StateType.RUNNING:
            if intent is Intent.CANCEL:
                return Outcome(Verdict.CANCELLED, _cancelled_message(ended))
            return Outcome(Verdict.CRASHED, crash_message(ended, intent=intent, state_name=server.state_name))
        case _:
            assert_never(server.state_type)


def _belongs_to_another_attempt(attempt: Attempt, server: ServerRun) -> bool:
    if server.state_type is StateType.PENDING and server.transition_id is not None:
        return server.transition_id != attempt.transition_id
    return (
        attempt.infrastructure_pid is not None
        and server.infrastructure_pid is not None
        and server.infrastructure_pid != attempt.infrastructure_pid
    )


def crash_message(ended: Exit, *, intent: Intent, state_name: str) -> str:
    """One line for the Crashed state: how the process ended and the likely cause."""
    if ended.status_code is None:
        message = "Process ended, and its exit status could not be read."
    else:
        message = f"Process exited with status code: {ended.status_code}. {explain_exit(ended)}"
    if intent is Intent.STOP:
        return f"{message} The worker was told to stop before the run had finished."
    if ended.status_code == 0:
        return f"{message} The run was still {state_name}: the command ended without finishing it."
    return message


def explain_exit(ended: Exit) -> str:
    """The likely cause of an exit, in a sentence.

    Codes 126 and 127 are the shell's (POSIX sh, exit status for commands), 128+N a signal seen by a shell.
    """
    match ended.status_code:
        case 0:
            return "It ended normally."
        case -9 | 137:
            return "It was killed (SIGKILL), as the operating system does when memory runs out."
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


def _cancelled_message(ended: Exit) -> str:
    return f"Flow run was cancelled; its process ended with {ended.describe()}."
