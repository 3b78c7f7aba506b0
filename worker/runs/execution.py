"""One attempt of one flow run, from claim to report.

`Execution.run` is the pipeline: claim, prepare, launch, supervise, report. It holds the run's slot from
beginning to end and never lets an error of one run reach the others. What each step decides is decided in
`claims`, `preparation` and `conclusion`; what it does to processes is done by `worker.processes`.
"""

import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import structlog
from structlog.contextvars import bound_contextvars

from worker.api.models import FlowRun
from worker.processes.launcher import LaunchError, Shortage
from worker.runs.claims import Claim, Lost, Orphaned, Standing
from worker.runs.launch_spec import ControlAddress
from worker.runs.outbox import RunLog
from worker.runs.preparation import DeploymentGone, Prepared, Unpreparable, submission_failure
from worker.runs.reports import BEFORE_START, FINAL_REPORT_LIMIT, Reports
from worker.runs.services import Services
from worker.runs.supervision import Launched, Supervision

STOPPED_BEFORE_START = "The worker stopped before the run was started."


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
        self._claim: Claim | None = None

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
                    await self._attempt()
            except Exception as error:  # noqa: BLE001 - the edge: one run's error is not its neighbours'
                await self._reports.failed(error, claimed=self._claim is not None)
            finally:
                self._claim_decided.set()

    async def _attempt(self) -> None:
        claim = await self._win()
        if claim is None:
            return
        async with self._workspace() as (directory, address):
            launched = await self._start(claim, directory, address)
            if launched is not None:
                await self._supervise(claim, launched)

    async def _win(self) -> Claim | None:
        """Claim the run; if the daemon is ending meanwhile, find out whether it is ours and give it back."""
        transition_id = uuid4()
        try:
            answer = await self._services.claims.claim(self._flow_run, transition_id=transition_id)
        except anyio.get_cancelled_exc_class():
            await self._undo(transition_id, answered=False)
            raise
        if isinstance(answer, Orphaned):
            await self._reports.orphaned()
            return None
        if isinstance(answer, Lost):
            self._log.debug("flow_run.not_claimed", reason=answer.reason)
            return None
        self._claim = answer
        self._claim_decided.set()
        self._log.info("flow_run.claimed")
        self._run_log.info(f"Worker '{self._services.worker_name}' submitting flow run '{self._flow_run.id}'")
        return answer

    async def _start(self, claim: Claim, directory: Path, address: ControlAddress) -> Launched | None:
        try:
            prepared = await self._prepare(directory, address)
        except anyio.get_cancelled_exc_class():
            await self._undo(claim.transition_id, answered=True)
            raise
        if prepared is None:
            return None
        if self._cancel_requested.is_set():
            await self._reports.cancelled(BEFORE_START)
            return None
        return await self._launch(claim, prepared, directory, address)

    async def _prepare(self, directory: Path, address: ControlAddress) -> Prepared | None:
        try:
            prepared = await self._services.preparation.prepare(
                self._flow_run, control=address, fresh_directory=directory / "work"
            )
        except DeploymentGone:
            await self._reports.orphaned()
            return None
        except Unpreparable as error:
            await self._reports.not_started(str(error))
            return None
        for note in prepared.job.notes:
            self._run_log.warning(note)
        return prepared

    async def _launch(
        self, claim: Claim, prepared: Prepared, directory: Path, address: ControlAddress
    ) -> Launched | None:
        output = directory / "output"
        submitted = self._announce(prepared)
        try:
            handle = self._services.launcher.launch(prepared.spec, output=output)
        except Shortage as error:
            # Nothing is wrong with the run; another worker, or this one a little later, can start it.
            await self._reports.given_back(claim, f"The worker {error}.")
            return None
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
            flow_run=self._flow_run,
            handle=handle,
            prepared=prepared,
            output=output,
            token=address.token,
            submitted_event=submitted,
        )

    def _announce(self, prepared: Prepared) -> UUID:
        """Say who runs it, as Prefect's worker does before it launches (PROTOCOL 2.8, 2.10)."""
        self._services.outbox.label(
            self._flow_run.id,
            {
                "prefect.worker.name": self._services.worker_name,
                "prefect.worker.type": "process",
                "prefect.work-pool.name": prepared.work_pool.name,
                "prefect.work-pool.id": str(prepared.work_pool.id),
            },
        )
        return self._services.events.submitted(prepared.subject(self._flow_run))

    async def _supervise(self, claim: Claim, launched: Launched) -> None:
        supervision = Supervision(
            launched=launched, services=self._services, cancel_requested=self._cancel_requested
        )
        try:
            ended = await supervision.until_exit()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                ended = await supervision.stop()
                await self._reports.ended(claim, launched, ended, limit=FINAL_REPORT_LIMIT)
            raise
        except Exception as error:  # noqa: BLE001 - whatever went wrong, no process is left unattended
            self._log.error("flow_run.unattended", reason=str(error), exc_info=error)
            ended = await supervision.stop()
        await self._reports.ended(claim, launched, ended)

    async def _undo(self, transition_id: UUID, *, answered: bool) -> None:
        """The daemon is ending and nothing was started: leave the run as if we had never touched it.

        With the answer to our claim still on its way, the same claim is made again: what it says is certain.
        """
        with anyio.move_on_after(FINAL_REPORT_LIMIT, shield=True) as limit:
            standing = await self._services.claims.standing(self._flow_run, transition_id, held=answered)
            if standing is Standing.UNTOUCHED and not answered:
                again = await self._services.claims.claim(self._flow_run, transition_id=transition_id)
                standing = Standing.OURS if isinstance(again, Claim) else Standing.THEIRS
            if standing is Standing.OURS:
                claim = Claim(flow_run=self._flow_run, transition_id=transition_id)
                await self._reports.given_back(claim, STOPPED_BEFORE_START)
            elif standing is Standing.OURS_CANCELLING:
                await self._reports.cancelled(BEFORE_START)
        if limit.cancelled_caught:
            self._reports.unreported()

    @asynccontextmanager
    async def _workspace(self) -> AsyncGenerator[tuple[Path, ControlAddress]]:
        """The attempt's own directory and its place on the control channel, both gone afterwards."""
        root = self._services.runs_directory
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{self._flow_run.id}-", dir=root))
        token = self._services.control.register(str(self._flow_run.id))
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
