"""When a server is to be left alone, for whatever reason.

Owns the three judgements about one server being one answer, and finding out whether it needs any. Does not own the
judgements (`late_marking`, `arrivals`, `tidying`), and what is held back meanwhile (`poller`, `serving`, `outbox`).
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from uuid import UUID

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError
from worker.runs.arrivals import Arrivals
from worker.runs.in_flight import InFlight
from worker.runs.late_marking import LateMarking
from worker.runs.tidying import Tidying
from worker.runs.wake import Wake

COUNT_LIMIT = 1.0
COLLECT_LIMIT = 3.0
LEARN_TRIES = 3
LEARN_LIMIT = 20.0


class Sparing:
    """What is known of one server's troubles; one for the daemon's life.

    `cloud`: it is Prefect Cloud, which needs no sparing. `wake` is for whoever waits for the end of a pause: rung when
    that may come sooner by now. `monotonic` is a clock in seconds.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        in_flight: InFlight,
        cloud: bool,
        wake: Wake,
        monotonic: Callable[[], float],
    ) -> None:
        self._client = client
        self._wake = wake
        self._monotonic = monotonic
        self._cloud = cloud
        self.marking = LateMarking(count=partial(_count_unmarked, client, monotonic), monotonic=monotonic)
        self._tidying = Tidying(
            collect=partial(_collect_garbage, client, monotonic),
            marking=lambda: self.marking.goes_on,
            in_flight=lambda: len(in_flight),
            starting=lambda: in_flight.starting,
            monotonic=monotonic,
        )
        self.arrivals = Arrivals(retried=self._tidying.failed, monotonic=monotonic)
        self._log = structlog.get_logger()

    async def learn(self) -> None:
        """Find out whether the server has a database that needs no sparing; as long as that is not known, it does."""
        if self._cloud:
            return
        deadline = self._monotonic() + LEARN_LIMIT
        try:
            many_writers = await self._client.has_many_writers(max_tries=LEARN_TRIES, deadline=deadline)
        except ApiError as error:
            self._log.debug("server.database_unknown", reason=str(error))
            return
        if many_writers is None:
            self._log.debug("server.database_unknown", reason="it has not the block type that it is told by")
            return
        self._log.debug("server.database_known", many_writers=many_writers)
        if many_writers:
            self.marking.rule_out_harm()

    @property
    def tidying(self) -> Tidying | None:
        """What sees to the server's garbage; None where nobody has to."""
        return None if self._cloud else self._tidying

    @property
    def needless(self) -> bool:
        """Whether it is Prefect Cloud, or a server that is known to have many writers."""
        return self._cloud or self.marking.harmless

    def made(self, flow_run_id: UUID | None) -> None:
        """A run of our pool was made just now; None: it may have been."""
        if not self.needless:
            self.arrivals.heard(flow_run_id)

    def marked(self, flow_run_id: UUID | None) -> None:
        """A run of our pool was marked as Late just now; None: it may have been."""
        self.marking.heard(flow_run_id)
        if self.pause():
            # A round that has come is over sooner than one of which nobody knows when it will.
            self._wake.set()

    def failed(self) -> None:
        """A request of ours failed for too much work on the server's side."""
        self._tidying.failed()

    def pause(self) -> float:
        """For how many seconds nothing should be begun that makes the server write; 0 when there is no reason."""
        if self.needless:
            return 0.0
        return max(self.marking.pause(), self.arrivals.pause(), self._tidying.pause())


async def _count_unmarked(client: PrefectClient, monotonic: Callable[[], float], due_by: datetime) -> int:
    """Only good to know: asked once, and not waited for."""
    return await client.count_unmarked(due_by, max_tries=1, deadline=monotonic() + COUNT_LIMIT)


async def _collect_garbage(client: PrefectClient, monotonic: Callable[[], float]) -> None:
    """Only good to have: asked for once, and not waited for for long."""
    await client.collect_garbage(max_tries=1, deadline=monotonic() + COLLECT_LIMIT)
