"""Which runs are starting: from just before their claim until their engine is about to propose Running.

A start is the expensive part of a run, for this machine and for the server, so only so many go on at once. Owns the
count, and how long each start took. Does not own how many may go on (`pacing`), nor when a run is begun or over
(`in_flight`, `supervision`). A process that an earlier daemon started is not starting.
"""

from collections.abc import Callable
from uuid import UUID

# How long a process counts as starting when its engine has not connected, in seconds. A configured command need not
# have an engine at all, and engines before Prefect 3.6.27 do not connect (PROTOCOL 4.4).
ENGINE_PATIENCE = 30.0
SHORT_PATIENCE = 5.0


class Starts:
    """The starts that go on now; one for the daemon's life.

    `most` is asked how many may go on at once, `monotonic` is a clock in seconds.
    """

    def __init__(self, *, most: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._most = most
        self._monotonic = monotonic
        self._began: dict[UUID, float] = {}
        self._engines_connect = True

    def __len__(self) -> int:
        return len(self._began)

    @property
    def free(self) -> int:
        """How many more may begin now."""
        return max(0, self._most() - len(self._began))

    def begin(self, flow_run_id: UUID) -> None:
        """The run is about to be claimed."""
        self._began[flow_run_id] = self._monotonic()

    def over(self, flow_run_id: UUID) -> float | None:
        """The run is starting no more; how many seconds it was, None if it was not. Harmless when repeated."""
        began = self._began.pop(flow_run_id, None)
        return None if began is None else self._monotonic() - began

    def patience(self, *, engine: bool) -> float:
        """How many seconds a launched process counts as starting without a word from its engine.

        Once an engine has kept silent for that long, others of its release will, too; the next word corrects that.
        """
        return ENGINE_PATIENCE if engine and self._engines_connect else SHORT_PATIENCE

    def learn(self, *, connected: bool) -> None:
        """Whether an engine has connected within its patience."""
        self._engines_connect = connected
