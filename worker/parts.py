"""The daemon's services as the daemon sees them: made by `assembly`, given their order of life and death by `daemon`."""

from dataclasses import dataclass

from worker.api.client import PrefectClient
from worker.api.events import EventStream
from worker.metrics import Metrics
from worker.processes.launcher import Launcher
from worker.processes.tree import OrphanReaper
from worker.runs.cancellations import Cancellations
from worker.runs.forkservers import ForkServers
from worker.runs.in_flight import InFlight
from worker.runs.journal import Journal
from worker.runs.lost_runs import LostRuns
from worker.runs.outbox import Outbox
from worker.runs.pacing import Pacing
from worker.runs.poller import Poller
from worker.runs.recovery import Recovery
from worker.runs.sparing import Sparing
from worker.runs.stopping import Stopping
from worker.runs.wake import Wake
from worker.runs.work_pool import WorkPoolKeeper
from worker.runs.worker_events import WorkerEvents

REAP_INTERVAL = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The daemon's services, wired to each other; they live as long as the daemon."""

    client: PrefectClient
    metrics: Metrics
    pacing: Pacing
    pool: WorkPoolKeeper
    poller: Poller
    cancellations: Cancellations
    push: EventStream
    outbox: Outbox
    launcher: Launcher
    forkservers: ForkServers | None
    in_flight: InFlight
    freed: Wake
    events: WorkerEvents
    reaper: OrphanReaper
    journal: Journal
    recovery: Recovery
    lost_runs: LostRuns
    stopping: Stopping
    sparing: Sparing

    async def reap_orphans(self) -> float:
        """Collect what flows left to us as PID 1 or subreaper; returns the seconds until the next look."""
        self.reaper.reap_orphans(self.launcher.waited_for)
        return REAP_INTERVAL
