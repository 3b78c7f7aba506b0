"""Asks the server which runs in flight are being cancelled or have ended, and says so to whom it concerns.

Polling is the guarantee: it works with every websocket blocked (PROTOCOL 5.4). A hint only makes the next
question come sooner. It costs nothing while nothing is in flight.
"""

from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, ServerFault
from worker.api.models import FlowRun, StateType
from worker.runs.in_flight import InFlight
from worker.runs.wake import Wake

# After a hint: an event can be published before the state that it tells of is committed (PROTOCOL 5.3).
PAUSES_AFTER_HINT = (0.1, 0.4)
# The same, for a run's end: the slot that it frees is worth one question, not three.
PAUSE_AFTER_END = 0.03


class Cancellations:
    """One question for all runs in flight, every `interval` seconds, and some soon after each hint.

    When only ends were heard of, it is about those runs alone. `monotonic` is a clock in seconds. `wake` is for the loop that calls `check_once`: rung when the next question cannot wait. A run that has ended gives
    its slot back (`InFlight.conclude`), although its process may take another second to go.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        in_flight: InFlight,
        interval: float,
        sleep: Callable[[float], Awaitable[None]],
        monotonic: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._client = client
        self._in_flight = in_flight
        self._interval = interval
        self._sleep = sleep
        self._monotonic = monotonic
        self._ended: set[UUID] = set()
        self._next_look = float("-inf")
        self._log = structlog.get_logger()
        self._looks: int | None = None
        self.wake = Wake()

    def hint(self, _flow_run_id: UUID | None = None) -> None:
        """Somebody heard that a run of our pool is being cancelled, or may have missed hearing it."""
        if rings(self._looks):
            self.wake.set()
        self._looks = 0

    def hint_end(self, flow_run_id: UUID | None = None) -> None:
        """Somebody heard that this run has ended, or may have missed hearing of some run."""
        unconcluded = self._in_flight.unconcluded
        concerned = [run for run in unconcluded if flow_run_id in {None, run}]
        if concerned and not self._ended:
            self.wake.set()
        self._ended.update(concerned)

    async def check_once(self) -> float:
        """Pass on what is found; returns the seconds until the next look."""
        if self._ended and self._looks is None:
            await self._sleep(PAUSE_AFTER_END)
        # Before the question: a hint that comes while it is under way wants one more.
        ended, self._ended = self._ended, set()
        now = self._monotonic()
        if ended and self._looks is None and now < self._next_look:
            await self._look([run for run in self._in_flight.unconcluded if run in ended])
            return max(0.0, self._next_look - now)
        self._looks = None if self._looks is None else self._looks + 1
        self._next_look = now + self._interval
        await self._look(self._in_flight.unconcluded)
        if self._looks is not None and self._looks > len(PAUSES_AFTER_HINT):
            self._looks = None
        return next_look(self._looks, interval=self._interval)

    async def _look(self, ids: list[UUID]) -> None:
        if not ids:
            return
        for flow_run in await self._find(ids):
            execution = self._in_flight.get(flow_run.id)
            if execution is not None and is_being_cancelled(flow_run):
                execution.cancel()
            elif has_ended(flow_run):
                self._in_flight.conclude(flow_run.id)

    async def _find(self, ids: list[UUID]) -> list[FlowRun]:
        try:
            return await self._client.flow_runs_ending(ids)
        except ServerFault as error:
            # One run the server cannot read spoils every answer that includes it (PROTOCOL 2.8).
            self._log.debug("cancellations.one_by_one", reason=str(error))
        return [flow_run for flow_run_id in ids if (flow_run := await self._read(flow_run_id)) is not None]

    async def _read(self, flow_run_id: UUID) -> FlowRun | None:
        try:
            return await self._client.read_flow_run(flow_run_id, max_tries=1)
        except ApiError as error:
            self._log.debug("cancellations.unreadable", flow_run_id=str(flow_run_id), reason=str(error))
            return None


def is_being_cancelled(flow_run: FlowRun) -> bool:
    """Whether somebody wants it cancelled: of type CANCELLING, or CANCELLED with the name "Cancelling"."""
    named = flow_run.state_type is StateType.CANCELLED and flow_run.state_name == "Cancelling"
    return named or flow_run.state_type is StateType.CANCELLING


def has_ended(flow_run: FlowRun) -> bool:
    """Whether its state is final, and nothing is left to do about it."""
    final = flow_run.state_type is not None and flow_run.state_type.is_final
    return final and not is_being_cancelled(flow_run)


def next_look(looks: int | None, *, interval: float) -> float:
    """Seconds until the next look, `looks` looks after the last hint; None: there was none, or long ago."""
    if looks is None or looks > len(PAUSES_AFTER_HINT):
        return interval
    return min(interval, PAUSES_AFTER_HINT[max(0, looks - 1)])


def rings(looks: int | None) -> bool:
    """Whether a hint ends the current wait, `looks` looks after the hint before it.

    Not when the next look is due at once anyway: a flood of cancellations in the pool is no flood of questions.
    """
    return looks is None or looks > 1
