"""One function per blow that needs more than a signal to a daemon; each tells whom it hit, None when nobody was there."""

import os
import signal
from pathlib import Path
from random import Random

from tests.chaos import ledger
from tests.chaos.notes import Notes
from tests.chaos.verdict import Kill
from tests.support.api import PrefectApi


def kill_flow(notes: Notes, *, directory: Path, random: Random) -> str | None:
    """SIGKILL the process of a run that has begun and not ended, and was neither killed nor cancelled before."""
    lines = ledger.read(directory)
    spared = {line.run_id for line in lines if line.kind is ledger.Kind.END} | notes.cancelled
    spared |= {run_id for run_id, _ in notes.kills}
    running = [line for line in lines if line.kind is ledger.Kind.BEGIN and line.run_id not in spared]
    random.shuffle(running)
    for line in running:
        if _kill_process(line.pid, environment_has=f"{ledger.EXECUTION_ID}={line.execution_id}"):
            kill = Kill(execution_id=line.execution_id, pid=line.pid, at=ledger.boot_time())
            notes.kills.append((line.run_id, kill))
            return f"run {line.run_id}, pid {line.pid}"
    return None


def cancel_run(notes: Notes, *, open_runs: dict[str, str], api: PrefectApi, random: Random) -> str | None:
    """Cancel a run that is neither over nor killed; noted only if the server takes it."""
    candidates = sorted(open_runs.keys() - notes.cancelled - {run_id for run_id, _ in notes.kills})
    if not candidates:
        return None
    run_id = random.choice(candidates)
    answer = api.cancel(run_id)
    if answer["state"]["type"] not in {"CANCELLING", "CANCELLED"}:
        return None
    notes.cancelled.add(run_id)
    return f"run {run_id}, {open_runs[run_id].lower()}"


def _kill_process(pid: int, *, environment_has: str) -> bool:
    """SIGKILL exactly the process that was started with this in its environment, never a later one of its pid."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if environment_has not in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
