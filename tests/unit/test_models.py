from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from worker.api.models import (
    Deployment,
    FlowRun,
    SetStateAnswer,
    SetStateStatus,
    State,
    StateType,
    WorkPool,
    read_each,
)
from worker.api.records import LogRecord, WorkerEvent

ID = UUID("6c5b9a0e-2a8b-4a37-9f25-1d4a6f0f9f31")
OTHER = UUID("0e0a1b62-6a9c-4f6e-8f5d-7f0f6f9f3c11")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_least_a_flow_run_can_be() -> None:
    run = FlowRun.read({"id": str(ID)})
    assert run.id == ID
    assert (run.state, run.state_type, run.job_variables, run.retry_type) == (None, None, None, None)
    assert (run.tags, run.labels, run.run_count) == ([], {}, 0)


def test_nulls_and_unknown_fields_are_as_good_as_absent() -> None:
    nothing = dict.fromkeys(FlowRun.model_fields.keys() - {"id", "raw"})
    assert FlowRun.read({"id": str(ID), **nothing, "from_the_future": {}}).tags == []


def test_a_flow_run_as_the_server_lists_it() -> None:
    received = {
        "id": str(ID),
        "name": "sweet-otter",
        "state_type": "SCHEDULED",
        "state_name": "AwaitingRetry",
        "empirical_policy": {"retries": 2, "retry_type": "reschedule"},
        "next_scheduled_start_time": "2026-01-02T03:04:05",
        "created_by": {"id": str(OTHER), "type": "AUTOMATION", "display_value": None},
        "job_variables": {"env": {"A": "1"}},
    }
    run = FlowRun.read(received)
    assert run.state_type is StateType.SCHEDULED
    assert run.retry_type == "reschedule"
    assert run.next_scheduled_start_time == NOW
    assert run.created_by is not None
    assert (run.created_by.type, run.created_by.id) == ("AUTOMATION", OTHER)
    assert run.raw == received


@pytest.mark.parametrize("malformed", ["text", 7, [1], {"env": 3}, True])
def test_job_variables_of_any_shape_do_not_hide_the_run(malformed: Any) -> None:
    assert FlowRun.read({"id": str(ID), "job_variables": malformed}).job_variables == malformed


def test_what_may_be_secret_is_not_in_the_repr() -> None:
    received = {"id": str(ID), "job_variables": {"env": {"TOKEN": "hush"}}, "pull_steps": [{"token": "hush"}]}
    for shown in (repr(FlowRun.read(received)), repr(Deployment.read(received))):
        assert "hush" not in shown
    with pytest.raises(ValidationError) as caught:
        FlowRun.read({"id": "hush", "state_type": "hush"})
    assert "hush" not in str(caught.value)


def test_one_unreadable_item_costs_only_itself() -> None:
    skipped: list[str] = []
    items: list[Any] = [
        {"id": str(ID)},
        {"id": str(OTHER), "state_type": "NOVEL"},
        {"name": "without id"},
        "text",
        None,
    ]
    runs = read_each(FlowRun, items, lambda identity, _: skipped.append(identity))
    assert [run.id for run in runs] == [ID]
    assert skipped == [str(OTHER), "None", "None", "None"]


def test_an_empty_template_is_kept_empty() -> None:
    pool = {"id": str(ID), "name": "p", "type": "process"}
    assert WorkPool.read({**pool, "base_job_template": None}).base_job_template == {}
    assert WorkPool.read({**pool, "base_job_template": {}}).base_job_template == {}


@pytest.mark.parametrize("final", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
def test_final_states(final: str) -> None:
    assert StateType(final).is_final


@pytest.mark.parametrize("going", ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"])
def test_states_that_go_on(going: str) -> None:
    assert not StateType(going).is_final


def state(transition_id: UUID | None, kind: str = "PENDING") -> dict[str, Any]:
    return {
        "type": kind,
        "name": "x",
        "state_details": {"transition_id": transition_id and str(transition_id)},
    }


@pytest.mark.parametrize(
    ("status", "current", "accepted"),
    [
        ("ACCEPT", state(ID), True),
        ("ACCEPT", None, True),
        ("REJECT", state(ID), True),
        ("ABORT", state(ID), True),
        ("ABORT", state(OTHER), False),
        ("REJECT", state(None), False),
        ("WAIT", None, False),
    ],
)
def test_a_proposal_is_ours_by_status_or_by_its_id(status: str, current: Any, accepted: bool) -> None:
    answer = SetStateAnswer.from_answer({"status": status, "state": current, "details": None}, ID)
    assert answer.accepted is accepted


def test_the_details_of_a_waiting_answer() -> None:
    body = {
        "status": "WAIT",
        "state": state(OTHER),
        "details": {"type": "wait_details", "delay_seconds": 3, "reason": "early"},
    }
    answer = SetStateAnswer.from_answer(body, ID)
    assert answer.status is SetStateStatus.WAIT
    assert (answer.delay_seconds, answer.reason) == (3, "early")
    assert answer.state is not None
    assert answer.state.type is StateType.PENDING


def test_a_state_without_details() -> None:
    assert State.read({"type": "RUNNING", "state_details": None}).state_details.transition_id is None


def test_a_log_record_carries_what_a_strict_server_takes_and_no_more() -> None:
    record = LogRecord(name="prefect.flow_runs.worker", level=20, message="m", timestamp=NOW)
    assert record.to_json() == {
        "name": "prefect.flow_runs.worker",
        "level": 20,
        "message": "m",
        "timestamp": "2026-01-02T03:04:05+00:00",
    }
    assert LogRecord(name="n", level=1, message="", timestamp=NOW, flow_run_id=ID).to_json()[
        "flow_run_id"
    ] == str(ID)


def test_an_event_as_it_is_sent() -> None:
    event = WorkerEvent(
        id=ID,
        occurred=NOW,
        event="e",
        resource={"prefect.resource.id": "r"},
        related=[{"a": "b"}],
        follows=OTHER,
    )
    assert event.to_json() == {
        "id": str(ID),
        "occurred": "2026-01-02T03:04:05+00:00",
        "event": "e",
        "resource": {"prefect.resource.id": "r"},
        "related": [{"a": "b"}],
        "payload": {},
        "follows": str(OTHER),
    }
    unlinked = WorkerEvent(id=uuid4(), occurred=NOW, event="e", resource={"prefect.resource.id": "r"})
    assert "follows" not in unlinked.to_json()
