"""Those who look at the daemon from outside: HTTP probes and scrapes, and the service manager.

Owns what they are shown: `look` and `snapshot` read the daemon's parts and change nothing. Does not own the judgement
(`health`), the formats (`exposition`, `sd_notify`), and the life of the daemon. With neither of them, nothing here runs.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog

from worker import __version__, health
from worker.going_online import utc_now
from worker.health import BEAT, Readiness, readiness
from worker.options import Options
from worker.parts import Parts
from worker.processes.memory import MemorySampler
from worker.runs.journal_entry import Phase
from worker.sd_notify import ServiceManager
from worker.settings import Settings
from worker.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.exposition import Exposition, Seen

# Within so many seconds the daemon speaks again; only then may a start or a stop take longer than the unit allows.
EXTENSION: Final = 60.0


class Observers:
    """What the daemon shows; one for its life. `monotonic` is a clock in seconds that every thread may read."""

    def __init__(
        self,
        *,
        options: Options,
        settings: Settings,
        parts: Parts,
        shutdown: Shutdown,
        manager: ServiceManager,
        monotonic: "Callable[[], float]",
    ) -> None:
        self._options = options
        self._settings = settings.worker
        self._parts = parts
        self._shutdown = shutdown
        self._manager = manager
        self._monotonic = monotonic
        self._memory = MemorySampler(monotonic=monotonic)
        self._exposition: Exposition | None = None
        self._began = utc_now()
        self._beat = monotonic()
        self._online = False
        self._status = ""

    @property
    def watch(self) -> bool:
        """Whether anybody looks."""
        return self._options.with_healthcheck or self._manager.listens

    def online(self) -> None:
        """The pool is reached, and the worker is shown online."""
        self._online = True
        self._tell(READY="1")

    def stopping(self) -> None:
        """Nothing is claimed any more."""
        self._tell(STOPPING="1", **self._extension())

    async def beat_once(self) -> float:
        """Show that the event loop turns; returns the seconds until the next time.

        The service manager is told so, too: a daemon whose loop hangs is silent, and is restarted. One that waits for
        the server, or for its last runs, is well, and may take longer for it than the unit says.
        """
        self._beat = self._monotonic()
        watchdog = self._manager.watchdog
        signs = {} if watchdog is None else {"WATCHDOG": "1"}
        self._tell(**signs, **self._extension())
        return BEAT if watchdog is None else min(BEAT, watchdog / 2)

    def _extension(self) -> dict[str, str]:
        if self._online and not self._shutdown.draining:
            return {}
        return {"EXTEND_TIMEOUT_USEC": str(int(EXTENSION * 1_000_000))}

    def _tell(self, **fields: str) -> None:
        status = self._describe()
        if status != self._status:
            fields["STATUS"] = self._status = status
        if fields:
            self._manager.tell(fields)

    def _describe(self) -> str:
        """One line for `systemctl status`."""
        pool, in_flight = self._options.pool, self._parts.in_flight
        runs = "1 run" if len(in_flight) == 1 else f"{len(in_flight)} runs"
        if self._shutdown.draining:
            return f"Draining work pool '{pool}': {runs} in flight"
        if not self._online:
            return f"Connecting to {self._parts.client.transport.url} for work pool '{pool}'"
        slots = "no limit" if in_flight.limit is None else f"{in_flight.free} of {in_flight.limit} slots free"
        away = "; the server does not answer" if self._parts.client.transport.outage.announced else ""
        return f"Serving work pool '{pool}': {runs} in flight, {slots}{away}"

    def snapshot(self) -> health.Snapshot:
        """What health is judged by."""
        draining = self._shutdown.draining
        last = self._parts.pool.last_beat if draining else self._parts.poller.last_polled
        return health.Snapshot(
            last_contact=last or self._began,
            draining=draining,
            poll_interval=max(
                self._settings.query_seconds, self._settings.heartbeat_seconds if draining else 0
            ),
            online=self._online,
            silent=self._monotonic() - self._beat,
        )

    def look(self) -> "Seen":
        """What the metrics show now."""
        from worker.exposition import Seen  # noqa: PLC0415 - only who is asked for metrics pays for them

        parts, snapshot = self._parts, self.snapshot()
        transport, in_flight = parts.client.transport, parts.in_flight
        leaders = {
            str(entry.flow_run_id): entry.process
            for entry in parts.journal.entries()
            if entry.phase is Phase.LAUNCHED and entry.process is not None
        }
        return Seen(
            version=__version__,
            work_pool=self._options.pool,
            worker=self._options.name,
            ready=readiness(snapshot, now=utc_now()) is Readiness.READY,
            draining=snapshot.draining,
            last_contact=parts.pool.last_beat if snapshot.draining else parts.poller.last_polled,
            slots=in_flight.limit,
            free=in_flight.free,
            in_flight=len(in_flight),
            starting=in_flight.starting,
            starting_allowed=parts.pacing.allowed,
            reachable=not transport.outage.announced,
            outage_seconds=transport.outage.seconds,
            api_requests=transport.requests,
            api_errors=transport.errors,
            run_memory=self._memory.sample(leaders),
            metrics=parts.metrics,
        )

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics, in the format asked for, and its content type."""
        if self._exposition is None:
            from worker.exposition import Exposition  # noqa: PLC0415 - same

            self._exposition = Exposition(self.look)
        return self._exposition.render(accept)

    @contextmanager
    def serving(self) -> Generator[None]:
        """Serve health and metrics while the context lasts, if asked for. Raises HealthServerError."""
        if not self._options.with_healthcheck:
            yield
            return
        host, port = self._settings.webserver_host, self._settings.webserver_port
        server = health.serve(host=host, port=port, snapshot=self.snapshot, now=utc_now, scrape=self.scrape)
        with server as in_use:
            structlog.get_logger().info("health.serving", host=host, port=in_use)
            yield
