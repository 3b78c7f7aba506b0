"""One attempt's journal entry, advanced step by step; the only writer of that entry.

Owns which facts go with which phase. The order of writing and doing is the callers': `execution`, `adoption` and
`reports`.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from uuid import UUID

from worker.api.models import FlowRun
from worker.processes.launcher import EXECUTION_ID
from worker.processes.process import Exit, ProcessHandle
from worker.processes.process_table import Identity, Marker, boot_id
from worker.runs.conclusion import Intent
from worker.runs.journal import Journal
from worker.runs.journal_entry import Entry, Phase


@dataclass(frozen=True, slots=True)
class Ended:
    """How the process ended, and what the daemon had done to it and said of it before."""

    exit: Exit
    intent: Intent
    infrastructure_pid: str | None
    evidence: str | None = None
    """What speaks for a lack of memory as the cause."""


class Record:
    """Made with an execution; `close` ends it, and leaving it open hands the attempt over to recovery."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
        self._journal = journal
        self._entry = entry
        self.closed = False

    @classmethod
    def begin(cls, journal: Journal, flow_run: FlowRun, *, attempt: UUID, now: datetime) -> "Record":
        """The record of an attempt that has not been claimed yet."""
        return cls(
            journal,
            Entry(
                attempt=attempt,
                flow_run_id=flow_run.id,
                name=flow_run.name,
                since=now,
                state_id=flow_run.state_id,
                due=flow_run.next_scheduled_start_time,
            ),
        )

    @property
    def entry(self) -> Entry:
        """The attempt as it was last noted."""
        return self._entry

    @property
    def marker(self) -> Marker:
        """What every process of the attempt carries in its environment."""
        return marker_of(self._entry)

    async def claiming(self) -> bool:
        """About to propose the claim; False when this cannot be written, and so must not be done."""
        return await self._announce(self._entry)

    async def launching(
        self,
        *,
        directory: Path,
        stream_output: bool,
        engine: bool,
        flow: str | None = None,
        deployment: str | None = None,
    ) -> bool:
        """About to start a process; False when this cannot be written, and so must not be done."""
        entry = replace(
            self._entry,
            phase=Phase.LAUNCHING,
            directory=str(directory),
            stream_output=stream_output,
            engine=engine,
            boot=boot_id(),
            flow=flow,
            deployment=deployment,
        )
        return await self._announce(entry)

    async def launched(self, handle: ProcessHandle) -> None:
        """The process runs."""
        await self._note(
            replace(
                self._entry,
                phase=Phase.LAUNCHED,
                process=Identity(handle.pid, handle.start_time),
                started=handle.started,
            )
        )

    async def exited(self, ended: Ended, *, concluded: str | None) -> None:
        """The process has ended, and nothing of it is left; `concluded` is what it said of itself."""
        await self._note(
            replace(
                self._entry,
                phase=Phase.EXITED,
                exit=ended.exit,
                intent=ended.intent,
                infrastructure_pid=ended.infrastructure_pid,
                concluded=concluded,
                evidence=ended.evidence,
            )
        )

    async def intends(self, intent: Intent) -> None:
        """About to end the process, and why."""
        await self._note(replace(self._entry, intent=intent))

    async def placed(self, directory: Path) -> None:
        """The attempt has a directory, in place of one that is gone or was never known."""
        await self._note(replace(self._entry, directory=str(directory)))

    async def relinquished(self) -> None:
        """The engine knows that this daemon leaves it."""
        await self._note(replace(self._entry, relinquished=True))

    async def hooks_begin(self) -> None:
        """About to run the hooks that the engine cannot run any more."""
        await self._note(replace(self._entry, hooks_begun=True))

    async def close(self) -> None:
        """The attempt is settled: nothing about it is left to do."""
        self.closed = True
        await self._journal.forget(self._entry.attempt)

    async def _announce(self, entry: Entry) -> bool:
        announced = await self._journal.announce(entry)
        if announced:
            self._entry = entry
        return announced

    async def _note(self, entry: Entry) -> None:
        self._entry = entry
        await self._journal.note(entry)


def marker_of(entry: Entry) -> Marker:
    """The variable by which the attempt's processes are found, however they were started and whoever is their parent."""
    return Marker(EXECUTION_ID, entry.attempt.hex)
