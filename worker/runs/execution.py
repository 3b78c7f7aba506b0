"""One attempt of one flow run, from claim to report.

`Execution.run` is the pipeline: claim, prepare, launch, attend, report. It holds the run's slot from beginning to
end and never lets an error of one run reach the others. Each step is on record before it is taken, so that whatever
happens to this daemon, the next one knows what is left to do. What each step decides is decided in `claims`,
`preparation` and `conclusion`; what it does to processes is done by `worker.processes`.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars

from worker.api.models import FlowRun
from worker.processes.evidence import read_memory_evidence
from worker.processes.launch_problems import LaunchError, Shortage
from worker.runs.attendance import attend
from worker.runs.claims import Claim, Lost, Orphaned, Standing, Unanswered
from worker.runs.launch_spec import ControlAddress
from worker.runs.outbox import RunLog
from worker.runs.preparation import DeploymentGone, Prepared, Unpreparable, submission_failure
from worker.runs.record import Record
from worker.runs.reports import FINAL_REPORT_LIMIT, Reports
from worker.runs.services import Services
from worker.runs.start_method import Ready, while_looking
from worker.runs.supervision import Launched
from worker.runs.workspace import Workspace

STOPPED_BEFORE_START = "The worker stopped before the run was started."


class Execution:
    """Made for one attempt, run once, discarded.

    `skip` is why the run is not to be started at all: it is claimed, as only that keeps it from other workers, and
    then Cancelled with this message.
    """

    def __init__(self, *, flow_run: FlowRun, services: Services, skip: str | None = None) -> None:
        self._flow_run = flow_run
        self._services = services
        self._skip = skip
        self._attempt_id = uuid4()
        self._record = Record.begin(services.journal, flow_run, attempt=self._attempt_id, now=services.now())
        self._reports = Reports(flow_run=flow_run, record=self._record, services=services)
        self._run_log = RunLog(flow_run.id, services.outbox)
        self._log = structlog.get_logger()
        self._claim_decided = anyio.Event()
        self._cancel_requested = anyio.Event()
        self._claimed = False

    async def claim_decided(self) -> None:
        """Wait until the run is claimed (and its slot held), or given up or skipped (and its slot free)."""
        await self._claim_decided.wait()

    def cancel(self) -> None:
        """Cancel the run: it is not started any more, or its process is ended."""
        self._cancel_requested.set()

    async def run(self) -> None:
        """Carry the run through to its report. Raises nothing but cancellation."""
        with bound_contextvars(flow_run_id=str(self._flow_run.id), flow_run=self._flow_run.name):
            try:
                if self._flow_run.id in self._services.in_flight:
                    # Recovery has adopted its process since the poll.
                    self._log.debug("flow_run.left", reason="its previous attempt is still ending here")
                    return
                with self._services.in_flight.slot(self._flow_run.id, self):
                    await self._attempt_safely()
            finally:
                self._claim_decided.set()

    async def _attempt_safely(self) -> None:
        try:
            await self._attempt()
        except Exception as error:  # noqa: BLE001 - the edge: one run's error is not its neighbours'
            await self._reports.failed(error, claimed=self._claimed)

    async def _attempt(self) -> None:
        if not await self._win():
            return
        if self._skip is not None:
            await self._reports.cancelled(self._skip)
            return
        try:
            workspace = Workspace.make(self._services.runs_directory, self._flow_run.id)
        except OSError as error:
            await self._postpone(f"cannot make a directory for the run: {error.strerror}")
            return
        async with self._place(workspace) as address:
            try:
                launched = await self._start(workspace, address)
                if launched is not None:
                    await attend(
                        launched,
                        reports=self._reports,
                        services=self._services,
                        cancel_requested=self._cancel_requested,
                    )
            except Exception as error:  # noqa: BLE001 - here, where its directory and slot are still its own
                await self._reports.failed(error, claimed=True)

    async def _win(self) -> bool:
        """Claim the run; if the daemon is ending meanwhile, find out whether it is ours and give it back."""
        if not await self._record.claiming():
            return False  # the journal has said why
        try:
            answer = await self._services.claims.claim(self._flow_run, transition_id=self._attempt_id)
        except anyio.get_cancelled_exc_class():
            await self._undo(answered=False)
            raise
        self._services.metrics.claims[answer.result] += 1
        match answer:
            case Claim():
                self._claimed = True
                if self._skip is None:
                    self._claim_decided.set()
                self._log.info("flow_run.claimed")
                self._run_log.info(
                    f"Worker '{self._services.worker_name}' submitting flow run '{self._flow_run.id}'"
                )
            case Orphaned():
                await self._reports.orphaned()
            case Lost():
                self._log.debug("flow_run.not_claimed", reason=answer.reason)
                await self._record.close()
            case Unanswered():
                self._log.warning("flow_run.claim_unanswered", reason=answer.reason)
        return self._claimed

    async def _start(self, workspace: Workspace, address: ControlAddress) -> Launched | None:
        async with AsyncExitStack() as stack:
            try:
                prepared = await self._prepare(workspace, address)
                ready = prepared and await self._make_ready(stack, prepared, workspace)
                # The last moment at which nothing has been started.
                await anyio.lowlevel.checkpoint_if_cancelled()
            except anyio.get_cancelled_exc_class():
                await stack.aclose()
                await self._undo(answered=True)
                raise
            if prepared is None or ready is None:
                return None
            return await self._launch(prepared, ready, workspace, address)

    async def _prepare(self, workspace: Workspace, address: ControlAddress) -> Prepared | None:
        """Find out what is to be started, and put on record that it will be; None when the run has been settled instead."""
        try:
            prepared = await self._services.preparation.prepare(
                self._flow_run, control=address, fresh_directory=workspace.work
            )
        except DeploymentGone:
            await self._reports.orphaned()
            return None
        except Unpreparable as error:
            await self._reports.not_started(str(error))
            return None
        bind_contextvars(**prepared.names())
        for note in prepared.job.notes:
            self._run_log.warning(note)
        if not await self._record.launching(
            directory=workspace.directory,
            stream_output=prepared.spec.stream_output,
            engine=prepared.job.command is None,
            flow=prepared.flow.name if prepared.flow else None,
            deployment=prepared.deployment.name if prepared.deployment else None,
        ):
            await self._reports.given_back("The worker cannot write its journal.")
            return None
        return prepared

    async def _make_ready(
        self, stack: AsyncExitStack, prepared: Prepared, workspace: Workspace
    ) -> Ready | None:
        """Prepare the process, and meanwhile look at the run once more; None when the run has been settled instead."""
        start = self._services.starter.ready(
            prepared.spec,
            command_configured=prepared.job.command is not None,
            pull_steps=prepared.deployment.pull_steps if prepared.deployment else None,
            output=workspace.output,
            marker=self._record.marker,
        )
        look = partial(self._services.claims.standing, self._flow_run, self._attempt_id, held=True)
        standing, ready = await while_looking(stack, start, look)
        if self._cancel_requested.is_set():
            standing = Standing.OURS_CANCELLING
        if standing in {Standing.OURS_CANCELLING, Standing.THEIRS, Standing.GONE}:
            # Cancelled, deleted or moved meanwhile: a late engine would take it to Running all the same (PROTOCOL 5.1).
            await stack.aclose()
            await self._reports.undone(standing, STOPPED_BEFORE_START)
            return None
        if isinstance(ready, LaunchError):
            self._announce(prepared)
            await self._not_launched(ready)
            return None
        return ready

    async def _launch(
        self, prepared: Prepared, ready: Ready, workspace: Workspace, address: ControlAddress
    ) -> Launched | None:
        submitted = self._announce(prepared)
        memory = read_memory_evidence()
        try:
            handle = await ready.launch()
        except LaunchError as error:
            await self._not_launched(error)
            return None
        self._services.metrics.starts[ready.method] += 1
        self._log.info(
            "flow_run.launched",
            pid=handle.pid,
            start_method=ready.method.value,
            cold_because=ready.reason,
            working_dir=str(prepared.spec.cwd),
        )
        self._run_log.info(f"Flow run '{self._flow_run.name}' submitted to infrastructure")
        self._services.gate.started()
        try:
            await self._record.launched(handle)
        except Exception:
            with anyio.CancelScope(shield=True):
                await handle.kill_tree()
            raise
        return Launched(
            flow_run=self._flow_run,
            handle=handle,
            workspace=workspace,
            stream_output=prepared.spec.stream_output,
            token=address.token,
            mistakes_sigterm=False,
            infrastructure_pid=f"{self._services.hostname}:{handle.pid}",
            memory=memory,
            spec=prepared.spec,
            subject=prepared.subject(self._flow_run),
            submitted_event=submitted,
        )

    async def _not_launched(self, error: LaunchError) -> None:
        if isinstance(error, Shortage):
            # Nothing is wrong with the run; another worker, or this one a little later, can start it.
            await self._postpone(str(error))
        else:
            await self._reports.not_started(submission_failure(error))

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

    async def _postpone(self, shortage: str) -> None:
        """Give the run back for want of something on this machine, and take no other for a while."""
        self._services.gate.shortage(shortage)
        await self._reports.given_back(f"The worker {shortage}.")

    async def _undo(self, *, answered: bool) -> None:
        """The daemon is ending and nothing was started: leave the run as if we had never touched it.

        With the answer to our claim still on its way, the same claim is made again: what it says is certain.
        """
        claims = self._services.claims
        with anyio.move_on_after(FINAL_REPORT_LIMIT, shield=True) as limit:
            standing = await claims.standing(self._flow_run, self._attempt_id, held=answered)
            if standing is Standing.UNTOUCHED and not answered:
                match await claims.claim(self._flow_run, transition_id=self._attempt_id):
                    case Claim():
                        standing = Standing.OURS
                    case Lost() | Orphaned():
                        standing = Standing.THEIRS
                    case Unanswered():
                        standing = Standing.UNKNOWN
            await self._reports.undone(standing, STOPPED_BEFORE_START)
        if limit.cancelled_caught:
            self._reports.unreported()

    @asynccontextmanager
    async def _place(self, workspace: Workspace) -> AsyncGenerator[ControlAddress]:
        """The attempt's own directory and its place on the control channel.

        Both are gone afterwards, but for the directory of an attempt that is not settled: recovery needs it.
        """
        token = self._services.control.register(str(self._flow_run.id))
        try:
            yield ControlAddress(port=self._services.control.port, token=token)
        finally:
            self._services.control.unregister(token)
            if self._record.closed:
                await workspace.remove()
