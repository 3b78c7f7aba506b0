"""A launched process from its first breath to its last: noted, listened to, cancelled, cleaned up after.

Owns nothing that outlives the process. What its end means for the run is `conclusion`'s decision.
"""

from dataclasses import dataclass
from uuid import UUID

import anyio
import structlog

from worker.api.errors import ApiError
from worker.api.models import FlowRun
from worker.processes.control_messages import Disposition, IntentResult, Receipt
from worker.processes.control_messages import Intent as ControlIntent
from worker.processes.evidence import (
    MemoryEvidence,
    describe_bytes,
    explain_memory_death,
    read_memory_evidence,
)
from worker.processes.launch_problems import LaunchSpec
from worker.processes.output import follow
from worker.processes.output_limit import bound
from worker.processes.process import Exit, ProcessHandle
from worker.runs.conclusion import Intent
from worker.runs.outbox import RunLog
from worker.runs.record import Ended, Record
from worker.runs.services import Services
from worker.runs.stopping import Stop
from worker.runs.worker_events import Subject
from worker.runs.workspace import Workspace

# How long a process has to live for its pid and labels to be noted on the server at once, in seconds. One more write while runs begin and end
# costs an SQLite server more than the pid of a process that is gone tells anybody.
NOTE_AFTER = 5.0
# How long a run that has ended waits for its pid to get through, in seconds.
NOTE_GRACE = 2.0
# How long an engine that listens may take to answer; on a busy machine its thread gets its turn late.
TELL_TIMEOUT = 5.0
# How long a process whose run has ended goes without a slot, in seconds: it has logs to send.
LINGER = 10.0


@dataclass(frozen=True, slots=True)
class Launched:
    """A process on its way, and where its traces are.

    An adopted one has no `token`: its control channel ended with the daemon that started it (PROTOCOL 4.4). An engine
    that could not be told before `mistakes_sigterm` for a crash, and would write so over a cancellation. Its
    `infrastructure_pid` is what is to be noted on the server, or has been. `memory` is what the kernel had counted
    when it was launched or adopted. Its `spec` is unknown to a daemon that did not start it.
    """

    flow_run: FlowRun
    handle: ProcessHandle
    workspace: Workspace
    stream_output: bool
    token: str | None
    mistakes_sigterm: bool
    infrastructure_pid: str
    memory: MemoryEvidence
    spec: LaunchSpec | None
    subject: Subject | None
    submitted_event: UUID | None


class Supervision:
    """Watches one process; made when it is launched, done when it and all it left behind are gone."""

    def __init__(
        self, *, launched: Launched, record: Record, services: Services, cancel_requested: anyio.Event
    ) -> None:
        self._launched = launched
        self._record = record
        self._services = services
        self._cancel_requested = cancel_requested
        self._log = structlog.get_logger()
        self._run_log = RunLog(launched.flow_run.id, services.outbox)
        self._intent = Intent.NONE
        self._noting = False
        self._infrastructure_pid: str | None = None

    async def until_exit(self) -> Ended:
        """Wait for the end, passing on the process's output and any cancellation of its run."""
        done = anyio.Event()
        noting = anyio.CancelScope()
        async with anyio.create_task_group() as attending:
            attending.start_soon(self._note_pid, noting)
            if self._launched.stream_output:
                attending.start_soon(self._forward_output, done)
            attending.start_soon(self._bound_output, done)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._obey_cancellation)
                watching.start_soon(self._watch_start)
                watching.start_soon(self._watch_end)
                await self._launched.handle.wait()
                watching.cancel_scope.cancel()
            if self._noting:
                noting.deadline = anyio.current_time() + NOTE_GRACE
            else:
                noting.cancel()
            await self._sweep()
            done.set()
        return self._ended(await self._launched.handle.wait())

    async def stop(self, how: Stop) -> Ended:
        """End the process because the daemon is ending; one that has ended by itself is left with its own reason."""
        if self._intent is Intent.NONE and self._launched.handle.alive():
            await self._intend(Intent.RESCHEDULE if how is Stop.RESCHEDULE else Intent.STOP)
            if how is Stop.RESCHEDULE:
                result = await self._tell(ControlIntent.RESCHEDULE)
                self._log.info("flow_run.rescheduling", engine=result.value)
        await self._launched.handle.stop(grace=self._services.kill_grace)
        exit_ = await self._launched.handle.wait()
        await self._sweep()
        return self._ended(exit_)

    async def _intend(self, intent: Intent) -> None:
        """Note why the process is ended before it is: whoever finds it ended must know."""
        self._intent = intent
        await self._record.intends(intent)

    async def relinquish(self) -> None:
        """Leave the process to the next daemon.

        An engine that is told so keeps it in mind: a SIGTERM that the next daemon sends later, without a channel on which
        to say why, is then not taken for a crash.
        """
        if await self._tell(ControlIntent.RELINQUISH) is IntentResult.ACKNOWLEDGED:
            await self._record.relinquished()
        self._launched.handle.close()

    def _ended(self, exit_: Exit) -> Ended:
        return Ended(
            exit=exit_,
            intent=self._intent,
            infrastructure_pid=self._infrastructure_pid,
            evidence=explain_memory_death(self._launched.memory, read_memory_evidence()),
        )

    async def _note_pid(self, scope: anyio.CancelScope) -> None:
        """Tell the server where the process is (PROTOCOL 2.7).

        It is information only, so it is not done for a process that is gone soon, and the run's end does not wait for it
        for long: `scope` is given a deadline then.
        """
        run = self._launched.flow_run
        pid = self._launched.infrastructure_pid
        with scope:
            try:
                await anyio.sleep(NOTE_AFTER)
                self._noting = True
                # Whoever has lost the journal finds the run by them (`lost_runs`).
                self._services.outbox.hurry_labels(run.id)
                await self._services.client.update_flow_run(run.id, infrastructure_pid=pid)
            except ApiError as error:
                self._log.warning("flow_run.pid_not_noted", reason=str(error))
                return
            self._infrastructure_pid = pid

    async def _forward_output(self, done: anyio.Event) -> None:
        workspace = self._launched.workspace

        def sink(line: str) -> None:
            self._services.print_output(self._launched.flow_run, line)

        try:
            await follow(
                workspace.output,
                sink=sink,
                done=done,
                offset=workspace.delivered(),
                delivered=workspace.note_delivered,
                mask=self._services.mask,
            )
        except Exception as error:  # noqa: BLE001 - trouble with the output must not end the flow
            self._log.warning("output.unreadable", reason=str(error))

    async def _bound_output(self, done: anyio.Event) -> None:
        """Keep the output's share of the disk within `--output-limit`; the run's log says so if that took something."""
        limit = self._services.output_limit
        try:
            dropped = await bound(self._launched.workspace.output, limit=limit, done=done)
        except Exception as error:  # noqa: BLE001 - same
            self._log.warning("output.unbounded", reason=str(error))
            return
        if dropped:
            self._log.warning("output.dropped", bytes=dropped, limit=limit)
            self._run_log.warning(
                f"The earliest {describe_bytes(dropped)} of the output were dropped from the worker's disk:"
                f" it keeps {describe_bytes(limit)} (--output-limit)."
            )

    async def _watch_start(self) -> None:
        """Note when the process is starting no more: its engine has connected, or should have."""
        run, in_flight, token = self._launched.flow_run, self._services.in_flight, self._launched.token
        if token is None:
            return
        engine = self._record.entry.engine
        with anyio.move_on_after(in_flight.patience(engine=engine)) as patience:
            await self._services.control.wait_connected(token)
        connected = not patience.cancelled_caught
        seconds = in_flight.started(run.id, connected=connected, engine=engine)
        if seconds is None:
            return
        self._log.debug("flow_run.started", connected=connected, seconds=round(seconds, 3))
        if connected:
            self._services.leads.measured(run.deployment_id, seconds)
            self._began(seconds)
        elif engine:
            # Slow and not silent, if it does connect: the next engine is to be given its time.
            silent = anyio.current_time()
            await self._services.control.wait_connected(token)
            in_flight.engine_connected()
            self._began(seconds + anyio.current_time() - silent)

    def _began(self, startup: float) -> None:
        """Count an engine that has connected, `startup` seconds after its run was about to be claimed."""
        now = self._services.now()
        self._services.metrics.began(startup=startup, due=self._record.entry.due, now=now)

    async def _watch_end(self) -> None:
        """Hand the slot on once the run's end is known, from its engine or the server: the process takes another second.

        One that does not go takes its slot again. What a flow does after its end is the user's, and not ended for our sake.
        """
        in_flight, run_id = self._services.in_flight, self._launched.flow_run.id
        async with anyio.create_task_group() as listening:
            listening.start_soon(self._listen_for_end)
            await in_flight.wait_concluded(run_id)
            listening.cancel_scope.cancel()
        self._log.debug("flow_run.concluded")
        await anyio.sleep(LINGER)
        in_flight.reclaim(run_id)
        self._log.info(
            "flow_run.lingering",
            pid=self._launched.handle.pid,
            seconds=LINGER,
            hint="the run has ended and its process has not: a thread or an atexit function of the flow keeps it alive",
        )

    async def _listen_for_end(self) -> None:
        """An engine that says that its orchestration was aborted has reported nothing; then its exit decides.

        So it does once the run is being cancelled or stopped: what such an engine reports need not be what was asked for.
        """
        if self._launched.token is None:
            return
        word = await self._services.control.wait_concluded(self._launched.token)
        if not isinstance(word, Receipt) or word.disposition is not Disposition.STATE_REPORTED:
            return
        if self._intent is Intent.NONE:
            self._services.in_flight.conclude(self._launched.flow_run.id)

    async def _obey_cancellation(self) -> None:
        """Cancel through the control channel, so that the engine runs its hooks; then end the process."""
        await self._cancel_requested.wait()
        began = anyio.current_time()
        await self._intend(Intent.CANCEL)
        result = await self._tell(ControlIntent.CANCEL)
        self._log.info("flow_run.cancelling", engine=result.value)
        if result is IntentResult.ALREADY_CONCLUDED:
            # It has reported and is about to end by itself.
            await anyio.sleep(self._services.kill_grace)
        if self._launched.mistakes_sigterm:
            await self._launched.handle.kill_tree()
        # Who was slow to answer has used up some of its time.
        spent = anyio.current_time() - began
        await self._launched.handle.stop(grace=max(0.0, self._services.kill_grace - spent))

    async def _tell(self, intent: ControlIntent) -> IntentResult:
        if self._launched.token is None:
            return IntentResult.NOT_CONNECTED
        return await self._services.control.send_intent(self._launched.token, intent, timeout=TELL_TIMEOUT)

    async def _sweep(self) -> None:
        """Whatever the run left behind ends with it; it could hold the output open for ever."""
        left = await self._launched.handle.sweep()
        if left:
            self._log.info("flow_run.swept", processes=left)
