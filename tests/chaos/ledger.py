"""The ledger: what the runs' own processes say of themselves, one line when a run begins and one when it ends.

Owns the line format, writing it so that it survives whatever happens next, and reading it. Imports the standard
library only and nothing of the tests: the processes of the runs import it by its path. It judges nothing.

Each line is one `write` to a file opened with O_APPEND, so lines of several processes never mix (write(2)), and it
is on the disk before the run goes on (fsync(2)). Times are seconds since boot, which all processes of a machine
share (CLOCK_BOOTTIME, clock_gettime(2)). A process also holds a lock on a file of its run until the kernel releases
it with the process's death (flock(2)); a second process of the run finds it taken and says so in the ledger.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

DIRECTORY = "CHAOS_LEDGER"
SECONDS = "CHAOS_SECONDS"
EXECUTION_ID = "HEADRACE_EXECUTION_ID"
RUN_ID = "PREFECT__FLOW_RUN_ID"


class Kind(StrEnum):
    """BESIDE: another living process of the same run holds the run's lock."""

    BEGIN = "begin"
    END = "end"
    BESIDE = "beside"


@dataclass(frozen=True)
class Line:
    """What one process said once; `execution_id` is empty when the daemon gave it none, `at` is in seconds since boot."""

    run_id: str
    execution_id: str
    pid: int
    at: float
    kind: Kind


class Writer:
    """One process's pen. Made when the run begins; the run's lock is held for as long as the process lives."""

    def __init__(self, environment: Mapping[str, str], *, run_id: str) -> None:
        self._directory = Path(environment[DIRECTORY])
        self._run_id = run_id
        self._execution_id = environment.get(EXECUTION_ID, "")
        self._lock: int | None = None

    def begin(self) -> None:
        """Say that the run begins, and whether it does so beside another process of the same run."""
        self._write(Kind.BEGIN)
        self._lock = os.open(
            self._directory / f"{self._run_id}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._write(Kind.BESIDE)

    def end(self) -> None:
        """Say that the run has done its work."""
        self._write(Kind.END)

    def close(self) -> None:
        """Let go of the run's lock, for a process that outlives its run; one that ends does so by ending."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, kind: Kind) -> None:
        line = Line(
            run_id=self._run_id, execution_id=self._execution_id, pid=os.getpid(), at=boot_time(), kind=kind
        )
        file = os.open(
            ledger_file(self._directory), os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(file, (json.dumps(asdict(line)) + "\n").encode())
            os.fsync(file)
        finally:
            os.close(file)


def boot_time() -> float:
    """Seconds since the machine was booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ledger_file(directory: Path) -> Path:
    return directory / "ledger.jsonl"


def read(directory: Path) -> list[Line]:
    """Every whole line so far, in the order of writing; a line that is being written is left for the next reading."""
    try:
        text = ledger_file(directory).read_text()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [parse(line) for line in whole.splitlines()]


def parse(text: str) -> Line:
    """One line of the file. Raises ValueError when it is none."""
    fields = json.loads(text)
    return Line(
        run_id=str(fields["run_id"]),
        execution_id=str(fields["execution_id"]),
        pid=int(fields["pid"]),
        at=float(fields["at"]),
        kind=Kind(fields["kind"]),
    )
