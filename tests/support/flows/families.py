"""User code that starts processes which do not want to be found, as a flow and as a custom command."""

import os
import signal
import sys
import time
import uuid
from pathlib import Path

from prefect import flow, runtime


def note(out: str, kind: str, pid: int) -> None:
    """One file per process; written under another name first, so that a reader never sees half of it."""
    target = Path(out) / f"{kind}.{uuid.uuid4().hex[:6]}.pid"
    draft = target.with_suffix(".draft")
    draft.write_text(str(pid))
    draft.rename(target)


def daemonize(out: str, name: str) -> None:
    """Leave a daemon behind as daemon(7) says: fork, setsid, fork; this one ignores SIGTERM, too."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")
    note(out, f"{name}.daemon", os.getpid())
    time.sleep(600)
    os._exit(0)


@flow
def daemonizes(out: str) -> None:
    """Sleep beside a daemon."""
    daemonize(out, str(runtime.flow_run.id))
    note(out, f"{runtime.flow_run.id}.leader", os.getpid())
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.1)


def main(out: str, *, deaf: bool) -> None:
    """A custom command that never becomes a flow: sleeps beside a daemon, ignoring SIGTERM if `deaf`."""
    run_id = os.environ["PREFECT__FLOW_RUN_ID"]
    daemonize(out, run_id)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
    note(out, f"{run_id}.leader", os.getpid())
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], deaf=sys.argv[2:] == ["deaf"])
