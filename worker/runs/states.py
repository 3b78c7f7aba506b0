"""The state transitions that end or undo an attempt: Crashed, Cancelled, Scheduled again.

Owns the wording of proposals and what the server's answers mean (PROTOCOL 2.6). Claiming is `claims`'; which
transition is due is decided in `conclusion` and `execution`.
"""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid4

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import StateType

AWAITING_RETRY = "AwaitingRetry"


class States:
    """Proposes states to the server; one for the daemon's life, used by every execution.

    `redact` masks secrets: a state's message is kept by the server and shown to everybody.
    """

    def __init__(self, *, client: PrefectClient, redact: Callable[[str], str]) -> None:
        self._client = client
        self._redact = redact
        self._log = structlog.get_logger()

    async def crash(self, flow_run_id: UUID, message: str) -> bool:
        """Propose Crashed; False when the run already has a final state, is being cancelled, or is gone."""
        return await self._propose(flow_run_id, StateType.CRASHED, message)

    async def cancel(self, flow_run_id: UUID, message: str, *, force: bool = False) -> bool:
        """Propose Cancelled, False if it is not.

        Only when no process of the run is left: a late engine could still take it to Running (PROTOCOL 5.1).
        """
        return await self._propose(flow_run_id, StateType.CANCELLED, message, force=force)

    async def give_back(self, flow_run_id: UUID, message: str, *, due: datetime) -> bool:
        """Return a claimed run that was never started, so that it is handed out again; False if it is not."""
        return await self._propose(flow_run_id, StateType.SCHEDULED, message, scheduled_time=due)

    async def reschedule(self, flow_run_id: UUID, message: str, *, due: datetime) -> bool:
        """Schedule a run again whose process was ended before it had finished; False if it is not (PROTOCOL 7)."""
        return await self._propose(
            flow_run_id, StateType.SCHEDULED, message, name=AWAITING_RETRY, scheduled_time=due
        )

    async def _propose(
        self,
        flow_run_id: UUID,
        state_type: StateType,
        message: str,
        *,
        name: str | None = None,
        scheduled_time: datetime | None = None,
        force: bool = False,
    ) -> bool:
        try:
            answer = await self._client.set_state(
                flow_run_id,
                type=state_type,
                name=name,
                message=self._redact(message),
                transition_id=uuid4(),
                scheduled_time=scheduled_time,
                force=force,
            )
        except NotFound:
            self._log.debug("flow_run.gone", proposed=state_type.value)
            return False
        if not answer.accepted:
            self._log.debug(
                "flow_run.proposal_declined",
                proposed=state_type.value,
                status=answer.status.value,
                reason=answer.reason,
            )
        return answer.accepted
