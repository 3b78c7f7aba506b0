"""Asks the server which runs in flight are being cancelled, and tells their executions.

Polling is the guarantee: it works with every websocket blocked (PROTOCOL 5.4). It costs nothing while
nothing is in flight.
"""

import structlog

from worker.api.client import PrefectClient
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
            for flow_run in await self._client.cancelling_flow_runs(ids):
                execution = self._in_flight.get(flow_run.id)
                if execution is not None:
                    execution.cancel()
        return self._interval
