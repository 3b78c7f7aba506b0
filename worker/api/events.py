"""Listens to the server's events, and rings bells: something may have happened, go and look.

Owns the subscription to `/events/out` (PROTOCOL 5.2) and when to try it again. Events carry no decisions:
they can be dropped, doubled, late, or early (PROTOCOL 5.3), so whoever is woken asks over REST, and asks
now and then without being woken. That is why a lost connection is nobody's trouble and no warning.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast
from uuid import UUID

import anyio
import httpx
import structlog

from worker.api.connection import base_url, ca_source, path
from worker.api.errors import backoff, explain
from worker.api.transport import Transport
from worker.api.websocket import Disconnected, NotUpgraded, WebSocket, connect
from worker.settings import ApiSettings

FLOW_RUN_CANCELLING: Final = "prefect.flow-run.Cancelling"
FLOW_RUN_SCHEDULED: Final = "prefect.flow-run.Scheduled"
FLOW_RUN_CLAIMABLE: Final = (
    FLOW_RUN_SCHEDULED,
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.Resuming",
    "prefect.work-pool.updated",
    "prefect.work-pool.ready",
    "prefect.work-queue.ready",
)
"""After these a run of the pool may have become claimable (PROTOCOL 5.3).

Not AwaitingConcurrencySlot: such a run is due half a minute later, and polling finds it.
"""
FLOW_RUN_ENDED: Final = tuple(
    f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled")
)
"""The usual names of final states; a flow may give its own others, which polling finds."""
FLOW_RUN_LATE: Final = "prefect.flow-run.Late"
DEPLOYMENT_CHANGED: Final = ("prefect.deployment.created", "prefect.deployment.updated")
"""After these the server's scheduler may soon make runs, which no event tells of."""

STEADY_SECONDS: Final = 30.0
"""A connection that has lived this long was a good one."""
RARELY_SECONDS: Final = 300.0
"""About how long to leave a server alone that will not have us."""
NO_POOL_SECONDS: Final = 1.0
ANNOUNCED_FAILURES: Final = 5
"""Failures in a row, while the REST API answers, after which it is said that events do not come."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The flow run that an event is about, and its deployment; None for any other event, and when some may have been missed."""

    flow_run_id: UUID | None = None
    deployment_id: UUID | None = None


Bell = Callable[[Heard], None]

SUBPROTOCOL: Final = "prefect"
# Without an end nothing live arrives; within the range of 32-bit times, whatever the server stores them in.
_UNTIL: Final = "2100-01-01T00:00:00Z"
_FIRST_BACKOFF: Final = 3
_POLICY_VIOLATION: Final = 1008
_PROTOCOL_ERROR: Final = 1002
# A plain HTTP answer that another try may not get: the server is starting, or busy.
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class EventStream:
    """The daemon's one subscription: the events of its work pool whose names have a bell.

    `bells` are rung from `listen_once`, all of them at every new connection, because events may have been
    missed before. `work_pool_id` is asked now and then, as a pool can be deleted and made anew. `random`
    gives numbers in [0, 1), `monotonic` is a clock in seconds.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        settings: ApiSettings,
        work_pool_id: Callable[[], UUID | None],
        bells: Mapping[str, Bell],
        random: Callable[[], float],
        monotonic: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._url = str(base_url(settings)).rstrip("/") + path("events", "out")
        self._work_pool_id = work_pool_id
        self._bells = dict(bells)
        self._random = random
        self._monotonic = monotonic
        self._log = structlog.get_logger()
        self._failures = 0
        self._unexplained = 0
        self._announced = False

    async def listen_once(self) -> float:
        """Connect, subscribe, and ring until the connection ends; returns the seconds until the next try.

        Raises nothing the network or the server can cause.
        """
        pool = self._work_pool_id()
        if pool is None:
            return NO_POOL_SECONDS
        try:
            async with connect(self._transport.http, self._url, subprotocol=SUBPROTOCOL) as websocket:
                await self._subscribe(websocket, pool)
                self._log.debug("push.connected")
                self._ring_all()
                await self._ring_until_moved(websocket, pool)
        except NotUpgraded as error:
            return self._failed(str(error), for_good=not passing(error.status))
        except Disconnected as error:
            return self._failed(str(error), for_good=error.code in {_POLICY_VIOLATION, _PROTOCOL_ERROR})
        except httpx.TransportError as error:
            return self._failed(explain(error, ca_source=ca_source(self._settings)), for_good=False)
        self._log.debug("push.disconnected", reason="the work pool is another one now")
        return 0.0

    async def _subscribe(self, websocket: WebSocket, pool: UUID) -> None:
        limit = self._settings.request_timeout
        with anyio.move_on_after(limit) as scope:
            await authenticate(websocket, self._settings)
            await websocket.send(json.dumps(subscription(pool, names=tuple(self._bells))))
        if scope.cancelled_caught:
            raise Disconnected(f"no answer to the credentials within {limit:g} s")

    async def _ring_until_moved(self, websocket: WebSocket, pool: UUID) -> None:
        """Ring for each event, for as long as the pool is the one we have subscribed to."""
        began = self._monotonic()
        while self._work_pool_id() == pool:
            for text in await websocket.receive():
                self._ring(text)
            if self._monotonic() - began >= STEADY_SECONDS:
                self._steady()

    def _ring(self, text: str) -> None:
        match decoded(text):
            case {"type": "event", "event": {"event": str(name), **event}}:
                bell = self._bells.get(name)
                if bell is not None:
                    self._log.debug("push.event", name=name, resource=resource_id(event))
                    bell(Heard(flow_run_of(event), deployment_of(event)))
            case _:
                # Too large, or of a form we do not know: it may have been anything.
                self._log.debug("push.unreadable")
                self._ring_all()

    def _ring_all(self) -> None:
        for bell in dict.fromkeys(self._bells.values()):
            bell(Heard())

    def _steady(self) -> None:
        self._failures = self._unexplained = 0
        if self._announced:
            self._announced = False
            self._log.info("push.recovered")

    def _failed(self, reason: str, *, for_good: bool) -> float:
        """Note the end of a connection, or that there was none; returns the seconds until the next try."""
        self._failures += 1
        # While REST does not get through either, `api.unreachable` has said all there is to say.
        self._unexplained = 0 if self._transport.outage.announced else self._unexplained + 1
        delay = pause(self._failures, for_good=for_good, random=self._random)
        self._log.debug("push.disconnected", reason=reason, next_seconds=round(delay, 3))
        if not self._announced and (for_good or self._unexplained >= ANNOUNCED_FAILURES):
            self._announced = True
            self._log.info(
                "push.unavailable",
                reason=reason,
                hint="nothing is lost: what the events would have told at once is found by polling",
            )
        return delay


async def authenticate(websocket: WebSocket, settings: ApiSettings) -> None:
    """Show our credentials and wait until they are accepted (PROTOCOL 5.2). Raises Disconnected."""
    await websocket.send(json.dumps({"type": "auth", "token": token(settings)}))
    while True:
        for text in await websocket.receive():
            match decoded(text):
                case {"type": "auth_success"}:
                    return
                case _:
                    raise Disconnected("the credentials were answered with something else")


def passing(status: int) -> bool:
    """Whether a handshake answered with this HTTP status may soon be answered otherwise."""
    return status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def pause(failures: int, *, for_good: bool, random: Callable[[], float]) -> float:
    """Seconds before the next connection, after so many failures in a row: 0.8, 1.6, … 30, half of each random.

    `for_good`: the server has answered, and its answer will be the same; only an operator can change it.
    """
    if for_good:
        return RARELY_SECONDS * (0.75 + 0.5 * random())
    return backoff(_FIRST_BACKOFF + failures, random)


def subscription(pool: UUID, *, names: tuple[str, ...]) -> dict[str, Any]:
    """The frame that asks for what happens from now on to anything of that pool (PROTOCOL 5.2, 5.3)."""
    return {
        "type": "filter",
        "filter": {
            "occurred": {"until": _UNTIL},
            "event": {"name": list(names)},
            "any_resource": {"id": [f"prefect.work-pool.{pool}"]},
        },
        "backfill": False,
    }


def token(settings: ApiSettings) -> str | None:
    """What the auth frame carries: the API key on Cloud, else the auth string as it is (PROTOCOL 5.2)."""
    key = settings.key.get_secret_value().strip() if settings.key is not None else None
    if settings.is_cloud and key:
        return key
    if settings.auth_string is not None:
        return settings.auth_string.get_secret_value().strip()
    url = httpx.URL((settings.url or "").strip())
    return key or (f"{url.username}:{url.password}" if url.userinfo else None)


def resource_id(event: Mapping[str, Any]) -> str | None:
    """What the event is about, for the log."""
    match event:
        case {"resource": {"prefect.resource.id": str(resource)}}:
            return resource
        case _:
            return None


def flow_run_of(event: Mapping[str, Any]) -> UUID | None:
    """The flow run that the event is about, if it is about one (PROTOCOL 5.3)."""
    return _id_of(resource_id(event), "flow-run")


def deployment_of(event: Mapping[str, Any]) -> UUID | None:
    """The deployment of the flow run that the event is about, which it names as related (PROTOCOL 5.3)."""
    related = event.get("related")
    if not isinstance(related, list):
        return None
    ids = (_id_of(resource_id({"resource": one}), "deployment") for one in cast("list[Any]", related))
    return next(filter(None, ids), None)


def _id_of(resource: str | None, kind: str) -> UUID | None:
    prefix = f"prefect.{kind}."
    try:
        return UUID(resource.removeprefix(prefix)) if resource and resource.startswith(prefix) else None
    except ValueError:
        return None


def decoded(text: str) -> Any:
    """The JSON value of a frame; None for text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
