"""Every state transition the daemon proposes, one method each, with what the server's answers mean.

Owns the wording and judging of proposals (PROTOCOL 2.6). Deciding *which* transition is due is the
business of `conclusion` and `execution`.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import FlowRun, SetStateAnswer, StateType


@dataclass(frozen=True, slots=True)
class Claim:
    """A flow run that is ours: the server moved it from Scheduled to Pending on our proposal."""

    flow_run: FlowRun
    transition_id: UUID


@dataclass(frozen=True, slots=True)
class Lost:
    """A flow run that is not ours to run, and why."""

    reason: str


class States:
    """Proposes states to the server; one for the daemon's life, used by every execution."""

    def __init__(self, *, client: PrefectClient) -> None:
        self._client = client
        self._log = structlog.get_logger()

    async def claim(self, flow_run: FlowRun, *, transition_id: UUID | None = None) -> Claim | Lost:
        """Propose Pending; ours if the server accepted it, or says the current state is this very proposal.

        The name stays "Pending": under another name two workers could both win (PROTOCOL 2.6). The
        transition id is the same on every retry of the call, so an answer lost on the way does not lose
        the claim.
        """
        transition_id = transition_id or uuid4()
        try:
            answer = await self._client.set_state(
                flow_run.id, type=StateType.PENDING, name="Pending", transition_id=transition_id
            )
        except NotFound:
            return Lost("the run no longer exists")
        return judge_claim(answer, flow_run=flow_run, transition_id=transition_id)

    async def crash(self, flow_run_id: UUID, message: str) -> bool:
        """Propose Crashed; False when the run already has a final state, is being cancelled, or is gone."""
        return await self._propose(flow_run_id, StateType.CRASHED, message)

    async def cancel(self, flow_run_id: UUID, message: str, *, force: bool = False) -> bool:
        """Propose Cancelled; only when no process of the run is left: from Cancelled a late engine could
        still go to Running (PROTOCOL 5.1).
        """  # noqa: D205 - one sentence does not fit one line
        return await self._propose(flow_run_id, StateType.CANCELLED, message, force=force)

    async def give_back(self, claim: Claim, *, now: datetime) -> bool:
        """Return a claimed run that was never started, so that it is handed out again at once."""
        due = claim.flow_run.next_scheduled_start_time or now
        return await self._propose(
            claim.flow_run.id,
            StateType.SCHEDULED,
            "The worker stopped before the run was started.",
            scheduled_time=due,
        )

    async def _propose(
        self,
        flow_run_id: UUID,
        state_type: StateType,
        message: str,
        *,
        scheduled_time: datetime | None = None,
        force: bool = False,
    ) -> bool:
        try:
            answer = await self._client.set_state(
                flow_run_id,
                type=state_type,
                message=message,
                transition_id=uuid4(),
                scheduled_time=scheduled_time,
                force=force,
            )
        except NotFound:
            self._log.debug("flow_run.gone", proposed=state_type.value)
            return False
        if answer.state is None or answer.state.type is not state_type:
            self._log.debug(
                "flow_run.proposal_declined",
                proposed=state_type.value,
                status=answer.status.value,
                reason=answer.reason,
            )
            return False
        return True


def judge_claim(answer: SetStateAnswer, *, flow_run: FlowRun, transition_id: UUID) -> Claim | Lost:
    """Did we win? (PROTOCOL 2.6, race rule). Accepted, or the current Pending state carries our id."""
    state = answer.state
    if state is None:
        return Lost(f"the server answered {answer.status.value} without a state")
    if state.type is StateType.PENDING and answer.accepted:
        return Claim(flow_run=flow_run, transition_id=transition_id)
    return Lost(answer.reason or f"the run is now {state.name or state.type.value}")
