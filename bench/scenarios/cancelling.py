"""Cancellation: from the request to the state, and to the end of the flow's process."""

import time
from datetime import datetime
from pathlib import Path

import psutil

from bench.metrics import Metric
from bench.processes import is_alive
from bench.results import Recorder
from bench.sizes import Sizes
from bench.stage import Stage
from bench.workers import Candidate, Worker

_CANCEL_SECONDS = 120.0
_FLOW_SECONDS = 600.0
# A flow is cancelled when it has been sleeping for a while, not in the middle of its start.
_SHORT_PAUSE = 2.0


def cancel(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """A sleeping flow is cancelled: until the run is Cancelled, and until its process is gone."""
    for candidate in order:
        with stage.worker(candidate, limit=4) as worker, stage.deployment(worker, "sleeper") as deployment:
            for number in range(sizes.cancels):
                pid_file = worker.service.log.with_name(f"{number}.pid")
                _cancel(stage, worker, deployment, recorder, pid_file)


def _cancel(stage: Stage, worker: Worker, deployment: str, recorder: Recorder, pid_file: Path) -> None:
    parameters = {"seconds": _FLOW_SECONDS, "pid_file": str(pid_file)}
    run_id = stage.api.create_run(deployment, parameters=parameters)
    stage.wait_for_state(worker, run_id, "RUNNING")
    stage.wait(worker, pid_file.exists, what="the flow has begun to sleep", seconds=_CANCEL_SECONDS)
    process = psutil.Process(int(pid_file.read_text()))
    time.sleep(_SHORT_PAUSE)
    began = time.time()
    stage.api.cancel(run_id)
    stage.wait(
        worker,
        lambda: not is_alive(process),
        what="the cancelled flow's process is gone",
        seconds=_CANCEL_SECONDS,
        interval=0.01,
    )
    recorder.add(Metric.CANCEL_GONE, worker.candidate, time.time() - began)
    stage.wait_for_state(worker, run_id, "CANCELLED", seconds=_CANCEL_SECONDS)
    cancelled = datetime.fromisoformat(stage.api.run(run_id)["state"]["timestamp"]).timestamp()
    recorder.add(Metric.CANCEL, worker.candidate, cancelled - began)
