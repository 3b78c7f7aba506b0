"""Logs and events: sending them, and looking for persisted events (PROTOCOL 2.9, 2.10).

Owns paths and bodies of whole batches; one record's JSON is `records.py`, the batching `worker.runs.outbox`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from worker.api.connection import path
from worker.api.endpoints import Endpoints
from worker.api.records import LogRecord, ServerEvent, WorkerEvent
from worker.api.transport import Patience


class RecordEndpoints(Endpoints):
    """The calls about logs and events."""

    async def create_logs(self, records: Sequence[LogRecord], **patience: Unpack[Patience]) -> None:
        """Append to the logs of runs, all in one call; a few hundred at a time (PROTOCOL 2.9)."""
        if records:
            body = [record.to_json() for record in records]
            await self._post(path("logs", ""), f"send {len(body)} log records", body, patience)

    async def create_events(self, events: Sequence[WorkerEvent], **patience: Unpack[Patience]) -> None:
        """Emit events."""
        if events:
            body = [event.to_json() for event in events]
            await self._post(path("events"), f"send {len(body)} events", body, patience)

    async def filter_events(
        self, criteria: Mapping[str, Any], limit: int = 50, **patience: Unpack[Patience]
    ) -> list[ServerEvent]:
        """Persisted events that match the filter `criteria`, at most `limit`; up to 5 s behind (PROTOCOL 2.10)."""
        operation = "look for events"
        answer = await self._post(
            path("events", "filter"), operation, {"filter": dict(criteria), "limit": limit}, patience
        )
        return self._read_each(
            ServerEvent, self._list(self._object(answer, operation).get("events"), operation), operation
        )
