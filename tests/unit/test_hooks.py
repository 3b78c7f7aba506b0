"""Which hooks are due after an attempt, and what the helper that runs them is started with."""

import json
import os
from pathlib import Path
from uuid import UUID

import pytest

from worker.api.models import State, StateType
from worker.processes.launch_problems import LaunchSpec
from worker.runs import hooks_main
from worker.runs.conclusion import Verdict
from worker.runs.hooks import (
    ENGINE_CANCELLING,
    HELPER,
    REASON,
    HookKind,
    helper_spec,
    hooks_due,
    interpreter,
    state_to_tell,
)

CANCELLATION, CRASHED = HookKind.CANCELLATION, HookKind.CRASHED
RUNNING = State(type=StateType.RUNNING, name="Running")
PENDING = State(type=StateType.PENDING, name="Pending")
CANCELLING = State(type=StateType.CANCELLING, name="Cancelling")
RETRYING = State(type=StateType.SCHEDULED, name="AwaitingRetry")
PAUSED = State(type=StateType.PAUSED, name="Paused")
ENDED = State(type=StateType.CRASHED, name="Crashed")
AT_ITS_HOOKS = State(type=StateType.CANCELLING, name="Cancelling", message=ENGINE_CANCELLING)


@pytest.mark.parametrize(
    ("verdict", "accepted", "launched", "concluded", "state", "due"),
    [
        pytest.param(Verdict.CRASHED, True, True, False, RUNNING, CRASHED, id="killed while running"),
        pytest.param(Verdict.CRASHED, True, True, False, PENDING, CRASHED, id="killed before Running"),
        pytest.param(Verdict.CRASHED, True, True, False, RETRYING, CRASHED, id="killed between two tries"),
        pytest.param(Verdict.CRASHED, True, True, False, PAUSED, CRASHED, id="killed while paused"),
        pytest.param(Verdict.CRASHED, True, False, False, PENDING, None, id="could not be started"),
        pytest.param(Verdict.CRASHED, False, True, False, RUNNING, None, id="Crashed was declined"),
        pytest.param(Verdict.CRASHED, True, True, True, PENDING, None, id="the engine had concluded"),
        pytest.param(Verdict.SETTLED, True, True, False, None, None, id="the run was deleted"),
        pytest.param(Verdict.SETTLED, True, True, False, ENDED, None, id="ended by the engine"),
        pytest.param(
            Verdict.SETTLED, True, True, True, ENDED, None, id="ended by the engine, with a receipt"
        ),
        pytest.param(Verdict.RESCHEDULED, True, True, False, RUNNING, None, id="rescheduled"),
        pytest.param(
            Verdict.CANCELLED, False, True, False, CANCELLING, CANCELLATION, id="killed while cancelling"
        ),
        pytest.param(
            Verdict.CANCELLED, False, True, False, RUNNING, CANCELLATION, id="we knew of the cancel, no more"
        ),
        pytest.param(Verdict.CANCELLED, False, True, False, None, CANCELLATION, id="state unknown"),
        pytest.param(Verdict.CANCELLED, False, True, False, AT_ITS_HOOKS, None, id="killed at its hooks"),
        pytest.param(Verdict.CANCELLED, False, True, True, CANCELLING, None, id="cancelled, and concluded"),
        pytest.param(Verdict.CANCELLED, False, False, False, CANCELLING, None, id="cancelled before launch"),
    ],
)
def test_hooks_due(
    verdict: Verdict,
    accepted: bool,
    launched: bool,
    concluded: bool,
    state: State | None,
    due: HookKind | None,
) -> None:
    answer = hooks_due(
        verdict=verdict, accepted=accepted, launched=launched, concluded=concluded, state=state
    )
    assert answer is due


@pytest.mark.parametrize(
    ("kind", "state", "told"),
    [
        pytest.param(CANCELLATION, CANCELLING, CANCELLING, id="being cancelled"),
        pytest.param(CRASHED, ENDED, ENDED, id="accepted"),
        pytest.param(
            CANCELLATION,
            RUNNING,
            State(type=StateType.CANCELLING, name="Cancelling", message="why"),
            id="cancelled by us alone",
        ),
        pytest.param(
            CRASHED, None, State(type=StateType.CRASHED, name="Crashed", message="why"), id="state unknown"
        ),
    ],
)
def test_state_to_tell(kind: HookKind, state: State | None, told: State) -> None:
    assert state_to_tell(kind, state, message="why") == told


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(("/venv/bin/python", "-m", "prefect.engine"), ("/venv/bin/python",), id="no command"),
        pytest.param(("python", "-m", "prefect.engine"), ("python",), id="looked up in PATH"),
        pytest.param(
            ("uv", "run", "python", "-X", "dev", "-m", "prefect.engine", "an-id"),
            ("uv", "run", "python", "-X", "dev"),
            id="wrapper and options",
        ),
        pytest.param(("python", "-m", "prefect.flow_engine", "f.py:f"), ("python",), id="newer entry point"),
        pytest.param(("bash", "run.sh"), ("/default/python",), id="no engine in sight"),
        pytest.param(("-m", "prefect.engine"), ("/default/python",), id="no interpreter"),
        pytest.param(("python", "-m"), ("/default/python",), id="cut short"),
    ],
)
def test_the_interpreter_is_the_flow_s(argv: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert interpreter(argv, default="/default/python") == words


def spec(tmp_path: Path) -> LaunchSpec:
    env = {"A": "1", "PREFECT__CONTROL_PORT": "4", "PREFECT__CONTROL_TOKEN": "secret", "PREFECT_HOME": "/h"}
    return LaunchSpec(
        argv=("py", "-m", "prefect.engine"), env=env, cwd=tmp_path / "elsewhere", stream_output=True
    )


def test_the_helper_gets_the_run_s_environment_without_the_control_channel(tmp_path: Path) -> None:
    run_id = UUID(int=1)
    helper = helper_spec(
        CRASHED, spec(tmp_path), python="other", flow_run_id=run_id, state=RUNNING, cwd=tmp_path
    )
    assert helper.argv[:3] == ("py", str(HELPER), "on_crashed")
    assert json.loads(helper.argv[3]) == {"type": "RUNNING", "name": "Running", "message": ""}
    assert helper.env == {"A": "1", "PREFECT_HOME": "/h", "PREFECT__FLOW_RUN_ID": str(run_id)}
    assert helper.cwd == tmp_path


def test_a_message_never_keeps_the_helper_from_being_started(tmp_path: Path) -> None:
    state = State(type=StateType.CANCELLING, name="Cancelling", message="\0\ud800\U0001f600" * 100_000)
    helper = helper_spec(
        CANCELLATION, spec(tmp_path), python="p", flow_run_id=UUID(int=1), state=state, cwd=tmp_path
    )
    argument = os.fsencode(helper.argv[-1])
    assert len(argument) < 128 * 1024
    assert b"\0" not in argument
    assert state.message is not None
    assert state.message.startswith(json.loads(argument)["message"])


def test_both_sides_use_the_same_words() -> None:
    assert tuple(hooks_main.KINDS) == tuple(HookKind)
    assert hooks_main.REASON == REASON


@pytest.mark.parametrize(
    "arguments", [[], ["on_failure", "{}"], ["on_crashed"], ["on_crashed", "{}", "more"]]
)
def test_the_helper_says_how_it_is_called(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert hooks_main.main(arguments) == hooks_main.USAGE
    assert capfd.readouterr().err.startswith("usage: hooks_main.py on_cancellation|on_crashed ")
