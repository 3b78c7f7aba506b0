"""Flows that do what a way of starting may spoil, and write down how it went."""

import asyncio  # noqa: TID251 - flows do as users do
import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from typing import Any

import children
import notes
from prefect import flow, get_run_logger, runtime, task
from prefect.flow_runs import suspend_flow_run
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner


@task
def squares(number: int) -> Any:
    return number * number


@task
def place() -> Any:
    return [
        threading.current_thread() is threading.main_thread(),
        os.getpid(),
        os.getcwd(),
        multiprocessing.current_process().name,
    ]


@flow(task_runner=ThreadPoolTaskRunner(max_workers=3), log_prints=True)
def threads(out: str) -> None:
    found = squares.map([1, 2, 3]).result()
    in_main, pid, cwd, name = place.submit().result()
    print("printed with log_prints")
    notes.note(out, "body", squares=found, in_main=in_main, same=pid == os.getpid(), cwd=cwd, name=name)


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
def process_pool(out: str) -> None:
    found = squares.map([1, 2]).result()
    in_main, pid, cwd, name = place.submit().result()
    notes.note(out, "body", squares=found, in_main=in_main, same=pid == os.getpid(), cwd=cwd, name=name)


@flow
def multiprocesses(out: str) -> None:
    """What the standard library starts: by fork, by spawn and by its own fork server."""
    found = {}
    for method in ("fork", "forkserver", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            found[method] = pool.apply(children.describe, (os.getpid(),))
            pool.close()
            pool.join()
        process = context.Process(target=children.leave, args=(5,))
        process.start()
        process.join()
        found[method]["exit"] = process.exitcode
    notes.note(out, "body", found=found)


@flow
def inner(number: int) -> Any:
    return [runtime.flow_run.flow_name, runtime.flow_run.parent_flow_run_id is not None, number + 1]


@flow
async def inner_async(number: int) -> Any:
    await asyncio.sleep(0)
    return number + 2


@flow
def subflows(out: str) -> None:
    notes.note(
        out, "body", inner=inner(1), inner_async=asyncio.run(inner_async(1)), tasks=squares.map([4]).result()
    )


@flow
def generates(out: str) -> Any:
    for number in range(3):
        notes.note(out, f"yielded-{number}")
        yield number


@flow
async def generates_async(out: str) -> Any:
    for number in range(3):
        notes.note(out, f"yielded-{number}")
        yield number


@flow
def raises(out: str) -> None:
    notes.note(out, "body")
    raise ValueError("this flow raises on purpose")


@flow
def exits(out: str) -> None:
    notes.note(out, "body")
    sys.exit(3)


@flow
def dies(out: str) -> None:
    notes.note(out, "body")
    print("the last words", flush=True)
    os._exit(7)


@flow
def is_killed(out: str) -> None:
    notes.note(out, "body")
    os.kill(os.getpid(), signal.SIGKILL)


class Telling:
    def __init__(self, out: str, run: Any) -> None:
        self.out, self.run = out, run

    def __del__(self) -> None:
        print("deleted at the end", flush=True)


def fail_at_exit() -> None:
    raise RuntimeError("raised by an atexit handler")


KEPT = []


@flow
def lingers(out: str) -> None:
    """Ends with work left: handlers, a thread, finalizers, an object, a temporary directory."""
    run = str(runtime.flow_run.id)
    directory = tempfile.TemporaryDirectory(prefix="lingers-")
    KEPT.extend([directory, Telling(out, run)])
    atexit.register(notes.note, out, "atexit", run)
    atexit.register(fail_at_exit)
    weakref.finalize(directory, print, "finalized at the end")
    multiprocessing.util.Finalize(None, print, ("finalized by multiprocessing",), exitpriority=1)

    def work() -> None:
        time.sleep(0.5)
        notes.note(
            out, "thread", run, finalizing=sys.is_finalizing(), main_alive=threading.main_thread().is_alive()
        )

    threading.Thread(target=work, name="lingering", daemon=False).start()
    notes.note(
        out, "body", parent=os.path.dirname(directory.name), prefix=os.path.basename(directory.name)[:8]
    )


@flow
def prints(out: str) -> None:
    print("to standard output")
    print("to standard error", file=sys.stderr)
    os.write(1, b"by descriptor\n")
    subprocess.run(["/bin/sh", "-c", "echo by a child; echo by a child with an error >&2"])
    sys.stdout.write("without an end of line")
    sys.stdout.flush()
    get_run_logger().warning("by the logger")
    print(input_or_error())
    sys.stderr.write("unflushed error")
    sys.stdout.write("unflushed output")
    notes.note(out, "body")


def input_or_error() -> Any:
    try:
        return input("prompt> ")
    except EOFError as error:
        return f"no input: {error}"


@flow(retries=1, retry_delay_seconds=0)
def retries(out: str) -> None:
    notes.note(out, f"attempt-{runtime.flow_run.run_count}")
    if runtime.flow_run.run_count < 2:
        raise ValueError("the first attempt fails on purpose")


@flow(persist_result=True)
def suspends(out: str) -> None:
    notes.note(out, "attempt", same_parent=os.getppid())
    suspend_flow_run(timeout=600, key="once")
    notes.note(out, "resumed")


def hook(name: str) -> Any:
    def called(flow: Any, flow_run: Any, state: Any) -> None:
        notes.note(
            flow_run.parameters["out"],
            name,
            flow_run.id,
            state=state.name,
            cwd=os.getcwd(),
            main=threading.current_thread() is threading.main_thread(),
        )

    called.__name__ = name
    return called


@flow(on_cancellation=[hook("cancellation")], on_crashed=[hook("crashed")], on_failure=[hook("failure")])
def waits(out: str) -> None:
    """Wait for what the test does to this process."""
    notes.note(out, "waiting", pid=os.getpid())
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.1)


@flow(on_cancellation=[hook("cancellation")], on_crashed=[hook("crashed")], on_failure=[hook("failure")])
async def waits_async(out: str) -> None:
    notes.note(out, "waiting", pid=os.getpid())
    await asyncio.sleep(600)


@flow(timeout_seconds=1)
def times_out(out: str) -> None:
    notes.note(out, "body")
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.05)


@flow
def handles_signals(out: str) -> None:
    """Handlers of the flow's own, timers, children that end, and what a child inherits."""
    heard = []
    for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: heard.append(signal.Signals(number).name))
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.sigtimedwait([signal.SIGWINCH], 2)
    code = subprocess.run(["/bin/sh", "-c", "exit 4"]).returncode
    try:
        print("to nobody", file=os.fdopen(broken_pipe(), "w", buffering=1))
        broken = "written"
    except BrokenPipeError:
        broken = "BrokenPipeError"
    notes.note(out, "body", heard=sorted(set(heard)), code=code, broken=broken)


def broken_pipe() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@flow
def has_children(out: str) -> None:
    """What processes of the user's inherit: environment, descriptors, signals, session, directory, path."""
    program = f"import sys; sys.path.insert(0, {os.getcwd()!r}); import json, children; print(json.dumps(children.inherited()))"
    by_subprocess = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = os.fork()
    if pid == 0:
        notes.note(out, "forked", runtime.flow_run.id, inherited=children.inherited())
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    notes.note(
        out,
        "body",
        child=json.loads(by_subprocess.stdout),
        errors=by_subprocess.stderr,
        status=status,
        environment=dict(os.environ),
    )


@flow
def relative_paths(out: str) -> None:
    with open("data.txt") as file:
        read = file.read()
    with open("written.txt", "w") as file:
        file.write("here")
    notes.note(
        out,
        "body",
        read=read,
        written=os.path.realpath("written.txt"),
        mode=oct(os.stat("written.txt").st_mode),
        there=os.path.exists("look.py"),
    )
