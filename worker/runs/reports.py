"""The last step: the server is asked once how the run stands, and told what the process could not say.

Which outcome it is, `conclusion` decides; the wording of proposals is `states`' business.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
import structlog

from worker.api.errors import ApiError, NotFound, ServerFault
from worker.api.models import FlowRun, StateType
from worker.processes.control_messages import Disposition, Receipt
from worker.processes.output import tail
from worker.processes.process import Exit
from worker.runs.conclusion import Attempt, Outcome, ServerRun, Verdict, conclude
from worker.runs.outbox import RunLog
from worker.runs.services import Services
from worker.runs.states import Claim
from worker.runs.supervision import Ended, Launched

TAIL_LINES = 20
TAIL_BYTES = 16 * 1024
# How long a server that answers with faults is asked again for the last word about a run, in seconds.
PATIENCE = 300.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
BEFORE_START = "Flow run was cancelled before execution started."


T = TypeVar("T")


class Reports:
    """Tells the server the outcome of one run; made and discarded with its execution."""

    def __init__(self, *, flow_run: FlowRun, services: Services) -> None:
        self._flow_run = flow_run
        self._services = services
        self._run_log = RunLog(flow_run.id, services.outbox)
        self._log = structlog.get_logger()

    async def ended(self, claim: Claim, launched: Launched, ended: Ended) -> None:
        """Report a process that has ended."""
        self._log.info(
            "flow_run.exited",
            pid=launched.handle.pid,
            exit=ended.exit.describe(),
            seconds=round(ended.exit.ended - ended.exit.started, 3),
            max_rss_bytes=ended.exit.max_rss_bytes,
        )
        outcome = await self._conclude(claim, launched, ended)
        match outcome.verdict:
            case Verdict.CRASHED:
                self._show_last_output(launched, ended.exit)
                await self.crashed(outcome.message)
            case Verdict.CANCELLED:
                await self.cancelled(outcome.message)
            case Verdict.SETTLED:
                self._reported(outcome)
        self._services.events.executed(
            launched.subject,
            pid=launched.handle.pid,
            status_code=ended.exit.status_code,
            submitted=ended.submitted_event,
        )

    async def not_started(self, message: str) -> None:
        """Report a claimed run that could not be started, and why."""
        self._run_log.error(
            f"Failed to submit flow run '{self._flow_run.name}' to infrastructure.\n{message}"
        )
        await self.crashed(message)

    async def crashed(self, message: str) -> None:
        """Propose Crashed; a run that is being cancelled can only become Cancelled (PROTOCOL 2.6)."""
        if await self._insist(partial(self._services.states.crash, self._flow_run.id, message)):
            self._run_log.info(f"Reported flow run '{self._flow_run.id}' as crashed: {message}")
            self._reported(Outcome(Verdict.CRASHED, message))
        elif await self._is_cancelling():
            await self.cancelled(BEFORE_START)
        else:
            self._reported(Outcome(Verdict.SETTLED, "the run has already ended"))

    async def cancelled(self, message: str, *, force: bool = False) -> None:
        """Propose Cancelled; nothing of the run is alive any more."""
        await self._insist(partial(self._services.states.cancel, self._flow_run.id, message, force=force))
        self._reported(Outcome(Verdict.CANCELLED, message))

    async def given_back(self, claim: Claim) -> None:
        """Return a run that was claimed but not started, because the daemon is ending."""
        await self._services.states.give_back(claim, now=self._services.now())
        self._log.info("flow_run.given_back", reason="the daemon stopped before the run was started")

    async def failed(self, error: Exception) -> None:
        """The last resort: an error of our own, or of a server that keeps refusing to answer."""
        self._log.error("flow_run.error", reason=str(error), exc_info=error)
        try:
            await self.crashed(f"The worker failed while handling the run: {type(error).__name__}: {error}")
        except ApiError as refusal:
            self._log.error("flow_run.unreported", reason=str(refusal))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask until the server gives a sound answer, for `PATIENCE` seconds at least.

        The client has waited out what is transient; what is left are answers such as 500. The last word about a run is
        worth some tries more, but a run that the server cannot even read must not hold its slot for ever.
        """
        deadline = anyio.current_time() + PATIENCE
        pause = FIRST_PAUSE
        while True:
            try:
                return await call()
            except ServerFault as error:
                if anyio.current_time() >= deadline:
                    raise
                self._log.debug("flow_run.report_retried", reason=str(error), pause=pause)
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _conclude(self, claim: Claim, launched: Launched, ended: Ended) -> Outcome:
        word = await self._services.control.finish(launched.token)
        if isinstance(word, Receipt) and word.disposition is Disposition.STATE_REPORTED:
            # The engine's own word that it has reported how the attempt ended (PROTOCOL 4.4).
            return Outcome(Verdict.SETTLED, f"the run is {word.state_name}")
        return conclude(
            ended=ended.exit,
            intent=ended.intent,
            attempt=Attempt(transition_id=claim.transition_id, infrastructure_pid=ended.infrastructure_pid),
            server=await self._ask(),
        )

    async def _ask(self) -> ServerRun | None:
        try:
            return ServerRun.of(
                await self._insist(partial(self._services.client.read_flow_run, self._flow_run.id))
            )
        except NotFound:
            return None

    async def _is_cancelling(self) -> bool:
        server = await self._ask()
        return server is not None and server.state_type is StateType.CANCELLING

    def _show_last_output(self, launched: Launched, exit_: Exit) -> None:
        lines = tail(launched.output, max_bytes=TAIL_BYTES, max_lines=TAIL_LINES)
        if lines:
            text = "\n".join(lines)
            self._run_log.error(f"The process ended with {exit_.describe()}. Its last output:\n{text}")

    def _reported(self, outcome: Outcome) -> None:
        level = self._log.warning if outcome.verdict is Verdict.CRASHED else self._log.info
        level("flow_run.reported", outcome=outcome.verdict.value, reason=outcome.message)
