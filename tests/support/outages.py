"""One daemon behind an outage proxy, the runs it has before, during and after an outage, and what came of it.

Owns the phases of the story, each a method to be called in turn; several outages go through them in step, so
that ten minutes of a dozen outages take the time of one. Asserts nothing but that the phases come to their end:
what the evidence has to look like is the tests' business.
"""

import re
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.api import Json, PrefectApi
from tests.support.daemons import ROLE_DAEMON, Worker
from tests.support.project import Project
from tests.support.proxy import OutageProxy, outage_proxy
from tests.support.proxy_modes import Mode, Request
from tests.support.server import PrefectServer
from tests.support.services import spawn
from tests.support.wait import wait_for

REPOSITORY = Path(__file__).parents[2]
JOB = Path(__file__).parent / "outage_job.py"
TOLD = ("api.unreachable", "api.recovered")
LASTING = 600.0
# Whatever a phase waits for happens within seconds; a busy machine may take its time.
PHASE_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of outage.

    `reason` is what the daemon's warning must say of it (a pattern), None when there is nothing to warn of.
    `request_timeout` is the daemon's PREFECT_API_REQUEST_TIMEOUT, where tries end by it: then each try counts as
    the `try_seconds` it would take by default.
    """

    mode: Mode
    reason: str | None
    only: str = ""
    request_timeout: float = 60.0
    try_seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.mode}{self.only.replace('/', '-')}"

    @property
    def waits_for_the_end(self) -> bool:
        """Whether nothing can be claimed before the outage is over."""
        return self.reason is not None


@dataclass(slots=True, kw_only=True)
class Run:
    """A run of `outage_job`: what is to become of it, and what did."""

    id: str
    wanted: str
    final: Json = field(default_factory=dict[str, Any])
    states: list[str] = field(default_factory=list[str])
    ledger: list[str] = field(default_factory=list[str])

    @property
    def facts(self) -> list[str]:
        """The ledger without the pids."""
        return [line.split()[0] for line in self.ledger]

    @property
    def pids(self) -> set[str]:
        """The processes that wrote into the ledger."""
        return {line.split()[1] for line in self.ledger}


@dataclass(slots=True, kw_only=True)
class Outage:
    """The story of one outage, in its `PHASES`; all below `worker` is the evidence, complete after the last."""

    case: Case
    proxy: OutageProxy
    api: PrefectApi
    project: Project
    deployment: str
    worker: Worker
    struck: int = 0
    """How many lines the daemon had logged before."""
    ended: int = 0
    """How many lines it had logged when the outage ended."""
    lasted: float = 0.0
    """Seconds by the daemon's own reckoning."""
    completes: Run | None = None
    """A run that is running before and completes meanwhile."""
    dies: Run | None = None
    """A run that is running before and dies meanwhile; only the daemon can tell."""
    comes: Run | None = None
    """A run that becomes due meanwhile."""
    requests: list[Request] = field(default_factory=list[Request])
    log: list[Json] = field(default_factory=list[Any])
    """What the daemon logged from the beginning of the outage on."""
    alive: bool = False
    left: list[str] = field(default_factory=list[str])
    exit_code: int | None = None

    @property
    def runs(self) -> list[Run]:
        return [run for run in (self.completes, self.dies, self.comes) if run is not None]

    @property
    def during(self) -> list[Json]:
        """What the daemon logged while the outage lasted; the first thing after it may be among it."""
        return self.log[: self.ended - self.struck]

    @property
    def gate(self) -> Path:
        return self.project.out / "gate"

    def prepare(self) -> None:
        """Have two runs due."""
        self.completes = self._start("complete", "COMPLETED", gate=True)
        self.dies = self._start("die", "CRASHED", gate=True)

    def get_going(self) -> None:
        """Have both running."""
        self.worker.wait_started()
        for run in self.runs:
            self.api.wait_for_state(run.id, "RUNNING")
            self._wait(lambda run=run: self._logged("flow_run.launched", run), f"the launch of {run}")

    def strike(self) -> None:
        """Begin the outage."""
        # A server that was too busy for a moment is not to be taken for the outage that comes.
        self._wait(lambda: self._told()[-1:] != ["api.unreachable"], "a quiet beginning")
        self.struck = len(self.worker.logs())
        self.proxy.switch(self.case.mode, only=self.case.only)

    def live_on(self) -> None:
        """Let both runs end, and another one become due."""
        self.gate.touch()
        self.comes = self._start("complete", "COMPLETED", gate=False)

    def lose_two(self) -> None:
        """Wait until the daemon has noticed both ends."""
        for run in (self.completes, self.dies):
            if run is not None:
                self._wait(lambda run=run: "end" in self._ledger(run), f"the end of {run}")
                self._wait(
                    lambda run=run: self._logged("flow_run.exited", run), f"notice of the end of {run}"
                )

    def last(self) -> None:
        """Wait until the outage has lasted, and end it."""
        if self.case.waits_for_the_end:
            self._wait(lambda: self.reckoned() >= LASTING, "ten minutes by the daemon's reckoning")
        elif self.comes is not None:
            self.api.wait_for_state(self.comes.id, self.comes.wanted)
        self.lasted = self.reckoned()
        self.requests = self.proxy.requests(self.case.mode, path=self.case.only)
        self.ended = len(self.worker.logs())
        self.proxy.switch(Mode.PASS)

    def settle(self) -> None:
        """Wait until all is well again, and ask the daemon to end."""
        for run in self.runs:
            run.final = self.api.wait_for_final(run.id)
            self._wait(lambda run=run: self._logged("flow_run.reported", run), f"the report of {run}")
        self._wait(lambda: not self._left(), "an empty run directory")
        self.alive = self.worker.service.returncode is None
        self.worker.service.signal(signal.SIGTERM)

    def keep(self) -> None:
        """Wait for the daemon's end, and keep the evidence."""
        self.exit_code = self.worker.wait_exit()
        self.left = self._left()
        self.log = self.worker.logs()[self.struck :]
        for run in self.runs:
            run.states = self.api.state_names(run.id)
            run.ledger = self._lines(run)

    def reckoned(self) -> float:
        """How long the call that has waited longest has done so since the outage began, in its own seconds."""
        waited: defaultdict[str, float] = defaultdict(float)
        for event in self.worker.logs()[self.struck :]:
            if event["event"] == "api.retried":
                waited[event["operation"]] += event["delay_seconds"] + self.case.try_seconds
        return max(waited.values(), default=0.0)

    def _start(self, ending: str, wanted: str, *, gate: bool) -> Run:
        words = [sys.executable, str(JOB), self.api.api_url, str(self.project.out), ending]
        command = " ".join([*words, str(self.gate)] if gate else words)
        run_id = self.api.create_flow_run(self.deployment, job_variables={"command": command})
        return Run(id=run_id, wanted=wanted)

    def _told(self) -> list[str]:
        return [event["event"] for event in self.worker.logs() if event["event"] in TOLD]

    def _logged(self, event: str, run: Run) -> bool:
        return bool(self.worker.events(event, flow_run_id=run.id))

    def _lines(self, run: Run) -> list[str]:
        path = self.project.out / f"{run.id}.ledger"
        return path.read_text().splitlines() if path.exists() else []

    def _ledger(self, run: Run) -> list[str]:
        return [line.split()[0] for line in self._lines(run)]

    def _left(self) -> list[str]:
        return [str(path) for path in self.worker.home.glob("state/*/runs/*")]

    def _wait(self, predicate: Any, what: str) -> None:
        wait_for(
            predicate,
            timeout=PHASE_TIMEOUT,
            interval=0.1,
            description=lambda: f"{self.case}: {what}\n{self.worker.service.transcript(lines=40)}",
        )


PHASES = (
    Outage.prepare,
    Outage.get_going,
    Outage.strike,
    Outage.live_on,
    Outage.lose_two,
    Outage.last,
    Outage.settle,
    Outage.keep,
)


@contextmanager
def proxied_daemon(
    server: PrefectServer, directory: Path, *, pool: str, proxy: OutageProxy, request_timeout: float = 60.0
) -> Generator[Worker]:
    """Our daemon with shortened pauses (`outage_daemon`), reaching its server through the proxy only."""
    name = f"worker-{uuid.uuid4().hex[:8]}"
    home = directory / f"home-{name}"
    temporary = home / "tmp"
    temporary.mkdir(parents=True)
    own = {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PREFECT_HOME": str(home / ".prefect"),
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_API_URL": proxy.api_url,
        "PREFECT_API_REQUEST_TIMEOUT": str(request_timeout),
        "PREFECT_WORKER_QUERY_SECONDS": "3",
    }
    service = spawn(
        [
            *(sys.executable, "-m", "tests.support.outage_daemon", "start", "--python", sys.executable),
            *("--state-dir", str(home / "state"), "--log-format", "json", "--log-level", "debug"),
            *("--pool", pool, "--name", name),
        ],
        name=name,
        role=ROLE_DAEMON,
        directory=directory,
        environment=server.env() | own,
        cwd=home,
        home=home,
    )
    try:
        yield Worker(service=service, pool=pool, name=name, home=home)
    finally:
        service.end()


@contextmanager
def outage(case: Case, *, server: PrefectServer, api: PrefectApi, directory: Path) -> Generator[Outage]:
    """Everything of one outage, ready for `prepare`."""
    here = directory / re.sub(r"\W", "-", str(case))
    out = here / "out"
    out.mkdir(parents=True)
    project = Project(api=api, pool=api.create_pool(), out=out)
    deployment = project.deploy()
    with (
        outage_proxy(server.api_url) as proxy,
        proxied_daemon(
            server, here, pool=project.pool, proxy=proxy, request_timeout=case.request_timeout
        ) as worker,
    ):
        yield Outage(case=case, proxy=proxy, api=api, project=project, deployment=deployment, worker=worker)


def in_step(outages: Sequence[Outage]) -> dict[str, AssertionError]:
    """Go through all outages at once; what did not come to its end, by case, is left behind by the others."""
    failed: dict[str, AssertionError] = {}

    for phase in PHASES:
        for one in outages:
            if str(one.case) in failed:
                continue
            try:
                phase(one)
            except AssertionError as error:
                failed[str(one.case)] = error
    return failed
