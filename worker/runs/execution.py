"""One attempt of one flow run, from claim to report.

`Execution.run` is the pipeline: claim, prepare, launch, supervise, report. It holds the run's slot from
beginning to end and never lets an error of one run reach the others. What each step decides is decided in
`states`, `preparation` and `conclusion`; what it does to processes is done by `worker.processes`.
"""

import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import structlog
from structlog.contextvars import bound_contextvars

from worker.api.models import FlowRun
from worker.processes.launcher import LaunchError
from worker.runs.launch_spec import ControlAddress
from worker.runs.outbox import RunLog
from worker.runs.preparation import DeploymentGone, Prepared, Unpreparable, submission_failure
from worker.runs.reports import BEFORE_START, Reports
from worker.runs.services import Services
from worker.runs.states import Claim, Lost
from worker.runs.supervision import Launched, Supervision

# How long the last words about a run may take once the daemon was told to end at once, in seconds.
FINAL_REPORT_LIMIT = 30.0


class Execution:
    """Made for one attempt, run once, discarded."""

    def __init__(self, *, flow_run: FlowRun, services: Services) -> None:
        self._flow_run = flow_run
        self._services = services
        self._reports = Reports(flow_run=flow_run, services=services)
        self._run_log = RunLog(flow_run.id, services.outbox)
        self._log = structlog.get_logger()
        self._claim_decided = anyio.Event()
        self._cancel_requested = anyio.Event()

    async def claim_decided(self) -> None:
        """Wait until the run is claimed (and its slot held) or given up (and its slot free)."""
        await self._claim_decided.wait()

    def cancel(self) -> None:
        """Cancel the run: it is not started any more, or its process is ended."""
        self._cancel_requested.set()

    async def run(self) -> None:
        """Carry the run through to its report. Raises nothing but cancellation."""
        with bound_contextvars(flow_run_id=str(self._flow_run.id), flow_run=self._flow_run.name):
            try:
                with self._services.in_flight.slot(self._flow_run.id, self):
                    claim = await self._claim()
                    if claim is not None:
                        await self._carry_out(claim)
            except Exception as error:  # noqa: BLE001 - the edge: one run's error is not its neighbours'
                await self._reports.failed(error)
            finally:
                self._claim_decided.set()

    async def _carry_out(self, claim: Claim) -> None:
        async with self._workspace() as (directory, address):
            prepared = await self._prepare(claim, directory, address)
            if prepared is None:
                return
            launched = await self._launch(prepared, directory, address)
            if launched is None:
                return
            await self._supervise(claim, launched)

    async def _claim(self) -> Claim | None:
        answer = await self._services.states.claim(self._flow_run)
        if isinstance(answer, Lost):
            self._log.debug("flow_run.not_claimed", reason=answer.reason)
            return None
        self._claim_decided.set()
        self._log.info("flow_run.claimed")
        self._run_log.info(f"Worker '{self._services.worker_name}' submitting flow run '{self._flow_run.id}'")
        return answer

    @asynccontextmanager
    async def _workspace(self) -> AsyncGenerator[tuple[Path, ControlAddress]]:
        """The attempt's own directory and its place on the control channel, both gone afterwards."""
        token = self._services.control.register(str(self._flow_run.id))
        directory = Path(tempfile.mkdtemp(prefix=f"{self._flow_run.id}-", dir=self._services.runs_directory))
        try:
            (directory / "work").mkdir()
            yield directory, ControlAddress(port=self._services.control.port, token=token)
        finally:
            self._services.control.unregister(token)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._remove, directory)

    def _remove(self, directory: Path) -> None:
        try:
            shutil.rmtree(directory)
        except OSError as error:
            self._log.warning("run_directory.left_behind", directory=str(directory), reason=str(error))

    async def _prepare(self, claim: Claim, directory: Path, address: ControlAddress) -> Prepared | None:
        try:
            prepared = await self._services.preparation.prepare(
                self._flow_run, control=address, fresh_directory=directory / "work"
            )
        except DeploymentGone:
            message = f"Deployment {self._flow_run.deployment_id} no longer exists, cancelled run."
            await self._reports.cancelled(message, force=True)
            return None
        except Unpreparable as error:
            await self._reports.not_started(str(error))
            return None
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(FINAL_REPORT_LIMIT, shield=True):
                await self._reports.given_back(claim)
            raise
        for note in prepared.job.notes:
            self._run_log.warning(note)
        return prepared

    async def _launch(self, prepared: Prepared, directory: Path, address: ControlAddress) -> Launched | None:
        if self._cancel_requested.is_set():
            await self._reports.cancelled(BEFORE_START)
            return None
        output = directory / "output"
        try:
            handle = self._services.launcher.launch(prepared.spec, output=output)
        except LaunchError as error:
            await self._reports.not_started(submission_failure(error))
            return None
        self._log.info(
            "flow_run.launched",
            pid=handle.pid,
            start_method="cold",
            deployment=prepared.deployment.name if prepared.deployment else None,
            working_dir=str(prepared.spec.cwd),
        )
        return Launched(
            flow_run=self._flow_run, handle=handle, prepared=prepared, output=output, token=address.token
        )

    async def _supervise(self, claim: Claim, launched: Launched) -> None:
        supervision = Supervision(
            launched=launched, services=self._services, cancel_requested=self._cancel_requested
        )
        try:
            ended = await supervision.until_exit()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                ended = await supervision.stop()
                with anyio.move_on_after(FINAL_REPORT_LIMIT) as limit:
                    await self._reports.ended(claim, launched, ended)
                if limit.cancelled_caught:
                    self._log.error("flow_run.unreported", reason="the server did not answer in time")
            raise
        await self._reports.ended(claim, launched, ended)
