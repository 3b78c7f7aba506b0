"""What a process's end means for its run: the decision table."""

from dataclasses import replace
from uuid import uuid4

import pytest

from worker.api.models import FlowRun, StateType
from worker.processes.process import Exit
from worker.runs.conclusion import (
    Attempt,
    Intent,
    ServerRun,
    Verdict,
    conclude,
    crash_message,
    describe_seconds,
    explain_exit,
)

OURS = uuid4()
THEIRS = uuid4()
ATTEMPT = Attempt(transition_id=OURS, infrastructure_pid="host:1")


def ended(code: int | None = 0, signal: int | None = None) -> Exit:
    return Exit(code=code, signal=signal, max_rss_bytes=None, started=0.0, ended=1.0)


def server(
    state_type: StateType,
    name: str | None = None,
    *,
    retry: str | None = None,
    pid: str | None = "host:1",
) -> ServerRun:
    return ServerRun(
        state_type=state_type,
        state_name=name or state_type.value.capitalize(),
        transition_id=OURS if state_type is StateType.PENDING else None,
        retry_type=retry,
        infrastructure_pid=pid,
    )


OK, FAILED, KILLED, TERMINATED, UNKNOWN = ended(0), ended(1), ended(None, 9), ended(None, 15), ended(None)
NONE, CANCEL, STOP, RESCHEDULE = Intent.NONE, Intent.CANCEL, Intent.STOP, Intent.RESCHEDULE
SETTLED, CANCELLED, CRASHED = Verdict.SETTLED, Verdict.CANCELLED, Verdict.CRASHED
RESCHEDULED = Verdict.RESCHEDULED
WAITING = server(StateType.SCHEDULED, "AwaitingRetry", retry="in_process")
OOM = "the kernel's out-of-memory killer struck in the worker's cgroup (memory limit 512 MiB)"


@pytest.mark.parametrize(
    ("exit_", "intent", "state", "verdict"),
    [
        pytest.param(OK, NONE, None, SETTLED, id="deleted run"),
        pytest.param(OK, NONE, server(StateType.COMPLETED), SETTLED, id="completed"),
        pytest.param(
            FAILED, NONE, server(StateType.FAILED), SETTLED, id="failed, as engines up to 3.8.3 exit"
        ),
        pytest.param(KILLED, NONE, server(StateType.COMPLETED), SETTLED, id="killed after completing"),
        pytest.param(
            ended(None, 15), NONE, server(StateType.CRASHED), SETTLED, id="crash told by the engine"
        ),
        pytest.param(OK, CANCEL, server(StateType.CANCELLED), SETTLED, id="cancelled by the engine"),
        pytest.param(
            FAILED, NONE, server(StateType.CANCELLING), CANCELLED, id="cancelling before the engine"
        ),
        pytest.param(
            KILLED, CANCEL, server(StateType.CANCELLING), CANCELLED, id="cancelling, had to be killed"
        ),
        pytest.param(KILLED, STOP, server(StateType.CANCELLING), CANCELLED, id="cancelling while we stop"),
        pytest.param(OK, NONE, server(StateType.PAUSED, "Suspended"), SETTLED, id="suspended"),
        pytest.param(
            KILLED, NONE, server(StateType.PAUSED, "Suspended"), SETTLED, id="suspended, then killed"
        ),
        pytest.param(OK, NONE, server(StateType.PAUSED), SETTLED, id="paused, ended well"),
        pytest.param(KILLED, NONE, server(StateType.PAUSED), CRASHED, id="paused in a process that died"),
        pytest.param(OK, NONE, server(StateType.SCHEDULED, "Resuming"), SETTLED, id="resumed already"),
        pytest.param(OK, NONE, server(StateType.SCHEDULED, "AwaitingRetry"), SETTLED, id="retried by a user"),
        pytest.param(
            KILLED,
            NONE,
            server(StateType.SCHEDULED, "AwaitingRetry", retry="in_process"),
            CRASHED,
            id="died while waiting to retry",
        ),
        pytest.param(FAILED, NONE, server(StateType.PENDING), CRASHED, id="could not load the flow"),
        pytest.param(OK, NONE, server(StateType.PENDING), CRASHED, id="command that ran no engine"),
        pytest.param(KILLED, NONE, server(StateType.RUNNING), CRASHED, id="killed while running"),
        pytest.param(KILLED, STOP, server(StateType.RUNNING), CRASHED, id="stopped with the daemon"),
        pytest.param(OK, CANCEL, server(StateType.RUNNING), CANCELLED, id="intent taken, state left to us"),
        pytest.param(
            FAILED, NONE, server(StateType.RUNNING, pid="other:2"), SETTLED, id="another attempt runs"
        ),
        pytest.param(FAILED, NONE, server(StateType.RUNNING, pid=None), CRASHED, id="pid cleared"),
        # The daemon is ending, and the run is to be scheduled again.
        pytest.param(OK, RESCHEDULE, server(StateType.RUNNING), RESCHEDULED, id="reschedule: acknowledged"),
        pytest.param(TERMINATED, RESCHEDULE, server(StateType.PENDING), RESCHEDULED, id="reschedule: early"),
        pytest.param(KILLED, RESCHEDULE, server(StateType.RUNNING), RESCHEDULED, id="reschedule: deaf"),
        pytest.param(UNKNOWN, RESCHEDULE, server(StateType.RUNNING), RESCHEDULED, id="reschedule: adopted"),
        pytest.param(TERMINATED, RESCHEDULE, server(StateType.CRASHED), RESCHEDULED, id="reschedule: crash"),
        pytest.param(OK, RESCHEDULE, WAITING, RESCHEDULED, id="reschedule: waiting to retry"),
        pytest.param(OK, RESCHEDULE, server(StateType.SCHEDULED), SETTLED, id="reschedule: is scheduled"),
        pytest.param(OK, RESCHEDULE, server(StateType.COMPLETED), SETTLED, id="reschedule: completed"),
        pytest.param(OK, RESCHEDULE, server(StateType.FAILED), SETTLED, id="reschedule: failed"),
        pytest.param(OK, RESCHEDULE, server(StateType.CANCELLED), SETTLED, id="reschedule: cancelled"),
        pytest.param(OK, RESCHEDULE, server(StateType.CANCELLING), CANCELLED, id="reschedule: cancelling"),
        pytest.param(
            OK, RESCHEDULE, server(StateType.PAUSED, "Suspended"), SETTLED, id="reschedule: suspended"
        ),
        pytest.param(OK, RESCHEDULE, None, SETTLED, id="reschedule: deleted"),
        pytest.param(
            TERMINATED,
            RESCHEDULE,
            server(StateType.CRASHED, pid="other:2"),
            SETTLED,
            id="reschedule: another attempt crashed",
        ),
        # A crash on the server is ours only when we asked for the end.
        pytest.param(UNKNOWN, CANCEL, server(StateType.CRASHED), CANCELLED, id="cancel: told as a crash"),
        pytest.param(
            TERMINATED, CANCEL, server(StateType.CRASHED), CANCELLED, id="cancel: not yet connected"
        ),
        pytest.param(
            TERMINATED,
            CANCEL,
            server(StateType.CRASHED, pid="other:2"),
            SETTLED,
            id="cancel: another attempt crashed",
        ),
        pytest.param(TERMINATED, STOP, server(StateType.CRASHED), SETTLED, id="stop: told as a crash"),
        pytest.param(KILLED, NONE, server(StateType.CRASHED), SETTLED, id="crashed by itself"),
        pytest.param(OK, CANCEL, server(StateType.COMPLETED), SETTLED, id="cancel: completed first"),
        pytest.param(OK, CANCEL, server(StateType.FAILED), SETTLED, id="cancel: failed first"),
        pytest.param(KILLED, STOP, WAITING, CRASHED, id="stop: waiting to retry"),
    ],
)
def test_table(exit_: Exit, intent: Intent, state: ServerRun | None, verdict: Verdict) -> None:
    assert conclude(ended=exit_, intent=intent, attempt=ATTEMPT, server=state).verdict is verdict


def test_a_pending_state_of_another_claim_is_not_ours() -> None:
    theirs = replace(server(StateType.PENDING), transition_id=THEIRS)
    assert conclude(ended=OK, intent=NONE, attempt=ATTEMPT, server=theirs).verdict is SETTLED


def test_the_pid_of_an_earlier_attempt_does_not_count_before_ours_was_accepted() -> None:
    fresh = Attempt(transition_id=OURS, infrastructure_pid=None)
    retried = server(StateType.RUNNING, pid="host:0")
    assert conclude(ended=KILLED, intent=NONE, attempt=fresh, server=retried).verdict is CRASHED


def test_a_rescheduled_run_says_why() -> None:
    outcome = conclude(
        ended=KILLED, intent=RESCHEDULE, attempt=ATTEMPT, server=server(StateType.RUNNING), evidence=OOM
    )
    assert outcome.message == (
        "The worker was told to stop before the run had finished; it is scheduled again."
    )


def used(
    code: int | None,
    signal: int | None = None,
    *,
    peak: int | None = 512 << 20,
    seconds: float = 12.34,
) -> Exit:
    return Exit(code=code, signal=signal, max_rss_bytes=peak, started=1000.0, ended=1000.0 + seconds)


USAGE = "Peak memory 512 MiB, ran for 12.3 s."
LOST = "Process ended, and its exit status could not be read, as happens when the worker that started it is gone."
FREED = "It was killed (SIGKILL): as the operating system does when memory runs out."
STOPPED = "The worker was told to stop before the run had finished."


@pytest.mark.parametrize(
    ("exit_", "intent", "evidence", "message"),
    [
        pytest.param(
            used(None, 9),
            NONE,
            OOM,
            f"Process exited with status code: -9. It was killed (SIGKILL): {OOM}. {USAGE}",
            id="out of memory",
        ),
        pytest.param(
            used(None, 9),
            NONE,
            None,
            f"Process exited with status code: -9. {FREED} {USAGE}",
            id="killed, nobody knows why",
        ),
        pytest.param(
            used(137),
            NONE,
            OOM,
            f"Process exited with status code: 137. It was killed (SIGKILL): {OOM}. {USAGE}",
            id="the shell's child was out of memory",
        ),
        pytest.param(
            used(None, 9),
            STOP,
            None,
            "Process exited with status code: -9. It was killed (SIGKILL): it had not ended in the time it was "
            f"given. {STOPPED} {USAGE}",
            id="killed by us",
        ),
        pytest.param(
            used(None, 9),
            STOP,
            OOM,
            f"Process exited with status code: -9. It was killed (SIGKILL): {OOM}. {STOPPED} {USAGE}",
            id="out of memory before our time was up",
        ),
        pytest.param(
            used(None, 15),
            STOP,
            None,
            "Process exited with status code: -15. It was terminated (SIGTERM), as on a shutdown or a cancellation. "
            f"{STOPPED} {USAGE}",
            id="stopped",
        ),
        pytest.param(
            used(7),
            NONE,
            OOM,
            f"Process exited with status code: 7. It ended without reporting a final state. {USAGE}",
            id="evidence is of no use for who was not killed",
        ),
        pytest.param(
            used(0),
            NONE,
            None,
            "Process exited with status code: 0. It ended normally. The run was still Running: the command ended "
            f"without finishing it. {USAGE}",
            id="ended too early",
        ),
        pytest.param(used(None, peak=None), NONE, None, f"{LOST} Ran for 12.3 s.", id="adopted"),
        pytest.param(
            used(None, peak=None),
            NONE,
            OOM,
            f"{LOST} The likely cause: {OOM}. Ran for 12.3 s.",
            id="adopted, out of memory",
        ),
        pytest.param(
            used(None, peak=None), STOP, None, f"{LOST} {STOPPED} Ran for 12.3 s.", id="adopted, stopped"
        ),
        pytest.param(
            used(7, seconds=-5),
            NONE,
            None,
            "Process exited with status code: 7. It ended without reporting a final state. Peak memory 512 MiB.",
            id="a clock set back",
        ),
        pytest.param(
            used(7, seconds=-5, peak=None),
            NONE,
            None,
            "Process exited with status code: 7. It ended without reporting a final state.",
            id="nothing known",
        ),
    ],
)
def test_crash_messages(exit_: Exit, intent: Intent, evidence: str | None, message: str) -> None:
    running = server(StateType.RUNNING)
    assert crash_message(exit_, intent=intent, state_name="Running", evidence=evidence) == message
    outcome = conclude(ended=exit_, intent=intent, attempt=ATTEMPT, server=running, evidence=evidence)
    assert (outcome.verdict, outcome.message) == (CRASHED, message)


@pytest.mark.parametrize(
    ("code", "words"), [(127, "PATH"), (126, "permissions"), (1, "last lines"), (-40, "signal")]
)
def test_crash_messages_say_what_to_look_at(code: int, words: str) -> None:
    exit_ = ended(code) if code >= 0 else ended(None, -code)
    assert words in crash_message(exit_, intent=NONE, state_name="Running")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7530, "2 h 5 min"),
        (100 * 3600, "100 h 0 min"),
    ],
)
def test_run_times(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


@pytest.mark.parametrize("status", [-15, -11, -6, -9, 0, 1, 126, 127, 134, 137, 139, 143, 3])
def test_every_exit_has_an_explanation(status: int) -> None:
    exit_ = ended(status) if status >= 0 else ended(None, -status)
    assert explain_exit(exit_).endswith((".", "why."))


def test_server_run_prefers_the_full_state() -> None:
    flow_run = FlowRun.read(
        {
            "id": str(uuid4()),
            "state_type": "PENDING",
            "state_name": "Pending",
            "state": {"type": "PENDING", "name": "Pending", "state_details": {"transition_id": str(OURS)}},
            "infrastructure_pid": "host:1",
            "empirical_policy": {"retry_type": "in_process"},
        }
    )
    assert ServerRun.of(flow_run) == ServerRun(StateType.PENDING, "Pending", OURS, "in_process", "host:1")


def test_a_run_without_any_state_has_no_server_run() -> None:
    assert ServerRun.of(FlowRun.read({"id": str(uuid4())})) is None
