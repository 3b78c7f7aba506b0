"""User code of the hook tests: flows whose hooks append a line to a file, so that a test can count them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
from prefect import Flow, State, flow, runtime
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger


def tell(flow_run: FlowRun, **facts: object) -> None:
    """Add one line to the file of the run's hooks."""
    with Path(flow_run.parameters["out"], f"{flow_run.id}.hooks").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def plain(flow: Flow, flow_run: FlowRun, state: State) -> None:
    surroundings = {"cwd": os.getcwd(), "path": sys.path[:2], "argv": sys.argv[1:], "python": sys.executable}
    tell(flow_run, hook="plain", flow=flow.name, state=state.name, id=str(state.id), **surroundings)


async def awaited(flow: Flow, flow_run: FlowRun, state: State) -> None:
    await anyio.sleep(0.01)
    tell(flow_run, hook="awaited", flow=flow.name, state=state.type.value, run=str(runtime.flow_run.id))


def broken(flow: Flow, flow_run: FlowRun, state: State) -> None:
    tell(flow_run, hook="broken")
    raise ValueError("this hook fails on purpose")


def leaving(flow: Flow, flow_run: FlowRun, state: State) -> None:
    tell(flow_run, hook="leaving")
    sys.exit(3)


def last(flow: Flow, flow_run: FlowRun, state: State) -> None:
    flow_run_logger(flow_run, flow).info("the last hook was told %s", state.message)
    print("printed by the last hook", flush=True)
    tell(flow_run, hook="last", message=state.message, worker="worker" in sys.modules)


def crashed(flow: Flow, flow_run: FlowRun, state: State) -> None:
    tell(flow_run, hook="crashed", state=state.name, message=state.message)


def hanging(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Never end, and leave a process that is deaf to SIGTERM and in a session of its own."""
    program = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    tell(flow_run, hook="hanging", pids=[os.getpid(), child.pid])
    while True:
        time.sleep(1)


HOOKS = {"on_cancellation": [plain, awaited, broken, last], "on_crashed": [crashed]}


def note(out: str, kind: str) -> None:
    """Write one fact file, as `probe` does."""
    run_id = str(runtime.flow_run.id)
    Path(out).mkdir(parents=True, exist_ok=True)
    target = Path(out, f"{run_id}.{kind}.{os.getpid()}.json")
    draft = target.with_suffix(".draft")
    draft.write_text(json.dumps({"run": run_id, "kind": kind, "pid": os.getpid()}))
    draft.rename(target)


def sleep_long() -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.1)


@flow(**HOOKS)
def hooked(out: str) -> None:
    """Sleep, and clean up if there is time to."""
    note(out, "sleeping")
    try:
        sleep_long()
    finally:
        note(out, "cleaned")


@flow(**HOOKS)
async def hooked_async(out: str) -> None:
    note(out, "sleeping")
    await anyio.sleep(600)


@flow(**HOOKS)
def deaf(out: str, ignoring: bool = True) -> None:
    """Live through SIGTERM: by ignoring it, or by swallowing what Prefect raises for it."""
    if ignoring:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(out, "sleeping")
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            time.sleep(0.1)
        except BaseException:  # noqa: BLE001 - as careless as user code can be
            note(out, "swallowed")


@flow(on_cancellation=[leaving, last])
def leaves(out: str) -> None:
    note(out, "sleeping")
    sleep_long()


@flow(on_cancellation=[hanging])
def hangs(out: str) -> None:
    note(out, "sleeping")
    sleep_long()


@flow
def unhooked(out: str) -> None:
    note(out, "sleeping")
    sleep_long()
