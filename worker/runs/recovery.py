"""What an earlier daemon, or a server that did not answer, has left unsettled: each open journal entry is settled.

`decide` is the decision, over plain values. Carrying it out is `Recovery`'s: at boot before anything is claimed, and
from then on now and then, for what could not be reported when it was due.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import assert_never
from uuid import UUID

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from structlog.contextvars import bound_contextvars

from worker.api.models import FlowRun
from worker.processes.process import Exit, ProcessHandle
from worker.processes.process_table import Identity, boot_id, find_leader, read_process
from worker.processes.tree import end_strays
from worker.runs.adoption import Adoption
from worker.runs.claims import Standing
from worker.runs.journal_entry import Entry, Phase
from worker.runs.record import Ended, Record, marker_of
from worker.runs.reports import Reports
from worker.runs.services import Services
from worker.runs.workspace import Workspace

INTERVAL = 30.0
# How long a claim whose request was lost can still be carried out by a slow server.
CLAIM_SETTLES = timedelta(minutes=5)
STOPPED_BEFORE_START = "The worker ended before the run was started."


class Action(StrEnum):
    """What to do about an open entry."""

    ADOPT = "adopt"
    REPORT = "report"
    GIVE_BACK = "give back"
    CANCEL = "cancel"
    DISCARD = "discard"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Found:
    """What is left of an attempt on this machine: its living process, and whether one may ever have been started."""

    process: Identity | None
    began: bool


def decide(*, phase: Phase, alive: bool, began: bool, standing: Standing, age: timedelta) -> Action:
    """What to do about an open entry that nobody attends to.

    A living process is adopted whatever the server says: it is there. One that has ended, or may have begun, is
    reported. What certainly never began is given back if the claim is ours; `age` is how long ago it was made.
    """
    if phase is not Phase.CLAIMING and alive:
        return Action.ADOPT
    if phase is not Phase.CLAIMING and began:
        return Action.REPORT
    match standing:
        case Standing.OURS:
            return Action.GIVE_BACK
        case Standing.OURS_CANCELLING:
            return Action.CANCEL
        case Standing.THEIRS | Standing.GONE:
            return Action.DISCARD
        case Standing.UNTOUCHED:
            # The request may still be on its way. Clocks jump: an entry from the future is as old as any.
            return Action.WAIT if timedelta(0) <= age < CLAIM_SETTLES else Action.DISCARD
        case Standing.UNKNOWN:
            return Action.WAIT
        case _:
            assert_never(standing)


class Recovery:
    """Settles open entries; one for the daemon's life.

    `executions` is where adopted processes are attended to, `settling` where everything else is done; `clock` gives wall-clock seconds, `now` the same as a time.
    """

    def __init__(
        self,
        *,
        services: Services,
        executions: TaskGroup,
        settling: TaskGroup,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._services = services
        self._executions = executions
        self._settling = settling
        self._clock = clock
        self._now = now
        self._attended: set[UUID] = set()
        self._troubled: set[UUID] = set()
        self._log = structlog.get_logger()

    async def adopt_living(self) -> None:
        """Take over every process that still runs; needs no server."""
        for entry in self._open():
            if entry.phase in {Phase.LAUNCHING, Phase.LAUNCHED}:
                found = await anyio.to_thread.run_sync(_find, entry)
                if found.process is not None:
                    with self._attending_to(entry):
                        await self._adopt(entry, found.process)

    async def settle_once(self) -> float:
        """Settle what nobody attends to; returns the seconds until the next look."""
        for entry in self._open():
            self._settling.start_soon(self._settle, entry)
        return INTERVAL

    async def settle_all(self) -> None:
        """Settle what nobody attends to, and wait until each has been tried."""
        async with anyio.create_task_group() as settling:
            for entry in self._open():
                settling.start_soon(self._settle, entry)

    def _open(self) -> list[Entry]:
        """Entries that neither an execution nor an adoption of this daemon is working on."""
        in_flight = set(self._services.in_flight)
        return [
            entry
            for entry in self._services.journal.entries()
            if entry.attempt not in self._attended and entry.flow_run_id not in in_flight
        ]

    async def _settle(self, entry: Entry) -> None:
        if entry.attempt in self._attended:
            return
        with self._attending_to(entry):
            await self._act(entry)

    @contextmanager
    def _attending_to(self, entry: Entry) -> Generator[None]:
        """Keep others away from the entry; its trouble is told, and it is tried again later."""
        self._attended.add(entry.attempt)
        try:
            with bound_contextvars(flow_run_id=str(entry.flow_run_id), flow_run=entry.name):
                yield
        except Exception as error:  # noqa: BLE001 - one run's trouble is not the others'
            reason = str(error) or type(error).__name__
            log = self._log.debug if entry.attempt in self._troubled else self._log.warning
            log("flow_run.unsettled", flow_run_id=str(entry.flow_run_id), reason=reason)
            self._troubled.add(entry.attempt)
        else:
            self._troubled.discard(entry.attempt)
        finally:
            self._attended.discard(entry.attempt)

    async def _act(self, entry: Entry) -> None:
        found = await anyio.to_thread.run_sync(_find, entry)
        standing = Standing.UNKNOWN
        if not found.began:
            # A process was about to be started only because the claim was known to be accepted.
            standing = await self._services.claims.standing(
                _flow_run(entry), entry.attempt, held=entry.phase is not Phase.CLAIMING
            )
        action = decide(
            phase=entry.phase,
            alive=found.process is not None,
            began=found.began,
            standing=standing,
            age=self._now() - entry.since,
        )
        log = self._log.debug if action is Action.WAIT else self._log.info
        log("flow_run.recovered", phase=entry.phase.value, action=action.value)
        record = Record(self._services.journal, entry)
        reports = Reports(flow_run=_flow_run(entry), record=record, services=self._services)
        match action:
            case Action.ADOPT:
                if found.process is not None:
                    await self._adopt(entry, found.process)
            case Action.REPORT:
                await self._report(entry, record, reports)
            case Action.GIVE_BACK | Action.CANCEL | Action.DISCARD:
                await end_strays(marker_of(entry))
                await reports.undone(standing, STOPPED_BEFORE_START)
                if action is Action.DISCARD and not record.closed:
                    await record.close()
            case Action.WAIT:
                pass
            case _:
                assert_never(action)
        if record.closed and record.entry.directory:
            await Workspace(Path(record.entry.directory)).remove()

    async def _workspace(self, record: Record) -> Workspace:
        """The attempt's directory; a new one if it is gone, for the output of its hooks; without, if none can be made."""
        entry = record.entry
        if entry.directory and await anyio.Path(entry.directory).is_dir():
            return Workspace(Path(entry.directory))
        try:
            workspace = Workspace.make(self._services.runs_directory, entry.flow_run_id)
        except OSError as error:
            self._log.warning("run_directory.missing", reason=str(error))
            return Workspace(self._services.runs_directory / str(entry.flow_run_id))
        await record.placed(workspace.directory)
        return workspace

    async def _adopt(self, entry: Entry, process: Identity) -> None:
        record = Record(self._services.journal, entry)
        workspace = await self._workspace(record)
        handle = ProcessHandle.adopt(
            identity=process,
            marker=marker_of(entry),
            started=entry.started or self._clock(),
            clock=self._clock,
        )
        if handle is None:
            return  # it has ended this moment; the next look settles it
        adoption = Adoption(
            flow_run=_flow_run(entry),
            record=record,
            handle=handle,
            workspace=workspace,
            services=self._services,
        )
        await self._executions.start(adoption.run)

    async def _report(self, entry: Entry, record: Record, reports: Reports) -> None:
        await end_strays(marker_of(entry))
        if entry.exit is None:
            now = self._clock()
            exit_ = Exit(code=None, signal=None, max_rss_bytes=None, started=now, ended=now)
            await record.exited(
                Ended(exit=exit_, intent=entry.intent, infrastructure_pid=entry.infrastructure_pid),
                concluded=None,
            )
        await reports.exited(await self._workspace(record))


def _find(entry: Entry) -> Found:
    """Look on this machine for what the entry tells of. In a thread: it reads the process table."""
    if entry.phase is Phase.CLAIMING:
        return Found(process=None, began=False)
    process = None
    if entry.phase is not Phase.EXITED and entry.boot == boot_id():
        process = _still(entry.process) if entry.process is not None else find_leader(marker_of(entry))
    began = process is not None or entry.phase is not Phase.LAUNCHING
    if not began and entry.directory:
        began = Workspace(Path(entry.directory)).output.exists()
    return Found(process=process, began=began)


def _still(process: Identity) -> Identity | None:
    """The process, if it is alive; its environment may hide the mark by now (sudo, env -i), its identity cannot."""
    info = read_process(process.pid)
    return process if info is not None and info.identity == process and not info.dead else None


def _flow_run(entry: Entry) -> FlowRun:
    """As much of the run as the entry tells."""
    return FlowRun(
        id=entry.flow_run_id,
        name=entry.name,
        state_id=entry.state_id,
        next_scheduled_start_time=entry.due,
    )
