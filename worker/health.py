"""Health over HTTP: `GET /health`, as `prefect worker start --with-healthcheck` serves it, and `GET /ready`.

Healthy is who should not be restarted, ready is who takes new runs: a draining daemon is the one and not the other.
Reads a snapshot of plain values through a function; changes nothing and waits for nothing, so it is served from
a thread of its own (`health_server.py`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

# Prefect's worker counts as healthy while its last poll is younger than this many poll intervals
# (PROTOCOL 8).
POLL_INTERVALS = 30


class HealthServerError(Exception):
    """The health endpoint cannot be served; the message names the address and the fix."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What health is judged by: when the daemon last had the server's answer to its regular question.

    That is the last poll; while draining, when nothing is asked for, the last heartbeat.
    """

    last_contact: datetime
    poll_interval: float
    draining: bool = False


def is_healthy(snapshot: Snapshot, *, now: datetime) -> bool:
    """Whether the daemon still asks for work: a pure function of time."""
    return now - snapshot.last_contact <= timedelta(seconds=snapshot.poll_interval * POLL_INTERVALS)


@contextmanager
def serve(
    *, host: str, port: int, snapshot: Callable[[], Snapshot], now: Callable[[], datetime]
) -> Generator[int]:
    """Serve while the context lasts; yields the port in use. Raises HealthServerError when it is taken."""
    from worker import health_server  # noqa: PLC0415 - few daemons serve health, and all of them start

    with health_server.serve(host=host, port=port, snapshot=snapshot, now=now) as in_use:
        yield in_use
