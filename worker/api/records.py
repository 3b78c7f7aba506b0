"""Logs and events: the records that are written, and an event as the server gives it back.

Owns the JSON they are sent as and the reading of an event. It does not know when they are sent, or in what
batches (`worker.runs.outbox` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from worker.api.models import ServerModel, Timestamp


class ServerEvent(ServerModel):
    """An event the server has persisted."""

    id: UUID
    event: str
    occurred: Timestamp
    resource: dict[str, Any] = Field(default_factory=dict)
    related: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    payload: dict[str, Any] = Field(default_factory=dict, repr=False)
    follows: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One line of a run's log; `level` as in the logging module, `timestamp` aware."""

    name: str
    level: int
    message: str
    timestamp: datetime
    flow_run_id: UUID | None = None

    def to_json(self) -> dict[str, Any]:
        """The body; no other key, `worker_id` alone makes a server refuse the batch (PROTOCOL 2.9)."""
        body: dict[str, Any] = {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "timestamp": self.timestamp.isoformat(),
        }
        if self.flow_run_id is not None:
            body["flow_run_id"] = str(self.flow_run_id)
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """An event to emit; `resource` needs the key `prefect.resource.id` (PROTOCOL 2.10)."""

    id: UUID
    occurred: datetime
    event: str
    resource: Mapping[str, str]
    related: Sequence[Mapping[str, str]] = ()
    payload: Mapping[str, Any] = field(default_factory=dict[str, Any])
    follows: UUID | None = None

    def to_json(self) -> dict[str, Any]:
        """The body of this event."""
        body: dict[str, Any] = {
            "id": str(self.id),
            "occurred": self.occurred.isoformat(),
            "event": self.event,
            "resource": dict(self.resource),
            "related": [dict(resource) for resource in self.related],
            "payload": dict(self.payload),
        }
        if self.follows is not None:
            body["follows"] = str(self.follows)
        return body
