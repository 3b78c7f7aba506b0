"""The executions that hold a slot: the one list of what this daemon is doing.

Counting slots, finding the run to cancel, and telling health all read this list; there is no second one.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

import anyio

from worker.runs.starts import Starts
from worker.runs.wake import Wake


class Stoppable(Protocol):
    """What others may do to an execution: ask it to cancel its run."""

    def cancel(self) -> None:
        """Cancel the run; a second call changes nothing."""


class InFlight:
    """Executions by flow run id, at most `limit` of them at a time; lives as long as the daemon.

    `limit` is the number of slots (None: no limit, PROTOCOL 8). A run whose end is known no longer takes one, but it
    stays in the list until its process has ended, so that it is neither claimed again nor forgotten. `freed` is rung
    when there is room again that somebody has said to be waiting for, so that the poller can ask at once.
    """

    def __init__(self, *, limit: int | None, freed: Wake, starts: Starts) -> None:
        self._limit = limit
        self._freed = freed
        self._starts = starts
        self._executions: dict[UUID, Stoppable] = {}
        # Runs whose end is known, and whether they have taken their slot back since.
        self._concluded: dict[UUID, bool] = {}
        self._wanted = False
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._executions)

    def __contains__(self, flow_run_id: UUID) -> bool:
        return flow_run_id in self._executions

    def __iter__(self) -> Iterator[UUID]:
        return iter(tuple(self._executions))

    def get(self, flow_run_id: UUID) -> Stoppable | None:
        """The execution of that run, if it is in flight here."""
        return self._executions.get(flow_run_id)

    @property
    def limit(self) -> int | None:
        """The number of slots, None when unlimited."""
        return self._limit

    @property
    def free(self) -> int | None:
        """How many slots are free now, None when unlimited."""
        if self._limit is None:
            return None
        lent = sum(not reclaimed for reclaimed in tuple(self._concluded.values()))
        return max(0, self._limit - len(self._executions) + lent)

    @property
    def unconcluded(self) -> list[UUID]:
        """The runs whose end is not known yet."""
        return [flow_run_id for flow_run_id in self._executions if flow_run_id not in self._concluded]

    @property
    def starting(self) -> int:
        """How many of the runs are starting."""
        return len(self._starts)

    @property
    def room(self) -> int:
        """How many more runs may be claimed now: each needs a free slot, and a start of its own."""
        free = self.free
        return self._starts.free if free is None else min(free, self._starts.free)

    def want(self, *, wanted: bool) -> None:
        """Say whether there is work that the next room could take."""
        self._wanted = wanted

    async def wait_for_change(self) -> None:
        """Wait until a slot or a start has become free."""
        await self._changed.wait()

    @contextmanager
    def slot(self, flow_run_id: UUID, execution: Stoppable, *, starting: bool = True) -> Generator[None]:
        """Hold one slot for one run; left, whatever happened, when the execution is over.

        `starting`: the run is about to be claimed and started, and counts as such until `started`.
        """
        if flow_run_id in self._executions:
            msg = f"flow run {flow_run_id} is already in flight"
            raise RuntimeError(msg)
        self._executions[flow_run_id] = execution
        if starting:
            self._starts.begin(flow_run_id)
        try:
            yield
        finally:
            del self._executions[flow_run_id]
            self._concluded.pop(flow_run_id, None)
            self._starts.over(flow_run_id)
            self._room_made()

    def patience(self, *, engine: bool) -> float:
        """How many seconds a launched process may be silent and still count as starting (`Starts.patience`)."""
        return self._starts.patience(engine=engine)

    def started(self, flow_run_id: UUID, *, connected: bool, engine: bool) -> float | None:
        """The run is starting no more: its engine has connected, or was silent for too long.

        Returns the seconds since just before its claim, None if it was not starting.
        """
        if connected or engine:
            self._starts.learn(connected=connected)
        seconds = self._starts.over(flow_run_id)
        if seconds is not None:
            self._room_made()
        return seconds

    def engine_connected(self) -> None:
        """An engine that was taken for silent has connected after all."""
        self._starts.learn(connected=True)

    def conclude(self, flow_run_id: UUID) -> None:
        """The run's end is known, though its process still lives: hand its slot on."""
        if flow_run_id in self._executions and flow_run_id not in self._concluded:
            self._concluded[flow_run_id] = False
            self._starts.over(flow_run_id)
            self._room_made()

    async def wait_concluded(self, flow_run_id: UUID) -> None:
        """Wait until that run's end is known."""
        while flow_run_id not in self._concluded:
            await self._changed.wait()

    def reclaim(self, flow_run_id: UUID) -> None:
        """The process of a run whose end is known does not go: it counts against the limit again."""
        if flow_run_id in self._concluded:
            self._concluded[flow_run_id] = True

    def _room_made(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        if self._wanted and self.room:
            self._freed.set()
