"""What a scenario is played on: the server, one work pool per candidate, workers and deployments for a while.

Everything a scenario makes here is gone when its `with` block ends, however it ends.
"""

import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.api import FINAL, Api, History, Json
from bench.environment import BIN, environment
from bench.processes import BenchError, Service, end_descendants, run, say, start, wait_until
from bench.server import Server
from bench.workers import TITLES, Candidate, Worker, argv, settings

ONLINE_SECONDS = 120.0
RUN_SECONDS = 300.0
_COMMAND_SECONDS = 120.0
PROJECT = Path(__file__).parent / "project"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The server and everything needed to put workers and runs on it."""

    server: Server
    api: Api
    directory: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    workers: list[Service] = field(default_factory=list[Service])
    """Those that are lent out now."""

    def prepare(self) -> None:
        """Create the work pools, with the template that Prefect's own worker type brings."""
        say("creating the work pools")
        command = "work-pool", "get-default-base-job-template", "--type", "process"
        template: Json = json.loads(
            run(
                [str(BIN / "prefect"), "--no-prompt", *command],
                environment=self._environment(self.server.api_url),
                directory=self.directory,
                seconds=_COMMAND_SECONDS,
            )
        )
        for candidate in Candidate:
            self.api.create_pool(candidate.value, template)

    @contextmanager
    def worker(
        self, candidate: Candidate, *, limit: int, warm: bool = True, api_url: str | None = None
    ) -> Generator[Worker]:
        """Lend a worker that is online, and that has had a run if `warm`; end it and all it started afterwards."""
        number = next(self.numbers)
        name = f"{candidate}-{number}"
        directory = self.directory / name
        directory.mkdir()
        log = directory / "worker.log"
        line = argv(candidate, pool=candidate, name=name, limit=limit, state=directory / "state")
        service = start(
            f"the worker ({TITLES[candidate]})",
            line,
            environment=self._environment(api_url or self.server.api_url) | settings(candidate),
            directory=directory,
            log=log,
        )
        self.workers.append(service)
        try:
            since = self._online(candidate, name, service)
            lent = Worker(
                candidate=candidate,
                pool=candidate,
                service=service,
                start_seconds=since - service.started,
            )
            if warm:
                with self.deployment(lent, "noop") as deployment:
                    self.complete(lent, deployment, 1)
            yield lent
        except BaseException:
            service.kill()
            raise
        else:
            service.end()
        finally:
            self.workers.remove(service)
            for left in end_descendants(keep=[*self.server.services, *self.workers]):
                say(f"    {TITLES[candidate]} left this behind: {left}")

    @contextmanager
    def deployment(self, worker: Worker, flow: str, **fields: Any) -> Generator[str]:
        """Lend a deployment of one of the benchmark's flows on the worker's pool."""
        deployment = self.api.create_deployment(
            f"{worker.candidate}-{next(self.numbers)}",
            pool=worker.pool,
            path=str(PROJECT),
            entrypoint=f"bench_flows.py:{flow}",
            **fields,
        )
        try:
            yield deployment
        except BaseException:
            # What went wrong is what is to be heard of, not that the server may be gone, too.
            with suppress(BenchError):
                self.api.delete_deployment(deployment)
            raise
        else:
            self.api.delete_deployment(deployment)

    def complete(self, worker: Worker, deployment: str, count: int) -> list[History]:
        """Make runs, one after the other, and wait for each; what they went through. Raises BenchError if one fails."""
        histories: list[History] = []
        for _ in range(count):
            run_id = self.api.create_run(deployment)
            self.wait_for_state(worker, run_id, "COMPLETED")
            histories.append(self.api.history(run_id))
        return histories

    def wait_for_state(
        self, worker: Worker, run_id: str, *states: str, seconds: float = RUN_SECONDS, interval: float = 0.2
    ) -> None:
        """Wait until the run is in a state of one of these types. Raises BenchError if it ends in another."""

        def reached() -> bool:
            flow_run = self.api.run(run_id)
            if flow_run["state_type"] in FINAL and flow_run["state_type"] not in states:
                raise BenchError(self.complaint(worker, flow_run))
            return flow_run["state_type"] in states

        what = f"run {run_id} of {TITLES[worker.candidate]} is {' or '.join(states)}"
        self.wait(worker, reached, what=what, seconds=seconds, interval=interval)

    def wait(
        self,
        worker: Worker,
        condition: Callable[[], bool],
        *,
        what: str,
        seconds: float,
        interval: float = 0.2,
    ) -> None:
        """Wait for a condition while worker and server live. Raises BenchError."""
        wait_until(
            condition,
            what=what,
            seconds=seconds,
            services=[worker.service, *self.server.services],
            interval=interval,
        )

    def require_none_failed(self, worker: Worker, deployment: str) -> None:
        """Raises BenchError when a run of the deployment has failed, crashed or was cancelled."""
        if self.api.count(deployment, "FAILED", "CRASHED", "CANCELLED"):
            failed = next(
                flow_run
                for flow_run in self.api.runs(deployment)
                if flow_run["state_type"] in {"FAILED", "CRASHED", "CANCELLED"}
            )
            raise BenchError(self.complaint(worker, failed))

    def complaint(self, worker: Worker, flow_run: Json) -> str:
        """Why there is no figure: the run's state and where to read more."""
        state = flow_run["state"]
        return (
            f"run {flow_run['id']} of {TITLES[worker.candidate]} ended {state['name']}: "
            f"{state.get('message')}. A run that fails gives no figure.\nThe end of the worker's log:\n"
            + "\n".join(worker.service.log.read_text(errors="replace").splitlines()[-25:])
        )

    def _online(self, candidate: Candidate, name: str, service: Service) -> float:
        since: list[float] = []

        def online() -> bool:
            moment = self.api.worker_online_since(candidate, name)
            if moment is not None:
                since.append(moment)
            return bool(since)

        wait_until(
            online,
            what=f"the worker {name} is ONLINE",
            seconds=ONLINE_SECONDS,
            services=[service, *self.server.services],
        )
        return since[0]

    def _environment(self, api_url: str) -> dict[str, str]:
        return environment(home=self.directory / "client", extra={"PREFECT_API_URL": api_url})


def pause_until(moment: datetime) -> None:
    """Sleep until then; not at all when it has passed."""
    time.sleep(max(0.0, moment.timestamp() - time.time()))
