"""How the daemon ends: two lifetimes, the signals that end them, and what becomes of the runs that this cuts short.

`intake` is asking for and claiming runs, `work` is carrying out what was claimed. Owns when each ends and why; what
then happens to a run is `runs.attendance`'s.
"""

import signal
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskStatus

from worker.runs.stopping import Stop, Stopping


class Shutdown:
    """The two cancel scopes and their ends; one for the daemon's life.

    `cut_short` is what becomes of runs that have not finished `drain_timeout` seconds after the first signal (None:
    they get all the time they take), or when a second one comes. With `detach` the first signal ends work at once, and
    the flows run on. `stopping` tells the executions which it is.
    """

    def __init__(
        self, *, stopping: Stopping, cut_short: Stop, drain_timeout: float | None, detach: bool
    ) -> None:
        self.intake = anyio.CancelScope()
        self.work = anyio.CancelScope()
        self._stopping = stopping
        self._cut_short = cut_short
        self._drain_timeout = drain_timeout
        self._detach = detach
        self.told: Callable[[], None] = lambda: None
        self._log = structlog.get_logger()

    @property
    def draining(self) -> bool:
        """Whether nothing is claimed any more."""
        return self.intake.cancel_called

    async def obey_signals(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """First SIGTERM or SIGINT: claim nothing more. Second: end the flows, too."""
        async with anyio.create_task_group() as timing:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                task_status.started()
                async for signum in signals:
                    name = signal.Signals(signum).name
                    if self.work.cancel_called and self._detach:
                        self._log.info("worker.stopping", signal=name, then="running flows have been left")
                    elif self.draining:
                        self._log.warning("worker.stopping_now", reason=name, runs=self._cut_short.value)
                        self._end_work(self._cut_short)
                    else:
                        self._stop(name)
                        timing.start_soon(self._time_out)

    def _stop(self, name: str) -> None:
        if self._detach:
            self._log.info("worker.stopping", signal=name, then="running flows are left to the next daemon")
            self._end_work(Stop.DETACH)
            return
        self._log.info(
            "worker.stopping", signal=name, then="running flows finish; a second signal stops them"
        )
        self.end_intake()

    def end_intake(self) -> None:
        """Claim nothing more; `told` is called, the first time."""
        first = not self.draining
        self.intake.cancel()
        if first:
            self.told()

    async def _time_out(self) -> None:
        if self._drain_timeout is None:
            return
        await anyio.sleep(self._drain_timeout)
        if not self.work.cancel_called:
            self._log.warning(
                "worker.stopping_now",
                reason=f"the drain timeout of {self._drain_timeout:g} s has passed",
                runs=self._cut_short.value,
            )
            self._end_work(self._cut_short)

    def _end_work(self, how: Stop) -> None:
        self._stopping.how = how
        self.end_intake()
        self.work.cancel()
