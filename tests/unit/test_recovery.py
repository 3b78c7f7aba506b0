"""What is done about an open entry: the whole table."""

from datetime import timedelta

import pytest

from worker.api.models import FlowRun
from worker.runs.claims import Standing
from worker.runs.journal_entry import Phase
from worker.runs.lost_runs import is_ours
from worker.runs.recovery import CLAIM_SETTLES, Action, decide

RECENT, OLD, AHEAD = timedelta(seconds=1), CLAIM_SETTLES, timedelta(seconds=-1)
STARTED = (Phase.LAUNCHING, Phase.LAUNCHED, Phase.EXITED)


@pytest.mark.parametrize("phase", STARTED)
@pytest.mark.parametrize("standing", list(Standing))
def test_what_lives_is_adopted_whatever_the_server_says(phase: Phase, standing: Standing) -> None:
    assert decide(phase=phase, alive=True, began=True, standing=standing, age=OLD) is Action.ADOPT


@pytest.mark.parametrize("phase", STARTED)
@pytest.mark.parametrize("standing", list(Standing))
def test_what_may_have_begun_and_is_gone_is_reported(phase: Phase, standing: Standing) -> None:
    assert decide(phase=phase, alive=False, began=True, standing=standing, age=RECENT) is Action.REPORT


@pytest.mark.parametrize("phase", [Phase.CLAIMING, Phase.LAUNCHING])
@pytest.mark.parametrize(
    ("standing", "age", "action"),
    [
        (Standing.OURS, RECENT, Action.GIVE_BACK),
        (Standing.OURS, OLD, Action.GIVE_BACK),
        (Standing.OURS_CANCELLING, OLD, Action.CANCEL),
        (Standing.THEIRS, RECENT, Action.DISCARD),
        (Standing.GONE, RECENT, Action.DISCARD),
        (Standing.UNTOUCHED, RECENT, Action.WAIT),
        (Standing.UNTOUCHED, OLD, Action.DISCARD),
        (Standing.UNTOUCHED, AHEAD, Action.DISCARD),
        (Standing.UNKNOWN, OLD, Action.WAIT),
    ],
)
def test_what_never_began_is_given_back_if_it_is_ours(
    phase: Phase, standing: Standing, age: timedelta, action: Action
) -> None:
    assert decide(phase=phase, alive=False, began=False, standing=standing, age=age) is action


@pytest.mark.parametrize(
    ("labels", "pid", "ours"),
    [
        ({"prefect.worker.name": "w"}, "here:12", True),
        ({"prefect.worker.name": "w"}, None, False),
        ({"prefect.worker.name": "w"}, "there:12", False),
        ({"prefect.worker.name": "w"}, "12", False),
        ({"prefect.worker.name": "other"}, "here:12", False),
        ({}, "here:12", False),
    ],
)
def test_runs_that_the_server_says_are_ours(labels: dict[str, str], pid: str | None, ours: bool) -> None:
    run = FlowRun.read(
        {"id": "5d8f2e9c-30cb-4a6b-8a3b-2a1c4b6d7e8f", "labels": labels, "infrastructure_pid": pid}
    )
    assert is_ours(run, worker_name="w", hostname="here") is ours
