"""Winning and losing claims, and proposals that the server declines."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.canned import CannedServer
from worker.api.models import FlowRun
from worker.runs.states import Claim, Lost, States

pytestmark = pytest.mark.anyio

RUN = FlowRun.read({"id": str(uuid4()), "state_type": "SCHEDULED", "state_name": "Scheduled"})
PATH = f"/flow_runs/{RUN.id}/set_state"
DUE = datetime(2026, 1, 2, 3, tzinfo=UTC)


def state(kind: str, *, transition_id: UUID | str | None = None, name: str | None = None) -> dict[str, Any]:
    details = {"transition_id": str(transition_id)} if transition_id else {}
    return {"type": kind, "name": name or kind.capitalize(), "state_details": details}


def answer(status: str, current: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    return {"status": status, "state": current, "details": {"type": "x", "reason": reason}}


async def claim(server: CannedServer, transition_id: UUID | None = None) -> Claim | Lost:
    async with server.client() as client:
        return await States(client=client).claim(RUN, transition_id=transition_id)


async def test_accepted_is_won_under_the_name_pending() -> None:
    server = CannedServer()
    server.on("POST", PATH, answer("ACCEPT", state("PENDING")), status=201)
    won = await claim(server)
    assert isinstance(won, Claim)
    sent = server.bodies("POST", PATH)[0]["state"]
    assert (sent["type"], sent["name"]) == ("PENDING", "Pending")
    assert sent["state_details"]["transition_id"] == str(won.transition_id)


@pytest.mark.parametrize("status", ["REJECT", "ABORT"])
async def test_our_own_earlier_proposal_is_won(status: str) -> None:
    """The answer to the first try was lost; the second try is told that the state is there already."""
    ours = uuid4()
    server = CannedServer()
    server.on("POST", PATH, answer(status, state("PENDING", transition_id=ours), "already made"))
    assert isinstance(await claim(server, ours), Claim)


@pytest.mark.parametrize(
    "current",
    [
        answer("ABORT", state("PENDING", transition_id=uuid4()), "This run is in a PENDING state"),
        answer("REJECT", state("CANCELLED")),
        answer("REJECT", state("SCHEDULED", name="AwaitingConcurrencySlot")),
        answer("ACCEPT", state("SCHEDULED")),
        answer("ABORT", None),
    ],
)
async def test_anything_else_is_lost(current: dict[str, Any]) -> None:
    server = CannedServer()
    server.on("POST", PATH, current)
    lost = await claim(server)
    assert isinstance(lost, Lost)
    assert lost.reason


async def test_a_deleted_run_is_lost() -> None:
    server = CannedServer()
    server.on("POST", PATH, {"exception_message": "Flow run not found"}, status=404)
    assert isinstance(await claim(server), Lost)


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        (answer("ACCEPT", state("CRASHED")), True),
        (answer("ABORT", state("COMPLETED"), "Run is already in terminal state COMPLETED."), False),
        (answer("REJECT", state("CANCELLING")), False),
    ],
)
async def test_crash_tells_whether_the_run_is_crashed_now(reply: dict[str, Any], *, accepted: bool) -> None:
    server = CannedServer()
    server.on("POST", PATH, reply)
    async with server.client() as client:
        assert await States(client=client).crash(RUN.id, "why") is accepted
    assert server.bodies("POST", PATH)[0]["state"]["message"] == "why"


async def test_giving_back_keeps_the_due_time() -> None:
    server = CannedServer()
    server.on("POST", PATH, answer("ACCEPT", state("SCHEDULED")), status=201)
    due = RUN.model_copy(update={"next_scheduled_start_time": DUE})
    async with server.client() as client:
        assert await States(client=client).give_back(Claim(due, uuid4()), now=datetime.now(UTC))
    assert server.bodies("POST", PATH)[0]["state"]["state_details"]["scheduled_time"] == DUE.isoformat()


async def test_cancelling_a_run_that_is_gone_is_no_error() -> None:
    server = CannedServer()
    server.on("POST", PATH, {"exception_message": "Flow run not found"}, status=404)
    async with server.client() as client:
        assert not await States(client=client).cancel(RUN.id, "why", force=True)
    assert server.bodies("POST", PATH)[0]["force"] is True
