"""Why a process ended, in one word for the metrics: a pure decision. What its end means for the run is `conclusion`'s."""

from signal import SIGKILL
from typing import assert_never

from worker.api.models import StateType
from worker.metrics import ExitCause
from worker.processes.control_messages import Disposition, Receipt
from worker.runs.conclusion import Intent
from worker.runs.record import Ended


def exit_cause(ended: Ended, word: object) -> ExitCause:
    """What the daemon did to it comes first, then the engine's own `word` (PROTOCOL 4.4), then how it ended.

    A shell reports a SIGKILL as 137 (POSIX sh, exit status for commands).
    """
    match ended.intent:
        case Intent.CANCEL:
            return ExitCause.CANCELLED
        case Intent.STOP | Intent.RESCHEDULE:
            return ExitCause.STOPPED
        case Intent.NONE:
            pass
        case _:
            assert_never(ended.intent)
    if isinstance(word, Receipt) and word.disposition is Disposition.STATE_REPORTED:
        if word.state_type == StateType.COMPLETED.value:
            return ExitCause.COMPLETED
        if word.state_type == StateType.FAILED.value:
            return ExitCause.FAILED
    code = ended.exit.status_code
    if code is None:
        return ExitCause.UNKNOWN
    if code == 0:
        return ExitCause.FINISHED
    if code in {-SIGKILL, 128 + SIGKILL} and ended.evidence is not None:
        return ExitCause.OUT_OF_MEMORY
    return ExitCause.KILLED if code < 0 else ExitCause.ERROR
