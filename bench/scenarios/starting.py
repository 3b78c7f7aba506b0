"""Start to online, idleness, and the end: workers that have next to nothing to do."""

import time
from contextlib import ExitStack

from bench.api import FINAL
from bench.measure import cpu_seconds, memory
from bench.metrics import Metric
from bench.processes import wait_until
from bench.proxy import Counts, counting_proxy
from bench.results import Recorder
from bench.sizes import Sizes
from bench.stage import Stage
from bench.workers import Candidate, Worker

_STOP_SECONDS = 60.0
# How long the flow takes that is running when the worker is stopped, and how long is waited for an end state.
_FLOW_SECONDS = 5.0
_AFTERMATH_SECONDS = 15.0
_SHORT_PAUSE = 3.0


def start(stage: Stage, _sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Process start until the server has the worker ONLINE; then SIGTERM to its exit."""
    for candidate in order:
        with stage.worker(candidate, limit=4, warm=False) as worker:
            recorder.add(Metric.START, candidate, worker.start_seconds)
            # A worker is stopped when it has come to rest, not in the middle of its start.
            time.sleep(_SHORT_PAUSE)
            recorder.add(Metric.STOP_IDLE, candidate, _stop(stage, worker))


def idle(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Memory and CPU of workers with nothing to do, all at the same time, and the requests they make.

    CPU time is the worker's own, so that the others do no harm; and each talks through a proxy of its own.
    """
    with ExitStack() as stack:
        watched: list[tuple[Worker, Counts]] = []
        for candidate in order:
            port, counts = stack.enter_context(counting_proxy(stage.server.port))
            api_url = f"http://127.0.0.1:{port}/api"
            worker = stack.enter_context(stage.worker(candidate, limit=4, api_url=api_url))
            watched.append((worker, counts))
        time.sleep(sizes.settle_seconds)
        began = time.monotonic()
        before = [(cpu_seconds(worker.service.tree()), counts.total()) for worker, counts in watched]
        time.sleep(sizes.idle_seconds)
        seconds = time.monotonic() - began
        for (worker, counts), (cpu, requests) in zip(watched, before, strict=True):
            worker.service.check()
            tree = worker.service.tree()
            recorder.add(Metric.IDLE_CPU, worker.candidate, (cpu_seconds(tree) - cpu) / seconds * 100)
            recorder.add(Metric.IDLE_REQUESTS, worker.candidate, (counts.total() - requests) / seconds * 60)
            used = memory(tree)
            recorder.add(Metric.IDLE_PSS, worker.candidate, used.tree)
            recorder.add(Metric.IDLE_PSS_WORKER, worker.candidate, used.worker)
            if used.fork_server:
                recorder.add(Metric.IDLE_PSS_FORK_SERVER, worker.candidate, used.fork_server)


def stop(stage: Stage, _sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """SIGTERM while a flow is running: how long the worker takes, and what becomes of the run."""
    for candidate in order:
        with stage.worker(candidate, limit=4) as worker, stage.deployment(worker, "sleeper") as deployment:
            run_id = stage.api.create_run(deployment, parameters={"seconds": _FLOW_SECONDS})
            stage.wait_for_state(worker, run_id, "RUNNING")
            recorder.add(Metric.STOP_BUSY, candidate, _stop(stage, worker))
            deadline = time.monotonic() + _AFTERMATH_SECONDS
            while (flow_run := stage.api.run(run_id))["state_type"] not in FINAL:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            outcome = flow_run["state_name"]
            if flow_run["state_type"] not in FINAL:
                outcome += f" still, {_AFTERMATH_SECONDS:.0f} s after the worker's end"
            recorder.observe("a run that is running at SIGTERM is", candidate, outcome)


def _stop(stage: Stage, worker: Worker) -> float:
    """SIGTERM until the worker's own process is gone, in seconds."""
    process = worker.service.process
    began = time.monotonic()
    process.terminate()
    wait_until(
        lambda: process.poll() is not None,
        what=f"{worker.service.name} exits after SIGTERM",
        seconds=_STOP_SECONDS,
        services=[stage.server.service],
        interval=0.005,
    )
    return time.monotonic() - began
