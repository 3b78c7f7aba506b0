"""What the journal knows nothing of: runs that the server says are ours, and directories that are left of none.

A state directory was lost or changed, or a daemon ended between forgetting an attempt and removing its directory. Owns
the judgement that a run is ours. What is done about it is `recovery`'s, by way of the journal: an entry is made
for each as if it had been there all along.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import anyio
import anyio.to_thread
import structlog

from worker.api.errors import ApiError
from worker.api.models import FlowRun, StateType
from worker.processes.process_table import Marker, boot_id, find_leader
from worker.runs import workspace
from worker.runs.claims import last_claim
from worker.runs.journal_entry import Entry, Phase
from worker.runs.launch_spec import FLOW_RUN_ID
from worker.runs.record import marker_of
from worker.runs.services import Services

INTERVAL = 60.0
UNFINISHED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


@dataclass(frozen=True, slots=True)
class Sighting:
    """How a run was found when it was first seen."""

    state_id: UUID | None
    infrastructure_pid: str | None
    at: float


class LostRuns:
    """Looks for them every `INTERVAL` seconds; one for the daemon's life.

    One whose process lives is ours at once, as it carries the id of our claim. One without is taken for lost only when a
    second look, a while later, finds it unchanged: a run that was retried still has our labels and our pid for the moment
    between another worker's claim and its start (PROTOCOL 2.6).
    """

    def __init__(
        self, *, services: Services, pool: str, work_queues: Collection[str], now: Callable[[], datetime]
    ) -> None:
        self._services = services
        self._pool = pool
        self._work_queues = tuple(work_queues)
        self._now = now
        self._sightings: dict[UUID, Sighting] = {}
        self._log = structlog.get_logger()

    async def look_once(self) -> float:
        """Note every lost run in the journal; returns the seconds until the next look."""
        runs = await self._services.client.flow_runs_in_pool(self._pool, UNFINISHED, self._work_queues)
        known = {entry.flow_run_id for entry in self._services.journal.entries()}
        ours = [
            run
            for run in runs
            if run.id not in known
            and run.id not in self._services.in_flight
            and is_ours(run, worker_name=self._services.worker_name, hostname=self._services.hostname)
        ]
        self._sightings = {run.id: self._sightings.get(run.id) or _sighting(run) for run in ours}
        for run in ours:
            try:
                await self._consider(run)
            except ApiError as error:
                self._log.debug("flow_run.not_considered", flow_run_id=str(run.id), reason=str(error))
        await self._clear_directories()
        return INTERVAL

    async def _clear_directories(self) -> None:
        """Remove the directories of runs that are over for us: neither open, nor in flight, nor perhaps lost, nor alive."""
        found = await anyio.to_thread.run_sync(workspace.all_in, self._services.runs_directory)
        # Asked after looking: a run is in flight before it has a directory.
        spared = {entry.flow_run_id for entry in self._services.journal.entries()}
        spared |= self._sightings.keys() | set(self._services.in_flight)
        left = {directory: run_id for directory, run_id in found.items() if run_id not in spared}
        await anyio.to_thread.run_sync(_clear, left)

    async def _consider(self, run: FlowRun) -> None:
        attempt = last_claim(await self._services.client.read_flow_run_states(run.id))
        if attempt is None:
            return
        directories = await anyio.to_thread.run_sync(workspace.all_in, self._services.runs_directory)
        directory = next((str(path) for path, made_for in directories.items() if made_for == run.id), None)
        entry = Entry(
            attempt=attempt,
            flow_run_id=run.id,
            name=run.name,
            since=self._now(),
            phase=Phase.LAUNCHED,
            directory=directory,
            boot=boot_id(),
            infrastructure_pid=run.infrastructure_pid,
        )
        alive = await anyio.to_thread.run_sync(find_leader, marker_of(entry)) is not None
        if run.id in self._services.in_flight:
            return
        if alive or self._unchanged(run):
            self._log.warning(
                "flow_run.found",
                flow_run_id=str(run.id),
                flow_run=run.name,
                alive=alive,
                reason="the server says that it is ours, and the journal does not know it",
            )
            self._sightings.pop(run.id, None)
            await self._services.journal.note(entry)

    def _unchanged(self, run: FlowRun) -> bool:
        first = self._sightings[run.id]
        now = _sighting(run)
        if (first.state_id, first.infrastructure_pid) != (now.state_id, now.infrastructure_pid):
            self._sightings[run.id] = now
            return False
        return now.at - first.at >= INTERVAL


def is_ours(run: FlowRun, *, worker_name: str, hostname: str) -> bool:
    """Whether the server has it that this worker started the run, on this machine (PROTOCOL 2.7, 2.8).

    While it is Pending the labels alone may say so: they are sent first.
    """
    if run.labels.get("prefect.worker.name") != worker_name:
        return False
    if run.infrastructure_pid is None:
        return run.state_type is StateType.PENDING
    return run.infrastructure_pid.rpartition(":")[0] == hostname


def _clear(directories: Mapping[Path, UUID]) -> None:
    for directory, flow_run_id in directories.items():
        if find_leader(Marker(FLOW_RUN_ID, str(flow_run_id))) is None:
            workspace.remove(directory)


def _sighting(run: FlowRun) -> Sighting:
    return Sighting(state_id=run.state_id, infrastructure_pid=run.infrastructure_pid, at=anyio.current_time())
