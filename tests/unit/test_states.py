"""Proposals, and what it means when the server declines them."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.canned import CannedServer
from worker.api.models import FlowRun
from worker.runs.states import States

pytestmark = pytest.mark.anyio

RUN = FlowRun.read({"id": str(uuid4()), "state_type": "SCHEDULED", "state_name": "Scheduled"})
PATH = f"/flow_runs/{RUN.id}/set_state"
DUE = datetime(2026, 1, 2, 3, tzinfo=UTC)


def state(kind: str, *, transition_id: UUID | str | None = None, name: str | None = None) -> dict[str, Any]:
    details = {"transition_id": str(transition_id)} if transition_id else {}
    return {"type": kind, "name": name or kind.capitalize(), "state_details": details}


def answer(status: str, current: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    return {"status": status, "state": current, "details": {"type": "x", "reason": reason}}


def redact(text: str) -> str:
    return text.replace("s3cr3t", "***")


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        (answer("ACCEPT", state("CRASHED")), True),
        (answer("ABORT", state("COMPLETED"), "Run is already in terminal state COMPLETED."), False),
        (answer("ABORT", state("CRASHED"), "Run is already in terminal state CRASHED."), False),
        (answer("REJECT", state("CANCELLING")), False),
    ],
)
async def test_crash_tells_whether_the_run_is_crashed_now(reply: dict[str, Any], *, accepted: bool) -> None:
    server = CannedServer()
    server.on("POST", PATH, reply)
    async with server.client() as client:
        assert await States(client=client, redact=redact).crash(RUN.id, "why s3cr3t") is accepted
    assert server.bodies("POST", PATH)[0]["state"]["message"] == "why ***"


async def test_giving_back_keeps_the_due_time() -> None:
    server = CannedServer()
    server.on("POST", PATH, answer("ACCEPT", state("SCHEDULED")), status=201)
    async with server.client() as client:
        assert await States(client=client, redact=redact).give_back(RUN.id, "why", due=DUE)
    assert server.bodies("POST", PATH)[0]["state"]["state_details"]["scheduled_time"] == DUE.isoformat()


async def test_a_run_scheduled_again_is_a_retry() -> None:
    server = CannedServer()
    server.on("POST", PATH, answer("ACCEPT", state("SCHEDULED")), status=201)
    async with server.client() as client:
        assert await States(client=client, redact=redact).reschedule(RUN.id, "why", due=DUE)
    proposed = server.bodies("POST", PATH)[0]["state"]
    assert (proposed["type"], proposed["name"]) == ("SCHEDULED", "AwaitingRetry")
    assert proposed["state_details"]["scheduled_time"] == DUE.isoformat()


async def test_cancelling_a_run_that_is_gone_is_no_error() -> None:
    server = CannedServer()
    server.on("POST", PATH, {"exception_message": "Flow run not found"}, status=404)
    async with server.client() as client:
        assert not await States(client=client, redact=redact).cancel(RUN.id, "why", force=True)
    assert server.bodies("POST", PATH)[0]["force"] is True
