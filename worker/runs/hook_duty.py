"""The hooks of one attempt that its dead engine can no longer run: asking whether they are due, and having them run once.

What is due is decided in `hooks`, which also runs them; here are the reads, the record and the words for the run's log.
"""

import structlog

from worker.api.errors import ApiError, NotFound
from worker.api.models import FlowRun
from worker.processes.launch_problems import LaunchSpec
from worker.runs.conclusion import Outcome, Verdict
from worker.runs.hooks import hooks_due, state_to_tell
from worker.runs.launch_spec import ControlAddress
from worker.runs.outbox import RunLog
from worker.runs.preparation import Unpreparable
from worker.runs.readings import DeploymentGone
from worker.runs.record import Record
from worker.runs.services import Services
from worker.runs.workspace import Workspace

TIMEOUT = 60.0
# While the daemon is being told to end at once: the state has to be reported, too.
HURRIED_TIMEOUT = 15.0


class HookDuty:
    """Made with the reports of an attempt. Hooks are begun at most once, also over the end of a daemon."""

    def __init__(self, *, flow_run: FlowRun, record: Record, services: Services) -> None:
        self._flow_run = flow_run
        self._record = record
        self._services = services
        self._run_log = RunLog(flow_run.id, services.outbox)
        self._log = structlog.get_logger()

    async def fulfil(
        self,
        outcome: Outcome,
        workspace: Workspace,
        *,
        spec: LaunchSpec | None,
        engine_spoke: bool,
        hurried: bool,
    ) -> None:
        """Run what is due: before Cancelled is proposed, after Crashed was accepted (PROTOCOL 4.6).

        `spec` is what the process was started with; None if an earlier daemon started it, which has it made again.
        `engine_spoke`: the engine has sent a receipt. What keeps the hooks from being run is told in the run's log; it
        keeps the run from nothing.
        """
        if self._record.entry.hooks_begun:
            return
        try:
            flow_run = await self._services.client.read_flow_run(self._flow_run.id)
        except NotFound:
            return
        kind = hooks_due(
            verdict=outcome.verdict,
            accepted=outcome.verdict is Verdict.CRASHED,
            launched=True,
            concluded=engine_spoke,
            state=flow_run.state,
        )
        if kind is None:
            return
        await self._record.hooks_begin()
        reason = None
        try:
            spec = spec or await self._prepared_again(flow_run, workspace)
        except (Unpreparable, DeploymentGone, ApiError) as error:
            reason = f"The {kind} hooks could not be run: {error}"
        if spec is not None:
            reason = await self._services.hooks.run(
                kind,
                spec=spec,
                python=self._services.python,
                flow_run_id=flow_run.id,
                state=state_to_tell(kind, flow_run.state, message=outcome.message),
                output=workspace.output,
                marker=self._record.marker,
                timeout=HURRIED_TIMEOUT if hurried else TIMEOUT,
                print_line=self._print if spec.stream_output else None,
            )
        if reason is not None:
            self._run_log.warning(reason)
            self._log.warning("flow_run.hooks_not_run", hooks=kind.value, reason=reason)

    async def _prepared_again(self, flow_run: FlowRun, workspace: Workspace) -> LaunchSpec:
        """The environment is not on record, as it holds secrets: it is resolved anew."""
        prepared = await self._services.preparation.prepare(
            flow_run, control=ControlAddress(port=0, token=""), fresh_directory=workspace.work
        )
        return prepared.spec

    def _print(self, line: str) -> None:
        self._services.print_output(self._flow_run, line)
