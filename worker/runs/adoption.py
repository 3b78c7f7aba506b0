"""The rest of an attempt that an earlier daemon started: its living process is attended to, from here to the report."""

import anyio
import structlog
from anyio.abc import TaskStatus
from structlog.contextvars import bound_contextvars

from worker.api.models import FlowRun
from worker.processes.evidence import read_memory_evidence
from worker.processes.process import ProcessHandle
from worker.runs.attendance import attend
from worker.runs.journal_entry import Phase
from worker.runs.record import Record
from worker.runs.reports import Reports
from worker.runs.services import Services
from worker.runs.supervision import Launched
from worker.runs.workspace import Workspace


class Adoption:
    """Made for one process, run once, discarded. Holds a slot as its execution did, above the limit if need be."""

    def __init__(
        self,
        *,
        flow_run: FlowRun,
        record: Record,
        handle: ProcessHandle,
        workspace: Workspace,
        services: Services,
    ) -> None:
        self._flow_run = flow_run
        self._record = record
        self._handle = handle
        self._workspace = workspace
        self._services = services
        self._reports = Reports(flow_run=flow_run, record=record, services=services)
        self._log = structlog.get_logger()
        self._cancel_requested = anyio.Event()

    def cancel(self) -> None:
        """Cancel the run: its process is ended."""
        self._cancel_requested.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Attend to the process until its report; started once the slot is held. Raises nothing but cancellation."""
        with bound_contextvars(flow_run_id=str(self._flow_run.id), flow_run=self._flow_run.name):
            try:
                with self._services.in_flight.slot(self._flow_run.id, self, starting=False):
                    task_status.started()
                    await self._attend()
            except Exception as error:  # noqa: BLE001 - the edge: one run's error is not its neighbours'
                self._log.error("flow_run.error", reason=str(error), exc_info=error)

    async def _attend(self) -> None:
        entry = self._record.entry
        if entry.phase is not Phase.LAUNCHED:
            await self._record.launched(self._handle)
        self._services.metrics.adoptions += 1
        self._log.info("flow_run.adopted", pid=self._handle.pid)
        launched = Launched(
            flow_run=self._flow_run,
            handle=self._handle,
            workspace=self._workspace,
            stream_output=entry.stream_output,
            token=None,
            mistakes_sigterm=entry.engine and not entry.relinquished,
            infrastructure_pid=f"{self._services.hostname}:{self._handle.pid}",
            memory=read_memory_evidence(),
            spec=None,
            subject=None,
            submitted_event=None,
        )
        try:
            await attend(
                launched,
                reports=self._reports,
                services=self._services,
                cancel_requested=self._cancel_requested,
            )
        finally:
            if self._record.closed:
                await self._workspace.remove()
