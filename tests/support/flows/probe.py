"""User code of the end-to-end tests: flows that write down what they saw.

Every flow takes `out`, a directory of the test, and writes there; a test reads what the flow itself proved.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from prefect import flow, get_run_logger, runtime, task
from prefect.flow_runs import suspend_flow_run


def note(out: str, kind: str, **facts: object) -> None:
    """Write one fact file; written under another name first, so that a reader never sees half of it."""
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{runtime.flow_run.id}.{kind}.{uuid.uuid4().hex[:6]}.json"
    draft = target.with_suffix(".draft")
    draft.write_text(json.dumps({"run": str(runtime.flow_run.id), "kind": kind, **facts}))
    draft.rename(target)


def surroundings() -> dict[str, object]:
    """What a process can see of how it was started."""
    return {
        "env": dict(os.environ),
        "cwd": str(Path.cwd()),
        "argv": sys.argv,
        "command_line": Path("/proc/self/cmdline").read_text().split("\0")[:-1],
        "pid": os.getpid(),
        "leads_its_session": os.getsid(0) == os.getpid(),
        "umask": os.umask(os.umask(0o022)),
        "sigterm_ignored": signal.getsignal(signal.SIGTERM) is signal.SIG_IGN,
        "descriptors": sorted(int(entry) for entry in os.listdir("/proc/self/fd")),
        "files": sorted(os.listdir()),
        "executable": sys.executable,
    }


@flow
def probe(out: str, greeting: str = "hello") -> str:
    """See, write, say a line on both streams, and complete."""
    note(out, "seen", greeting=greeting, **surroundings())
    get_run_logger().info("probe says %s", greeting)
    print(f"stdout of {runtime.flow_run.id}", flush=True)
    print(f"stderr of {runtime.flow_run.id}", file=sys.stderr, flush=True)
    return greeting


@flow
def fails(out: str) -> None:
    note(out, "attempt")
    raise ValueError("this flow fails on purpose")


@flow(retries=1, retry_delay_seconds=1)
def retries(out: str) -> None:
    """Fail in the first attempt and complete in the second, in one process."""
    note(out, "attempt", pid=os.getpid(), run_count=runtime.flow_run.run_count)
    if runtime.flow_run.run_count < 2:
        raise ValueError("the first attempt fails on purpose")


@flow
def crashes(out: str, code: int = 7) -> None:
    note(out, "attempt")
    os._exit(code)


@task
def before_suspension(out: str) -> str:
    note(out, "task")
    return "done"


@flow(persist_result=True)
def suspends(out: str) -> None:
    """Leave after the first start, complete after the resume."""
    note(out, "attempt", pid=os.getpid())
    suspend_flow_run(timeout=600, key="once")
    note(out, "resumed", pid=os.getpid())


def _cancelled(flow: object, flow_run: object, state: object) -> None:
    parameters = flow_run.parameters
    Path(parameters["out"], f"{flow_run.id}.cancelled.hook").write_text(state.name)


@flow(on_cancellation=[_cancelled])
def sleeps(out: str, seconds: float = 600, deaf: bool = False) -> None:
    """Sleep; with `deaf`, beside a grandchild that ignores SIGTERM and has left our process group."""
    grandchild = None
    if deaf:
        program = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        grandchild = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    note(out, "sleeping", pid=os.getpid(), grandchild=grandchild.pid if grandchild else None)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
    note(out, "woke")


@flow
def waits_for_file(out: str, gate: str) -> None:
    """Run until the test creates the file `gate`."""
    note(out, "waiting", at=time.time())
    while not Path(gate).exists():
        time.sleep(0.1)
    note(out, "finished", at=time.time())


@flow
def interval(out: str, seconds: float = 0.5) -> None:
    """Write down when it ran, on the clock all processes of a machine share."""
    started = time.monotonic()
    time.sleep(seconds)
    note(out, "interval", started=started, ended=time.monotonic(), pid=os.getpid())
