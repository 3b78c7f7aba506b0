"""Asks the server which runs in flight are being cancelled, and tells their executions.

Polling is the guarantee: it works with every websocket blocked (PROTOCOL 5.4). It costs nothing while
nothing is in flight.
"""

from uuid import UUID

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, ServerFault
from worker.api.models import StateType
from worker.runs.in_flight import InFlight


class Cancellations:
    """One question for all runs in flight, every `interval` seconds."""

    def __init__(self, *, client: PrefectClient, in_flight: InFlight, interval: float) -> None:
        self._client = client
        self._in_flight = in_flight
        self._interval = interval
        self._log = structlog.get_logger()

    async def check_once(self) -> float:
        """Pass on each cancellation found; returns the seconds until the next look."""
        ids = list(self._in_flight)
        if ids:
            for flow_run_id in await self._find(ids):
                execution = self._in_flight.get(flow_run_id)
                if execution is not None:
                    execution.cancel()
        return self._interval

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
