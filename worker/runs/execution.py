"""One attempt of one flow run, from claim to report.

`Execution.run` is the pipeline: claim and prepare side by side, launch, attend, report. It holds the run's slot from
beginning to end and never lets an error of one run reach the others. Each step is on record before it is taken, so that whatever
happens to this daemon, the next one knows what is left to do. What each step decides is decided in `claims`,
`preparation` and `conclusion`; what it does to processes is done by `worker.processes`.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import anyio.lowlevel
import structlog
from structlog.contextvars import bound_contextvars

from worker.api.models import FlowRun
from worker.processes.evidence import read_memory_evidence
from worker.processes.launch_problems import LaunchError, Shortage
from worker.runs.attendance import attend
from worker.runs.claims import LONGEST_SINCE_LOOK, Claim, Lost, Orphaned, Standing, Unanswered
from worker.runs.launch_spec import ControlAddress
from worker.runs.outbox import RunLog
from worker.runs.preparation import Prepared, Unpreparable, submission_failure
from worker.runs.readings import DeploymentGone
from worker.runs.readying import Start, beside
from worker.runs.record import Record
from worker.runs.reports import FINAL_REPORT_LIMIT, Reports
from worker.runs.services import Services
from worker.runs.start_method import Ready
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
        self._seen = float("-inf")

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
        if self._skip is not None:
            if await self._win():
                await self._reports.cancelled(self._skip)
            return
        try:
            workspace = Workspace.make(self._services.runs_directory, self._flow_run.id)
        except OSError as error:
            # Before the claim: another worker can have the run.
            self._services.gate.shortage(f"cannot make a directory for the run: {error.strerror}")
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
                await self._reports.failed(error, claimed=self._claimed)

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
                self._seen = anyio.current_time()
                if answer.cancelling:
                    self.cancel()
                if self._skip is None:
                    self._claim_decided.set()
                self._log.info("flow_run.claimed")
                worker = self._services.worker_name
                self._run_log.info(f"Worker '{worker}' submitting flow run '{self._flow_run.id}'")
            case Orphaned():
                await self._reports.orphaned()
            case Lost():
                self._log.debug("flow_run.not_claimed", reason=answer.reason)
                await self._record.close()
            case Unanswered():
                self._log.warning("flow_run.claim_unanswered", reason=answer.reason)
        return self._claimed

    async def _start(self, workspace: Workspace, address: ControlAddress) -> Launched | None:
        """Claim the run and start its process; None when the run is not ours, or has been settled instead."""
        async with AsyncExitStack() as stack:
            make = partial(
                self._services.readying.make,
                stack,
                self._flow_run,
                workspace=workspace,
                address=address,
                marker=self._record.marker,
            )
            try:
                outcome = await beside(self._win, make, stack.aclose, after=self._services.claims.contested)
                ready = None if outcome is None else await self._ready(stack, outcome, workspace)
                # The last moment at which nothing has been started.
                await anyio.lowlevel.checkpoint_if_cancelled()
            except anyio.get_cancelled_exc_class():
                await stack.aclose()
                if self._claimed:
                    await self._undo(answered=True)
                raise
            if ready is None:
                return None
            return await self._launch(*ready, workspace, address)

    async def _ready(
        self, stack: AsyncExitStack, outcome: Start | Exception, workspace: Workspace
    ) -> tuple[Prepared, Ready] | None:
        """Put on record that the process will be started; None when the run has been settled instead."""
        match outcome:
            case Start(prepared, ready):
                pass
            case DeploymentGone():
                await self._reports.orphaned()
                return None
            case Unpreparable():
                await self._reports.not_started(str(outcome))
                return None
            case _:
                raise outcome
        for note in prepared.job.notes:
            self._run_log.warning(note)
        if not await self._still_ours(stack):
            return None
        if isinstance(ready, LaunchError):
            self._announce(prepared)
            await self._not_launched(ready)
            return None
        if not await self._record.launching(
            directory=workspace.directory,
            stream_output=prepared.spec.stream_output,
            engine=prepared.job.command is None,
            flow=prepared.flow.name if prepared.flow else None,
            deployment=prepared.deployment.name if prepared.deployment else None,
        ):
            await stack.aclose()
            await self._reports.given_back("The worker cannot write its journal.")
            return None
        return prepared, ready

    async def _still_ours(self, stack: AsyncExitStack) -> bool:
        """Whether the run is still to be started; otherwise it is settled.

        The answer to the claim counts for a moment only. Cancelled, deleted or moved meanwhile: a late engine would take
        the run to Running all the same (PROTOCOL 5.1).
        """
        standing = Standing.OURS
        if anyio.current_time() - self._seen > LONGEST_SINCE_LOOK:
            standing = await self._services.claims.standing(self._flow_run, self._attempt_id, held=True)
        if self._cancel_requested.is_set():
            standing = Standing.OURS_CANCELLING
        if standing not in {Standing.OURS_CANCELLING, Standing.THEIRS, Standing.GONE}:
            return True
        await stack.aclose()
        await self._reports.undone(standing, STOPPED_BEFORE_START)
        return False

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
            self._services.gate.shortage(str(error))
            await self._reports.given_back(f"The worker {error}.")
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

    async def _undo(self, *, answered: bool) -> None:
        """The daemon is ending and nothing was started: leave the run as if we had never touched it."""
        with anyio.move_on_after(FINAL_REPORT_LIMIT, shield=True) as limit:
            standing = await self._services.claims.settled(
                self._flow_run, self._attempt_id, answered=answered
            )
            await self._reports.undone(standing, STOPPED_BEFORE_START)
        if limit.cancelled_caught:
            self._reports.unreported()

    @asynccontextmanager
    async def _place(self, workspace: Workspace) -> AsyncGenerator[ControlAddress]:
        """The attempt's own directory and its place on the control channel.

        Both are gone afterwards, but for the directory of a claimed run that is not settled: recovery needs it.
        """
        token = self._services.control.register(str(self._flow_run.id))
        try:
            yield ControlAddress(port=self._services.control.port, token=token)
        finally:
            self._services.control.unregister(token)
            if self._record.closed or not self._claimed:
                await workspace.remove()
