"""From due to running: ad-hoc runs one at a time, scheduled runs, and the requests a run costs."""

import time
from datetime import UTC, datetime, timedelta

from bench.api import Json, timestamp
from bench.metrics import Metric
from bench.proxy import counting_proxy
from bench.results import Recorder
from bench.sizes import Sizes
from bench.stage import RUN_SECONDS, Stage, pause_until
from bench.workers import Candidate, Worker

# A run is made at another moment of the polling interval each time: the multiples of the golden section spread evenly.
_GOLDEN_SECTION = 0.618034
_POLL_SECONDS = {Candidate.STOCK: 10.0}
_FAST_POLL_SECONDS = 1.0
# Between the creation of scheduled runs and the first of them: longer than any worker looks ahead.
_LEAD = timedelta(seconds=20)
_SCHEDULER_SECONDS = 60.0
_QUIET_SECONDS = 12.0


def latency(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Ad-hoc runs of a flow that does nothing, one at a time, by the server's record of their states."""
    for candidate in order:
        slow = candidate is Candidate.STOCK
        count = sizes.latency_runs_slow if slow else sizes.latency_runs_fast
        with stage.worker(candidate, limit=4) as worker, stage.deployment(worker, "noop") as deployment:
            for number in range(count):
                _pause_for_phase(candidate, number)
                for history in stage.complete(worker, deployment, 1):
                    pending, running = (history.between(*pair) for pair in _STEPS)
                    recorder.add(Metric.SCHEDULED_PENDING, candidate, pending)
                    recorder.add(Metric.PENDING_RUNNING, candidate, running)
                    recorder.add(Metric.SCHEDULED_RUNNING, candidate, pending + running)


def cold(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Pending to Running where each run gets a fresh interpreter from both."""
    for candidate in order:
        # What goes before Pending does not matter here, so stock may poll often.
        with stage.worker(candidate, limit=4) as worker, stage.deployment(worker, "noop") as deployment:
            for history in stage.complete(worker, deployment, sizes.latency_runs_slow):
                recorder.add(Metric.COLD_PENDING_RUNNING, candidate, history.between("PENDING", "RUNNING"))


def requests(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Requests of worker and flow, less those that the worker makes anyway while nothing happens."""
    for candidate in order:
        with counting_proxy(stage.server.port) as (port, counts):
            api_url = f"http://127.0.0.1:{port}/api"
            with (
                stage.worker(candidate, limit=4, api_url=api_url) as worker,
                stage.deployment(worker, "noop") as deployment,
            ):
                time.sleep(_QUIET_SECONDS)
                idle = counts.total()
                began = time.monotonic()
                time.sleep(sizes.idle_seconds / 2)
                rate = (counts.total() - idle) / (time.monotonic() - began)
                before, began = counts.total(), time.monotonic()
                runs = sizes.latency_runs_slow
                stage.complete(worker, deployment, runs)
                # The last words about a run come after its end.
                time.sleep(_QUIET_SECONDS / 4)
                extra = counts.total() - before - rate * (time.monotonic() - began)
                recorder.add(Metric.RUN_REQUESTS, candidate, extra / runs)


def lateness(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Runs made in advance for a given time, and runs of an interval schedule: due time to Running."""
    for candidate in order:
        with stage.worker(candidate, limit=4) as worker:
            _one_off(stage, worker, sizes, recorder)
            _by_schedule(stage, worker, sizes, recorder)


_STEPS = (("SCHEDULED", "PENDING"), ("PENDING", "RUNNING"))


def _pause_for_phase(candidate: Candidate, number: int) -> None:
    period = _POLL_SECONDS.get(candidate, _FAST_POLL_SECONDS)
    time.sleep((number + 1) * _GOLDEN_SECTION % 1 * period)


def _one_off(stage: Stage, worker: Worker, sizes: Sizes, recorder: Recorder) -> None:
    with stage.deployment(worker, "noop") as deployment:
        first = datetime.now(UTC) + _LEAD
        spread = sizes.lateness_interval_seconds * (1 - _GOLDEN_SECTION)
        dues = [first + timedelta(seconds=number * spread) for number in range(sizes.lateness_runs)]
        runs = {stage.api.create_run(deployment, due=due): due for due in dues}
        pause_until(dues[-1])
        for run_id, due in runs.items():
            stage.wait_for_state(worker, run_id, "COMPLETED")
            late = stage.api.history(run_id).entered["RUNNING"] - due.timestamp()
            recorder.add(Metric.LATENESS, worker.candidate, late, case="one-off")


def _by_schedule(stage: Stage, worker: Worker, sizes: Sizes, recorder: Recorder) -> None:
    interval = sizes.lateness_interval_seconds
    anchor = datetime.now(UTC) + _LEAD
    schedule = {"interval": interval, "anchor_date": anchor.isoformat()}
    schedules = [{"schedule": schedule, "active": True}]
    last = anchor + timedelta(seconds=interval * (sizes.lateness_runs - 1))

    with stage.deployment(worker, "noop", schedules=schedules) as deployment:

        def planned() -> list[Json]:
            return [
                flow_run
                for flow_run in stage.api.runs(deployment)
                if anchor.timestamp() <= timestamp(flow_run["expected_start_time"]) <= last.timestamp()
            ]

        stage.wait(
            worker,
            lambda: len(planned()) >= sizes.lateness_runs,
            what="the server's scheduler has made the runs",
            seconds=_SCHEDULER_SECONDS,
            interval=1,
        )
        pause_until(last)
        for flow_run in planned():
            stage.wait_for_state(worker, flow_run["id"], "COMPLETED", seconds=RUN_SECONDS)
            running = stage.api.history(flow_run["id"]).entered["RUNNING"]
            late = running - timestamp(flow_run["expected_start_time"])
            recorder.add(Metric.LATENESS, worker.candidate, late, case="interval schedule")
