"""Many runs: bursts, many at the same time, and thousands one after the other."""

import time
from collections.abc import Sequence

from bench.api import timestamp
from bench.measure import cpu_seconds, memory, private, pss
from bench.metrics import Metric, burst_case, flows_case, growth_case
from bench.processes import say
from bench.results import Recorder
from bench.sizes import Sizes
from bench.stage import Stage
from bench.workers import TITLES, Candidate, Worker

_BURST_SECONDS_PER_RUN = 15.0
# Flows that may be starting at a time: what matters is how many run.
_STARTING = 2
_START_SECONDS = 300.0
_FLOW_SECONDS = 36_000.0
_SETTLE_SECONDS = 8.0
# Runs of the growth scenario that wait or run at a time; its worker's limit is lower, so that it never waits for us.
_OUTSTANDING = 8
_GROWTH_LIMIT = 4
# The processes of the last runs have ended this long after their runs have.
_LINGER_SECONDS = 4.0
_SECONDS_PER_MINUTE = 60


def burst(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """So many runs at once: from the creation of the first to the end of the last, and the CPU time they take."""
    for limit in sizes.burst_limits:
        case = burst_case(limit, stage.server.database)
        for candidate in order:
            with (
                stage.worker(candidate, limit=limit) as worker,
                stage.deployment(worker, "noop") as deployment,
            ):
                cpu = cpu_seconds(worker.service.tree())
                rate = _burst(stage, worker, deployment, sizes.burst_runs)
                recorder.add(Metric.BURST, candidate, rate, case=case)
                say(f"    {TITLES[candidate]}, {case}: {rate:.1f} runs per minute")
                time.sleep(_LINGER_SECONDS)
                worker.service.check()
                spent = cpu_seconds(worker.service.tree()) - cpu
                recorder.add(Metric.RUN_CPU, candidate, spent / sizes.burst_runs, case=case)


def many(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """Memory of sleeping flows: PSS of the whole tree, less that of the idle worker, per flow."""
    for candidate in order:
        with stage.worker(candidate, limit=max(sizes.flows)) as worker:
            time.sleep(_SETTLE_SECONDS)
            idle = memory(worker.service.tree()).tree
            try:
                with stage.deployment(worker, "sleeper") as deployment:
                    for count in sizes.flows:
                        _fill(stage, worker, deployment, count)
                        time.sleep(_SETTLE_SECONDS)
                        used = (pss(worker.service.tree()) - idle) / count
                        stage.require_none_failed(worker, deployment)
                        recorder.add(Metric.FLOW_PSS, candidate, used, case=flows_case(count))
                        say(f"    {TITLES[candidate]}, {count} flows: {used:.1f} MB each")
            finally:
                # A polite stop would wait for the flows.
                worker.service.kill()


def growth(stage: Stage, sizes: Sizes, recorder: Recorder, order: tuple[Candidate, ...]) -> None:
    """What the worker's own process (and the fork server) has to itself after many runs, less that after a warm-up."""
    for candidate in order:
        runs = sizes.growth_runs if candidate is Candidate.OURS else sizes.growth_stock_runs
        if not runs:
            continue
        with (
            stage.worker(candidate, limit=_GROWTH_LIMIT) as worker,
            stage.deployment(worker, "noop") as deployment,
        ):
            _stream(stage, worker, deployment, sizes.growth_warm_up)
            before = memory(worker.service.tree(), private)
            _stream(stage, worker, deployment, sizes.growth_warm_up + runs)
            after = memory(worker.service.tree(), private)
            case = growth_case(runs)
            recorder.add(Metric.GROWTH, candidate, after.worker - before.worker, case=case)
            if after.fork_server:
                growth_there = after.fork_server - before.fork_server
                recorder.add(Metric.GROWTH_FORK_SERVER, candidate, growth_there, case=case)


def _burst(stage: Stage, worker: Worker, deployment: str, count: int) -> float:
    """Runs per minute."""
    began = time.time()
    _create(stage, [deployment] * count)

    def ended() -> bool:
        stage.require_none_failed(worker, deployment)
        return stage.api.count(deployment, "COMPLETED") == count

    seconds = _BURST_SECONDS_PER_RUN * count
    stage.wait(worker, ended, what=f"{count} runs are completed", seconds=seconds, interval=1)
    last = max(timestamp(flow_run["end_time"]) for flow_run in stage.api.runs(deployment))
    return count / (last - began) * _SECONDS_PER_MINUTE


def _create(stage: Stage, deployments: Sequence[str]) -> None:
    """One after the other: four clients at once brought an SQLite server to a stand-still of a minute by themselves."""
    for deployment in deployments:
        stage.api.create_run(deployment)


def _fill(stage: Stage, worker: Worker, deployment: str, count: int) -> None:
    """Add sleeping flows, a few at a time, until so many run."""
    created = running = stage.api.count(deployment, "RUNNING")
    while running < count:
        while created < min(count, running + _STARTING):
            stage.api.create_run(deployment, parameters={"seconds": _FLOW_SECONDS})
            created += 1
        sofar = running
        stage.wait(
            worker,
            lambda sofar=sofar: stage.api.count(deployment, "RUNNING") > sofar,
            what=f"more than {sofar} flows of {TITLES[worker.candidate]} run",
            seconds=_START_SECONDS,
            interval=0.5,
        )
        running = stage.api.count(deployment, "RUNNING")
        stage.require_none_failed(worker, deployment)


def _stream(stage: Stage, worker: Worker, deployment: str, count: int) -> None:
    """Feed runs until the deployment has had so many, and wait for the last; then for its process."""
    completed = stage.api.count(deployment, "COMPLETED")
    created = completed
    while completed < count:
        more = min(count, completed + _OUTSTANDING) - created
        _create(stage, [deployment] * more)
        created += more
        sofar = completed
        stage.wait(
            worker,
            lambda sofar=sofar: stage.api.count(deployment, "COMPLETED") > sofar,
            what=f"more than {sofar} runs of {TITLES[worker.candidate]} are completed",
            seconds=_START_SECONDS,
            interval=0.25,
        )
        completed = stage.api.count(deployment, "COMPLETED")
        stage.require_none_failed(worker, deployment)
    time.sleep(_LINGER_SECONDS)
