"""What a process's end means for its run: the decision table."""

from dataclasses import replace
from uuid import uuid4

import pytest

from worker.api.models import FlowRun, StateType
from worker.processes.process import Exit
from worker.runs.conclusion import Attempt, Intent, ServerRun, Verdict, conclude, crash_message, explain_exit

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


OK, FAILED, KILLED = ended(0), ended(1), ended(None, 9)
NONE, CANCEL, STOP = Intent.NONE, Intent.CANCEL, Intent.STOP
SETTLED, CANCELLED, CRASHED = Verdict.SETTLED, Verdict.CANCELLED, Verdict.CRASHED


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


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (ended(7), "status code: 7."),
        (ended(None, 9), "status code: -9."),
        (ended(None, 34), "signal"),
        (ended(None, None), "could not be read"),
        (ended(0), "The run was still Running"),
        (ended(127), "PATH"),
        (ended(126), "permissions"),
    ],
)
def test_crash_messages_say_what_happened(exit_: Exit, words: str) -> None:
    assert words in crash_message(exit_, intent=NONE, state_name="Running")


def test_a_stop_says_so() -> None:
    assert "told to stop" in crash_message(KILLED, intent=STOP, state_name="Running")


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
