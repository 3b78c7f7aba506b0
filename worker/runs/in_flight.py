"""The executions that hold a slot: the one list of what this daemon is doing.

Counting slots, finding the run to cancel, and telling health all read this list; there is no second one.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from worker.runs.wake import Wake


class Stoppable(Protocol):
    """What others may do to an execution: ask it to cancel its run."""

    def cancel(self) -> None:
        """Cancel the run; a second call changes nothing."""


class InFlight:
    """Executions by flow run id, at most `limit` of them at a time; lives as long as the daemon.

    `limit` is the number of slots (None: no limit, PROTOCOL 8). `freed` is rung when a slot becomes free that
    somebody has said to be waiting for, so that the poller can ask again at once.
    """

    def __init__(self, *, limit: int | None, freed: Wake) -> None:
        self._limit = limit
        self._freed = freed
        self._executions: dict[UUID, Stoppable] = {}
        self._wanted = False

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
        """How many more executions may start now, None when unlimited."""
        return None if self._limit is None else max(0, self._limit - len(self._executions))

    def want(self, *, wanted: bool) -> None:
        """Say whether there is work that the next free slot could take."""
        self._wanted = wanted

    @contextmanager
    def slot(self, flow_run_id: UUID, execution: Stoppable) -> Generator[None]:
        """Hold one slot for one run; left, whatever happened, when the execution is over."""
        if flow_run_id in self._executions:
            msg = f"flow run {flow_run_id} is already in flight"
            raise RuntimeError(msg)
        self._executions[flow_run_id] = execution
        try:
            yield
        finally:
            del self._executions[flow_run_id]
            if self._wanted:
                self._freed.set()
