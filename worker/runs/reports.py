"""The last step: the server is asked once how the run stands, and told what the process could not say.

Which outcome it is, `conclusion` decides; the wording of proposals is `states`' business. The attempt's record is
closed here, and only when the server has the outcome: what could not be reported stays open for `recovery`.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import assert_never

import anyio
import structlog

from worker.api.errors import NotFound
from worker.api.models import FlowRun, StateType
from worker.metrics import GIVEN_BACK
from worker.processes.control_messages import Disposition, Receipt
from worker.processes.control_messages import Intent as ControlIntent
from worker.processes.launch_problems import LaunchSpec
from worker.processes.output import tail
from worker.processes.process import Exit
from worker.runs.claims import Standing, last_claim
from worker.runs.conclusion import Attempt, Intent, Outcome, ServerRun, Verdict, conclude
from worker.runs.exit_cause import exit_cause
from worker.runs.hook_duty import HookDuty
from worker.runs.insisting import insist
from worker.runs.journal_entry import Phase
from worker.runs.outbox import RunLog
from worker.runs.record import Ended, Record
from worker.runs.services import Services
from worker.runs.supervision import Launched
from worker.runs.workspace import Workspace

TAIL_LINES = 20
TAIL_BYTES = 16 * 1024
# How long the last words about a run may take once the daemon was told to end at once, in seconds.
FINAL_REPORT_LIMIT = 30.0
BEFORE_START = "Flow run was cancelled before execution started."


class Reports:
    """Tells the server the outcome of one attempt; made and discarded with its execution.

    A report that the daemon's end interrupts is made once more, shielded, for at most `FINAL_REPORT_LIMIT`
    seconds: a run is not left in limbo because somebody was in a hurry.
    """

    def __init__(self, *, flow_run: FlowRun, record: Record, services: Services) -> None:
        self._flow_run = flow_run
        self.record = record
        self._services = services
        self._hook_duty = HookDuty(flow_run=flow_run, record=record, services=services)
        self._spec: LaunchSpec | None = None
        self._engine_spoke = False
        self._hurried = False
        self._began = False
        self._run_log = RunLog(flow_run.id, services.outbox)
        self._log = structlog.get_logger()

    async def ended(self, launched: Launched, ended: Ended, *, limit: float | None = None) -> None:
        """Report a process that has ended; `limit` bounds the seconds this may take."""
        self._log.info(
            "flow_run.exited",
            pid=launched.handle.pid,
            exit=ended.exit.describe(),
            seconds=round(ended.exit.ended - ended.exit.started, 3),
            max_rss_bytes=ended.exit.max_rss_bytes,
        )
        with anyio.CancelScope(shield=True):
            word = await self._services.control.finish(launched.token) if launched.token else None
            self._services.metrics.exited(exit_cause(ended, word), peak_memory=ended.exit.max_rss_bytes)
            self._engine_spoke = isinstance(word, Receipt)
            self._spec = launched.spec
            self._hurried = limit is not None
            await self.record.exited(ended, concluded=_concluded(word, ended.intent))
        with anyio.move_on_after(limit) as scope:
            await self.exited(launched.workspace)
        if scope.cancelled_caught:
            self.unreported()
        if launched.subject is not None:
            self._services.events.executed(
                launched.subject,
                pid=launched.handle.pid,
                status_code=ended.exit.status_code,
                submitted=launched.submitted_event,
            )

    async def exited(self, workspace: Workspace) -> None:
        """Report an attempt whose exit is on record."""
        await self._last_words(partial(self._report, workspace))

    async def not_started(self, message: str) -> None:
        """Report a claimed run that could not be started, and why."""
        self._run_log.error(
            f"Failed to submit flow run '{self._flow_run.name}' to infrastructure.\n{message}"
        )
        await self._last_words(partial(self._crashed, message))

    async def cancelled(self, message: str, *, force: bool = False) -> None:
        """Report a run that was cancelled; nothing of it is alive."""
        await self._last_words(partial(self._cancelled, message, force=force))

    async def orphaned(self) -> None:
        """Report a run whose deployment is gone: nobody can start it any more (PROTOCOL 2.12)."""
        message = f"Deployment {self._flow_run.deployment_id} no longer exists, cancelled run."
        await self.cancelled(message, force=True)

    async def given_back(self, message: str) -> None:
        """Return a run that was claimed but not started."""
        await self._last_words(partial(self._given_back, message))

    async def undone(self, standing: Standing, message: str) -> None:
        """Leave a run that was not started as if it had never been claimed, from how it stands towards our claim.

        What the server does not say, or may still change, stays on record.
        """
        match standing:
            case Standing.OURS:
                await self.given_back(message)
            case Standing.OURS_CANCELLING:
                await self.cancelled(BEFORE_START)
            case Standing.THEIRS | Standing.GONE:
                await self.record.close()
            case Standing.UNTOUCHED | Standing.UNKNOWN:
                self._log.debug("flow_run.claim_open", standing=standing.value)
            case _:
                assert_never(standing)

    async def failed(self, error: Exception, *, claimed: bool) -> None:
        """The last resort: an error of our own, or of a server that keeps refusing to answer.

        A run that was not claimed is not ours to judge. Raises nothing but cancellation.
        """
        self._log.error("flow_run.error", reason=str(error), exc_info=error)
        if not claimed:
            return
        if self.record.entry.phase is Phase.EXITED:
            # The true reason is on record; recovery reports it.
            self.unreported(str(error))
            return
        message = f"The worker failed while handling the run: {type(error).__name__}: {error}"
        try:
            await self._last_words(partial(self._crashed, message))
        except Exception as refusal:  # noqa: BLE001 - nothing is left to try
            self.unreported(str(refusal))

    def unreported(self, reason: str = "the server did not answer in time") -> None:
        """Say that the server may still show a state that is not so."""
        self._log.error("flow_run.unreported", reason=reason, then="it is reported later, from the journal")

    async def _last_words(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except anyio.get_cancelled_exc_class():
            if self._hurried:
                raise  # it was shielded already, and had its time
            with anyio.move_on_after(FINAL_REPORT_LIMIT, shield=True) as scope:
                await call()
            if scope.cancelled_caught:
                self.unreported()
            raise

    async def _report(self, workspace: Workspace) -> None:
        exit_ = self.record.entry.exit
        if exit_ is None:
            raise RuntimeError("an exit is reported that was not recorded")
        outcome = await self._conclude(exit_)
        match outcome.verdict:
            case Verdict.CRASHED:
                self._show_last_output(workspace.output, exit_)
                await self._crashed(outcome.message, workspace)
            case Verdict.CANCELLED:
                await self._run_hooks(outcome, workspace)
                await self._cancelled(outcome.message)
            case Verdict.RESCHEDULED:
                await self._rescheduled(outcome.message)
            case Verdict.SETTLED:
                await self._settled(outcome)
            case _:
                assert_never(outcome.verdict)

    async def _crashed(self, message: str, workspace: Workspace | None = None) -> None:
        """Propose Crashed; a run that is being cancelled can only become Cancelled (PROTOCOL 2.6).

        `workspace` is that of a process that was started: then its hooks may be due.
        """
        outcome = Outcome(Verdict.CRASHED, message)
        if await insist(partial(self._services.states.crash, self._flow_run.id, message)):
            self._run_log.info(f"Reported flow run '{self._flow_run.id}' as crashed: {message}")
            await self._run_hooks(outcome, workspace)
            await self._settled(outcome)
        elif await self._is_cancelling():
            await self._run_hooks(Outcome(Verdict.CANCELLED, message), workspace)
            await self._cancelled(BEFORE_START if workspace is None else message)
        else:
            await self._settled(Outcome(Verdict.SETTLED, "the run has already ended"))

    async def _run_hooks(self, outcome: Outcome, workspace: Workspace | None) -> None:
        if workspace is not None and self._began:
            await self._hook_duty.fulfil(
                outcome,
                workspace,
                spec=self._spec,
                engine_spoke=self._engine_spoke,
                hurried=self._hurried,
            )

    async def _cancelled(self, message: str, *, force: bool = False) -> None:
        if await insist(partial(self._services.states.cancel, self._flow_run.id, message, force=force)):
            await self._settled(Outcome(Verdict.CANCELLED, message))
        else:
            await self._settled(Outcome(Verdict.SETTLED, "the run has already ended"))

    async def _rescheduled(self, message: str) -> None:
        reschedule = partial(self._services.states.reschedule, self._flow_run.id, message)
        if await insist(partial(reschedule, due=self._services.now())):
            await self._settled(Outcome(Verdict.RESCHEDULED, message))
        elif await self._is_cancelling():
            await self._cancelled(message)
        else:
            await self._settled(Outcome(Verdict.SETTLED, "the run has already ended"))

    async def _given_back(self, message: str) -> None:
        due = self.record.entry.due or self._services.now()
        give_back = partial(self._services.states.give_back, self._flow_run.id, message, due=due)
        if await insist(give_back):
            self._log.warning("flow_run.given_back", reason=message)
            self._services.metrics.reports[GIVEN_BACK] += 1
            await self.record.close()
        elif await self._is_cancelling():
            await self._cancelled(BEFORE_START)
        else:
            await self._settled(Outcome(Verdict.SETTLED, "the run is not ours any more"))

    async def _conclude(self, exit_: Exit) -> Outcome:
        entry = self.record.entry
        if entry.concluded is not None:
            return Outcome(Verdict.SETTLED, f"the run is {entry.concluded}")
        server = await self._ask()
        self._began = server is not None and server.state_type is not StateType.PENDING
        outcome = conclude(
            ended=exit_,
            intent=entry.intent,
            attempt=Attempt(transition_id=entry.attempt, infrastructure_pid=entry.infrastructure_pid),
            server=server,
            evidence=entry.evidence,
        )
        if outcome.verdict is not Verdict.SETTLED and entry.infrastructure_pid is None:
            # The server never got to know our pid, so a pid cannot tell our attempt from a later one.
            states = await self._services.client.read_flow_run_states(self._flow_run.id)
            if last_claim(states) not in {None, entry.attempt}:
                return Outcome(Verdict.SETTLED, "another attempt of the run has begun")
        return outcome

    async def _ask(self) -> ServerRun | None:
        try:
            return ServerRun.of(await insist(partial(self._services.client.read_flow_run, self._flow_run.id)))
        except NotFound:
            return None

    async def _is_cancelling(self) -> bool:
        server = await self._ask()
        return server is not None and server.state_type is StateType.CANCELLING

    def _show_last_output(self, output: Path, exit_: Exit) -> None:
        try:
            lines = tail(output, max_bytes=TAIL_BYTES, max_lines=TAIL_LINES, mask=self._services.mask)
        except OSError as error:
            self._log.warning("output.unreadable", reason=str(error))
            return
        if lines:
            text = "\n".join(lines).replace("\0", "\N{REPLACEMENT CHARACTER}")
            self._run_log.error(f"The process ended with {exit_.describe()}. Its last output:\n{text}")

    async def _settled(self, outcome: Outcome) -> None:
        level = self._log.warning if outcome.verdict is Verdict.CRASHED else self._log.info
        self._services.metrics.reports[outcome.verdict] += 1
        level("flow_run.reported", outcome=outcome.verdict.value, reason=outcome.message)
        await self.record.close()


def _concluded(word: ControlIntent | Receipt | None, intent: Intent) -> str | None:
    """The state that the engine itself says it has reported (PROTOCOL 4.4), if that settles the attempt.

    An engine that was ended by us and did not hear why reports a crash, which is not what was asked for.
    """
    if not isinstance(word, Receipt) or word.disposition is not Disposition.STATE_REPORTED:
        return None
    if word.state_type == StateType.CRASHED.value and intent in {Intent.CANCEL, Intent.RESCHEDULE}:
        return None
    return word.state_name or "over"
