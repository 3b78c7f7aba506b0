"""Health over HTTP: who should be restarted, who takes new runs, and the metrics.

`GET /health` is what `prefect worker start --with-healthcheck` serves. `/livez` is about this process alone: its event
loop turns. `/readyz` is about new runs: the daemon is online, not draining, and in contact with the server.
Judges a snapshot of plain values; changes nothing and waits for nothing, so it is served from a thread of its own
(`health_server.py`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# Prefect's worker counts as healthy while its last poll is younger than this many poll intervals
# (PROTOCOL 8).
POLL_INTERVALS = 30
# How often the event loop shows that it turns, in seconds.
BEAT = 5.0
# How long it may show nothing, in seconds. A slow disk can hold it up for a while; restarting would not help that.
LONGEST_SILENCE = 30.0


class HealthServerError(Exception):
    """The health endpoint cannot be served; the message names the address and the fix."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What health is judged by.

    `last_contact` is when the daemon last had the server's answer to its regular question: that is the last poll;
    while draining, when nothing is asked for, the last heartbeat. Before the first it is when the daemon began.
    `silent` is for how many seconds the event loop has not had its turn. `online`: the work pool was reached.
    """

    last_contact: datetime
    poll_interval: float
    draining: bool = False
    online: bool = True
    silent: float = 0.0


class Readiness(StrEnum):
    """Whether new runs are taken, and if not, why; `OK` is spelt as stock's `/health` has it."""

    READY = "OK"
    STARTING = "starting"
    DRAINING = "draining"
    OUT_OF_CONTACT = "out of contact with the server"
    HANGING = "hanging"


def is_healthy(snapshot: Snapshot, *, now: datetime) -> bool:
    """Whether the daemon still asks for work: a pure function of time."""
    return now - snapshot.last_contact <= timedelta(seconds=snapshot.poll_interval * POLL_INTERVALS)


def is_alive(snapshot: Snapshot) -> bool:
    """Whether the event loop turns. An outage of the server is no reason to restart: the daemon waits it out."""
    return snapshot.silent <= LONGEST_SILENCE


def readiness(snapshot: Snapshot, *, now: datetime) -> Readiness:
    """Whether the daemon takes new runs."""
    if not is_alive(snapshot):
        return Readiness.HANGING
    if snapshot.draining:
        return Readiness.DRAINING
    if not snapshot.online:
        return Readiness.STARTING
    return Readiness.READY if is_healthy(snapshot, now=now) else Readiness.OUT_OF_CONTACT


Scrape = Callable[[str], tuple[bytes, str]]
"""From an Accept header to the metrics and their content type."""


@contextmanager
def serve(
    *, host: str, port: int, snapshot: Callable[[], Snapshot], now: Callable[[], datetime], scrape: Scrape
) -> Generator[int]:
    """Serve while the context lasts; yields the port in use. Raises HealthServerError when it is taken."""
    from worker import health_server  # noqa: PLC0415 - few daemons serve health, and all of them start

    with health_server.serve(host=host, port=port, snapshot=snapshot, now=now, scrape=scrape) as in_use:
        yield in_use
