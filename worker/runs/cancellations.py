"""Asks the server which runs in flight are being cancelled, and tells their executions.

Polling is the guarantee: it works with every websocket blocked (PROTOCOL 5.4). A hint only makes the next
question come at once. It costs nothing while nothing is in flight.
"""

from uuid import UUID

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, ServerFault
from worker.api.models import StateType
from worker.runs.in_flight import InFlight
from worker.runs.wake import Wake

# After a hint: an event can be published before the state that it tells of is committed (PROTOCOL 5.3).
PAUSES_AFTER_HINT = (0.1, 0.4)


class Cancellations:
    """One question for all runs in flight, every `interval` seconds, and some soon after each hint.

    `wake` is for the loop that calls `check_once`: rung when the next question cannot wait.
    """

    def __init__(self, *, client: PrefectClient, in_flight: InFlight, interval: float) -> None:
        self._client = client
        self._in_flight = in_flight
        self._interval = interval
        self._log = structlog.get_logger()
        self._looks: int | None = None
        self.wake = Wake()

    def hint(self) -> None:
        """Somebody heard that a run of our pool is being cancelled, or may have missed hearing it."""
        if rings(self._looks):
            self.wake.set()
        self._looks = 0

    async def check_once(self) -> float:
        """Pass on each cancellation found; returns the seconds until the next look."""
        # Before the question: a hint that comes while it is under way wants one more.
        self._looks = None if self._looks is None else self._looks + 1
        ids = list(self._in_flight)
        if ids:
            for flow_run_id in await self._find(ids):
                execution = self._in_flight.get(flow_run_id)
                if execution is not None:
                    execution.cancel()
        if self._looks is not None and self._looks > len(PAUSES_AFTER_HINT):
            self._looks = None
        return next_look(self._looks, interval=self._interval)

    async def _find(self, ids: list[UUID]) -> list[UUID]:
        try:
            return [flow_run.id for flow_run in await self._client.cancelling_flow_runs(ids)]
        except ServerFault as error:
            # One run the server cannot read spoils every answer that includes it (PROTOCOL 2.8).
            self._log.debug("cancellations.one_by_one", reason=str(error))
        return [flow_run_id for flow_run_id in ids if await self._is_cancelling(flow_run_id)]

    async def _is_cancelling(self, flow_run_id: UUID) -> bool:
        try:
            flow_run = await self._client.read_flow_run(flow_run_id, max_tries=1)
        except ApiError as error:
            self._log.debug("cancellations.unreadable", flow_run_id=str(flow_run_id), reason=str(error))
            return False
        return flow_run.state_type is StateType.CANCELLING


def next_look(looks: int | None, *, interval: float) -> float:
    """Seconds until the next look, `looks` looks after the last hint; None: there was none, or long ago."""
    if looks is None or looks > len(PAUSES_AFTER_HINT):
        return interval
    return min(interval, PAUSES_AFTER_HINT[max(0, looks - 1)])


def rings(looks: int | None) -> bool:
    """Whether a hint ends the current wait, `looks` looks after the hint before it.

    Not when the next look is due at once anyway: a flood of cancellations in the pool is no flood of questions.
    """
    return looks is None or looks > 1
