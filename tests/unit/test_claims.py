"""Winning and losing claims, and finding out which when the answer is lost."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from tests.support.canned import CannedServer
from worker.api.models import FlowRun, State
from worker.runs.claims import (
    TRIES,
    Claim,
    Claims,
    Lost,
    Orphaned,
    Standing,
    Unanswered,
    judge_standing,
)

pytestmark = pytest.mark.anyio

POLLED_STATE = str(uuid4())
RUN = FlowRun.read(
    {"id": str(uuid4()), "state_type": "SCHEDULED", "state_name": "Scheduled", "state_id": POLLED_STATE}
)
PATH = f"/flow_runs/{RUN.id}/set_state"
OURS = uuid4()


def state(kind: str, *, transition_id: UUID | str | None = None, name: str | None = None) -> dict[str, Any]:
    details = {"transition_id": str(transition_id)} if transition_id else {}
    return {"type": kind, "name": name or kind.capitalize(), "state_details": details}


def answer(status: str, current: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    return {"status": status, "state": current, "details": {"type": "x", "reason": reason}}


def run_as(kind: str, *, transition_id: UUID | None = None, state_id: str | None = None) -> dict[str, Any]:
    return {
        "id": str(RUN.id),
        "state_type": kind,
        "state_id": state_id or str(uuid4()),
        "state": state(kind, transition_id=transition_id),
    }


async def claim(
    server: CannedServer, transition_id: UUID | None = None, flow_run: FlowRun = RUN
) -> Claim | Lost | Orphaned | Unanswered:
    async def no_sleep(_seconds: float) -> None:
        pass

    async with server.client() as client:
        return await Claims(client=client, sleep=no_sleep).claim(flow_run, transition_id=transition_id)


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


async def test_a_run_whose_deployment_is_gone_can_only_be_cancelled() -> None:
    server = CannedServer()
    deployment = uuid4()
    orphan = RUN.model_copy(update={"deployment_id": deployment})
    server.on("POST", PATH, answer("ABORT", state("SCHEDULED"), "Deployment not found."))
    server.on("GET", f"/deployments/{deployment}", {"detail": "Deployment not found"}, status=404)
    assert isinstance(await claim(server, flow_run=orphan), Orphaned)


async def test_a_deleted_run_is_lost() -> None:
    server = CannedServer()
    server.on("POST", PATH, {"exception_message": "Flow run not found"}, status=404)
    assert isinstance(await claim(server), Lost)


def refuse(server: CannedServer, *, status: int = 503, then: dict[str, Any] | None = None) -> list[Any]:
    """Refuse the claim once (for ever without `then`), and answer `then` afterwards; gives what was sent."""
    sent: list[Any] = []

    def handle(body: Any) -> tuple[int, Any]:
        sent.append(body["state"]["state_details"]["transition_id"])
        if then is None or len(sent) == 1:
            return status, {"exception_message": "Service Unavailable"}
        return 201, then

    server.on_call("POST", PATH, handle)
    return sent


async def test_an_unanswered_try_is_repeated_while_nobody_has_touched_the_run() -> None:
    server = CannedServer()
    sent = refuse(server, then=answer("ACCEPT", state("PENDING")))
    server.on("GET", f"/flow_runs/{RUN.id}", run_as("SCHEDULED", state_id=POLLED_STATE))
    assert isinstance(await claim(server, OURS), Claim)
    assert sent == [str(OURS), str(OURS)]


@pytest.mark.parametrize("status", [500, 503])
async def test_a_run_finished_by_another_worker_meanwhile_is_not_started_again(status: int) -> None:
    server = CannedServer()
    sent = refuse(server, status=status, then=answer("ACCEPT", state("PENDING")))
    server.on("GET", f"/flow_runs/{RUN.id}", run_as("COMPLETED"))
    assert isinstance(await claim(server), Lost)
    assert len(sent) == 1


async def test_an_answer_that_was_lost_is_found_on_the_run() -> None:
    server = CannedServer()
    sent = refuse(server)
    server.on("GET", f"/flow_runs/{RUN.id}", run_as("PENDING", transition_id=OURS))
    assert isinstance(await claim(server, OURS), Claim)
    assert len(sent) == 1


async def test_a_run_the_server_never_lets_us_claim_is_left_to_a_later_poll() -> None:
    server = CannedServer()
    sent = refuse(server, status=403)
    server.on("GET", f"/flow_runs/{RUN.id}", run_as("SCHEDULED", state_id=POLLED_STATE))
    assert isinstance(await claim(server), Unanswered)
    assert len(sent) == TRIES


async def test_a_claim_of_which_nothing_can_be_learnt_is_left_open() -> None:
    server = CannedServer()
    refuse(server)
    server.on("GET", f"/flow_runs/{RUN.id}", {"detail": "Forbidden"}, status=403)
    assert isinstance(await claim(server), Unanswered)


def entry(kind: str, second: int, transition_id: UUID | None = None) -> State:
    stamp = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC).isoformat()
    return State.read({**state(kind, transition_id=transition_id), "timestamp": stamp})


@pytest.mark.parametrize(
    ("current", "history", "standing"),
    [
        (run_as("SCHEDULED", state_id=POLLED_STATE), [], Standing.UNTOUCHED),
        (run_as("SCHEDULED"), [], Standing.THEIRS),
        (run_as("PENDING", transition_id=OURS), [], Standing.OURS),
        (run_as("PENDING", transition_id=uuid4()), [], Standing.THEIRS),
        (run_as("RUNNING"), [], Standing.THEIRS),
        (run_as("COMPLETED"), [], Standing.THEIRS),
        (run_as("CANCELLING"), [entry("PENDING", 1, OURS)], Standing.OURS_CANCELLING),
        (
            run_as("CANCELLING"),
            [entry("PENDING", 9, uuid4()), entry("PENDING", 1, OURS)],
            Standing.THEIRS,
        ),
        (run_as("CANCELLING"), [], Standing.THEIRS),
    ],
)
def test_how_a_run_stands(current: dict[str, Any], history: list[State], standing: Standing) -> None:
    found = judge_standing(polled=RUN, current=FlowRun.read(current), history=history, transition_id=OURS)
    assert found is standing


async def test_a_claim_cancelled_before_its_answer_came_is_still_ours() -> None:
    server = CannedServer()
    refuse(server)
    server.on("GET", f"/flow_runs/{RUN.id}", run_as("CANCELLING"))
    server.on("GET", "/flow_run_states/", [state("PENDING", transition_id=OURS), state("CANCELLING")])
    won = await claim(server, OURS)
    assert isinstance(won, Claim)
    assert won.cancelling, "and is not to be started"


async def test_a_claim_that_was_lost_says_that_others_claim_too_until_one_is_won() -> None:
    server = CannedServer()
    answers = [answer("REJECT", state("RUNNING")), answer("ACCEPT", state("PENDING"))]
    server.on_call("POST", PATH, lambda _: (201, answers.pop(0)))
    async with server.client() as client:
        claims = Claims(client=client, sleep=anyio.sleep)
        assert not claims.contested
        await claims.claim(RUN)
        assert claims.contested
        await claims.claim(RUN)
        assert not claims.contested


@pytest.mark.parametrize(
    ("answered", "read", "claimed", "standing"),
    [
        (True, run_as("PENDING", transition_id=OURS), None, Standing.OURS),
        (False, run_as("PENDING", transition_id=OURS), None, Standing.OURS),
        (
            False,
            run_as("SCHEDULED", state_id=POLLED_STATE),
            answer("ACCEPT", state("PENDING")),
            Standing.OURS,
        ),
        (
            False,
            run_as("SCHEDULED", state_id=POLLED_STATE),
            answer("REJECT", state("RUNNING")),
            Standing.THEIRS,
        ),
        (True, run_as("SCHEDULED", state_id=POLLED_STATE), None, Standing.UNTOUCHED),
    ],
)
async def test_how_a_run_stands_that_will_not_be_started_is_made_certain(
    answered: bool, read: dict[str, Any], claimed: dict[str, Any] | None, standing: Standing
) -> None:
    server = CannedServer()
    server.on("GET", f"/flow_runs/{RUN.id}", read)
    if claimed is not None:
        server.on("POST", PATH, claimed)
    async with server.client() as client:
        claims = Claims(client=client, sleep=anyio.sleep)
        assert await claims.settled(RUN, OURS, answered=answered) is standing
