"""Log lines, events and labels for the server: handed over at once, sent in the background.

What Prefect's worker writes into a run's log and emits as events, this daemon does too, so the run's page
and the worker's page in Prefect's UI look as ever. Nothing here decides anything, so nothing here may hold
up a run: records wait in a bounded queue and go out in batches, and when the server stays away the oldest
are dropped with a warning. Flow output is not sent (the flow's own logger does that).

Labels wait longest: a server on SQLite reads before it writes them and refuses every second one while runs begin and
end, at the risk of standing still (docs/performance.md). They go out when nothing is in flight, or when the run goes on;
on a server with many writers they only make room for what is more urgent.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import anyio
import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotFound
from worker.api.records import LogRecord, WorkerEvent

LOGGER_NAME = "prefect.flow_runs.worker"
_QUEUE_LIMIT = 10_000
_BATCH = 200
# How long labels wait for a time when there is nothing else to do, and how long everything waits for the server, in seconds.
_LABELS_PATIENCE = 300.0
_LABELS_PATIENCE_MANY_WRITERS = 30.0
_HELD_INTERVAL = 0.5
# Prefect's own PREFECT_LOGGING_TO_API_BATCH_SIZE (PROTOCOL 2.9).
_BATCH_BYTES = 4_000_000

INFO = 20
WARNING = 30
ERROR = 40


@dataclass(frozen=True, slots=True)
class RunLog:
    """Writes lines into one run's log; made when its execution begins."""

    flow_run_id: UUID
    outbox: "Outbox"

    def info(self, message: str) -> None:
        """Something the run's owner may want to know."""
        self.outbox.log(self.flow_run_id, INFO, message)

    def warning(self, message: str) -> None:
        """Something that is probably not as the run's owner meant it."""
        self.outbox.log(self.flow_run_id, WARNING, message)

    def error(self, message: str) -> None:
        """Why the run did not go well."""
        self.outbox.log(self.flow_run_id, ERROR, message)


@dataclass(frozen=True, slots=True)
class _Label:
    flow_run_id: UUID
    labels: Mapping[str, str]
    since: float


class Outbox:
    """Log records and events on their way to the server; one for the daemon's life.

    `flush_once` is the step the daemon's loop repeats every `interval` seconds; `max_message` is the most bytes
    one record may have (PROTOCOL 2.9), `enabled` the user's PREFECT_LOGGING_TO_API_ENABLED. `redact` masks
    secrets: what is in a run's log on the server is there for everybody. `calm`: nothing is in flight or waits to be. `hold`: for how
    many seconds the server had better be left alone. `many_writers`: its database is known to have them. `monotonic` is a
    clock in seconds.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        now: Callable[[], datetime],
        redact: Callable[[str], str],
        enabled: bool = True,
        max_message: int = 1_000_000,
        interval: float = 2.0,
        calm: Callable[[], bool] = lambda: True,
        hold: Callable[[], float] = lambda: 0.0,
        many_writers: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._client = client
        self._now = now
        self._enabled = enabled
        self._max_message = max_message
        self._redact = redact
        self._interval = interval
        self._records: deque[LogRecord] = deque()
        self._events: deque[WorkerEvent] = deque()
        self._calm = calm
        self._hold = hold
        self._many_writers = many_writers
        self._monotonic = monotonic
        self._labels: deque[_Label] = deque()
        self._urgent_labels: deque[_Label] = deque()
        self._log = structlog.get_logger()
        self._degraded = False
        self._sending = anyio.Lock()

    def log(self, flow_run_id: UUID, level: int, message: str) -> None:
        """Queue one line for the run's log."""
        if not self._enabled:
            return
        self._make_room(self._records, "logs")
        self._records.append(
            LogRecord(
                name=LOGGER_NAME,
                level=level,
                message=_cut(self._redact(message), self._max_message),
                timestamp=self._now(),
                flow_run_id=flow_run_id,
            )
        )

    def emit(
        self,
        event: str,
        *,
        resource: Mapping[str, str],
        related: Sequence[Mapping[str, str]],
        follows: UUID | None = None,
    ) -> UUID:
        """Queue one event (PROTOCOL 2.10) and return its id, for a later one to follow."""
        event_id = uuid4()
        self._make_room(self._events, "events")
        self._events.append(
            WorkerEvent(
                id=event_id,
                occurred=self._now(),
                event=event,
                resource=dict(resource),
                related=[dict(one) for one in related],
                payload={},
                follows=follows,
            )
        )
        return event_id

    def label(self, flow_run_id: UUID, labels: Mapping[str, str]) -> None:
        """Queue labels to be merged into those of a run (PROTOCOL 2.8)."""
        self._make_room(self._labels, "labels")
        self._labels.append(_Label(flow_run_id, dict(labels), self._monotonic()))

    def hurry_labels(self, flow_run_id: UUID) -> None:
        """The labels of this run are to wait no longer."""
        waiting, self._labels = self._labels, deque()
        for label in waiting:
            (self._urgent_labels if label.flow_run_id == flow_run_id else self._labels).append(label)

    async def flush_once(self, *, last: bool = False) -> float:
        """Send what is waiting; returns the seconds until the next look. `last`: there will be no other time.

        A batch the server does not take is dropped, with one warning per spell.
        """
        if self._hold() and not last:
            return _HELD_INTERVAL
        async with self._sending:
            while self._records:
                batch = self._next_batch()
                await self._deliver("logs", len(batch), lambda batch=batch: self._client.create_logs(batch))
            while self._events:
                events = [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]
                await self._deliver(
                    "events", len(events), lambda events=events: self._client.create_events(events)
                )
            while self._urgent_labels or (self._labels and (last or self._time_for(self._labels[0]))):
                label = (self._urgent_labels or self._labels).popleft()
                send = partial(self._client.update_flow_run_labels, label.flow_run_id, label.labels)
                await self._deliver("labels", 1, send)
        return self._interval

    def abandon(self, reason: str) -> None:
        """Say what is lost, as there will be no other time."""
        waiting = {
            "logs": len(self._records),
            "events": len(self._events),
            "labels": len(self._labels) + len(self._urgent_labels),
        }
        for what, count in waiting.items():
            if count:
                self._log.warning("outbox.dropped", what=what, count=count, reason=reason)

    def _time_for(self, label: "_Label") -> bool:
        patience = _LABELS_PATIENCE_MANY_WRITERS if self._many_writers() else _LABELS_PATIENCE
        return self._calm() or self._monotonic() - label.since >= patience

    def _next_batch(self) -> list[LogRecord]:
        """The oldest records, as many as one call should carry: at least one."""
        batch = [self._records.popleft()]
        size = len(batch[0].message.encode("utf-8", errors="replace"))
        while self._records and len(batch) < _BATCH:
            size += len(self._records[0].message.encode("utf-8", errors="replace"))
            if size > _BATCH_BYTES:
                break
            batch.append(self._records.popleft())
        return batch

    def _make_room(self, queue: deque[Any], what: str) -> None:
        """Drop the oldest when the server has not taken anything for very long."""
        if len(queue) >= _QUEUE_LIMIT:
            queue.popleft()
            if not self._degraded:
                self._log.warning("outbox.dropped", what=what, reason="too many are waiting to be sent")
            self._degraded = True

    async def _deliver(self, what: str, count: int, send: Callable[[], Any]) -> None:
        try:
            await send()
        except NotFound:
            # Only labels name an object that may be gone: a run deleted meanwhile.
            self._log.debug("outbox.moot", what=what)
        except ApiError as error:
            level = self._log.debug if self._degraded else self._log.warning
            level("outbox.dropped", what=what, count=count, reason=str(error))
            self._degraded = True
        else:
            if self._degraded:
                self._log.info("outbox.recovered", what=what)
            self._degraded = False


def _cut(message: str, limit: int) -> str:
    encoded = message.encode("utf-8", errors="replace")
    if len(encoded) <= limit:
        return message
    # Room for the JSON around the text and for the note itself.
    return encoded[: max(0, limit - 1024)].decode("utf-8", errors="ignore") + "... [truncated]"
