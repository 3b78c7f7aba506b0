"""What the isolation tests need: cheap runs that behave in any way wanted, and a daemon that is nobody special.

Owns the little program that takes the engine's part where the engine is not the point (it costs seconds), the runs
made of it, tables of bad ones, and taking root's privileges from a daemon. Does not own starting daemons.
"""

import os
import shlex
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.api import FINAL, Json, PrefectApi
from tests.support.daemons import Worker
from tests.support.wait import wait_for

# Executes the statements it is given, with the run's states at hand; standard library only, to start at once.
PROGRAM = """
import http.client, json, os, signal, subprocess, sys, time
from urllib.parse import urlsplit

def report(state):
    url = urlsplit(os.environ["PREFECT_API_URL"])
    path = f"{url.path}/flow_runs/{os.environ['PREFECT__FLOW_RUN_ID']}/set_state"
    while True:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps({"state": {"type": state}}),
                               {"Content-Type": "application/json"})
            status = connection.getresponse().status
        finally:
            connection.close()
        if status != 503:
            return status
        time.sleep(0.2)

def say(text):
    print(text, flush=True)

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.05)

exec(sys.argv[1])
"""

# Imported by the daemon's interpreter before anything else: where the tests run as root, the daemon must not be able
# to do what only root can (capabilities(7)), else no directory would ever be closed to it.
_UNPRIVILEGED = """
import ctypes, os, sys
if sys.platform == "linux" and os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER = 1, 2, 3
    PR_CAPBSET_DROP, VERSION_3 = 24, 0x20080522
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        for index in range(3):
            sets[index] &= ~(1 << capability)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
"""

HEALTHY = "report('RUNNING'); say('healthy'); report('COMPLETED')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Runs on one pool whose command is the little program; `directory` is the test's own."""

    api: PrefectApi
    pool: str
    directory: Path

    def command(self, statements: str) -> str:
        """The job variable `command` of a run that executes these statements."""
        program = self.directory / "job.py"
        if not program.exists():
            draft = program.with_suffix(f".{uuid.uuid4().hex[:6]}")
            draft.write_text(PROGRAM)
            draft.rename(program)
        return shlex.join([sys.executable, "-I", "-S", str(program), statements])

    def deploy(self, statements: str = HEALTHY, *, flow: str | None = None, **variables: object) -> str:
        """A deployment of such a job; its id."""
        return self.api.create_deployment(
            pool=self.pool,
            entrypoint="nothing.py:job",
            flow=flow,
            job_variables={"command": self.command(statements), **variables},
        )

    def start(self, statements: str = HEALTHY) -> str:
        """One run of such a job, due now; its id."""
        return self.api.create_flow_run(self.deploy(statements))

    def gate(self) -> Path:
        """A file that does not exist yet, for the statement `wait_for(path)`."""
        return self.directory / f"gate-{uuid.uuid4().hex[:8]}"

    def gated(self, gate: Path) -> str:
        """The statements of a job that runs until `gate` exists, and completes."""
        return f"report('RUNNING'); wait_for({str(gate)!r}); report('COMPLETED')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A run that goes wrong, and what is to be seen of it.

    It is the little program with `statements`, a `command`, or the flow of `entrypoint` under the real engine.
    `patched` job variables are put in place past the server's validation (PROTOCOL 3.5).
    `words` are all in the message of its state, `logged` in its log.
    """

    words: tuple[str, ...] = ()
    state: str = "CRASHED"
    statements: str | None = None
    command: str | None = None
    entrypoint: str | None = None
    variables: Json = field(default_factory=dict[str, object])
    patched: Json | None = None
    logged: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Bad runs that are over, or have had their time, and a healthy one that runs beside them all."""

    rows: Mapping[str, Bad]
    ids: Mapping[str, str]
    healthy: str
    healthy_until_released: bool


def run_table(jobs: Jobs, rows: Mapping[str, Bad], *, patience: float) -> Table:
    """Start a healthy run, then all bad ones beside it; when they are over, after `patience` seconds at most, end it, too.

    The pool is paused until all are there: the server checks job variables whenever a run is made, so they can be
    spoiled only afterwards. Nothing is asserted here: one case that never ends must not hide how the others did.
    """
    gate = jobs.gate()
    healthy = jobs.start(jobs.gated(gate))
    jobs.api.wait_for_state(healthy, "RUNNING")
    jobs.api.update_pool(jobs.pool, is_paused=True)
    ids = {name: start_bad(jobs, bad, name=name) for name, bad in rows.items()}
    jobs.api.update_pool(jobs.pool, is_paused=False)

    def unfinished() -> list[str]:
        runs = jobs.api.flow_runs(work_pools={"name": {"any_": [jobs.pool]}})
        return [run["id"] for run in runs if run["state_type"] not in FINAL and run["id"] != healthy]

    with suppress(AssertionError):
        wait_for(lambda: not unfinished(), timeout=patience, interval=0.5, description="the end of all runs")
    released_in = jobs.api.flow_run(healthy)["state_name"]
    gate.touch()
    jobs.api.wait_for_final(healthy)
    return Table(rows=rows, ids=ids, healthy=healthy, healthy_until_released=released_in == "Running")


def start_bad(jobs: Jobs, bad: Bad, *, name: str) -> str:
    """One run that goes wrong as described; its id."""
    variables = dict(bad.variables)
    pull_steps = None
    if bad.entrypoint is not None:
        pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(jobs.directory)}}]
    else:
        variables["command"] = bad.command or jobs.command(bad.statements or HEALTHY)
    deployment_id = jobs.api.create_deployment(
        pool=jobs.pool,
        name=name,
        entrypoint=bad.entrypoint or "nothing.py:job",
        job_variables=variables,
        pull_steps=pull_steps,
    )
    run_id = jobs.api.create_flow_run(deployment_id)
    if bad.patched is not None:
        jobs.api.patch(f"/deployments/{deployment_id}", {"job_variables": {**variables, **bad.patched}})
    return run_id


def assert_as_described(table: Table, case: str, jobs: Jobs) -> None:
    """The run ended as its row says, for the reason its row says."""
    bad, run_id = table.rows[case], table.ids[case]
    run = jobs.api.flow_run(run_id)
    message: str = run["state"]["message"] or ""
    assert run["state_type"] == bad.state, jobs.api.story(run_id)
    assert [word for word in bad.words if word not in message] == [], message
    if (logged := bad.logged) is not None:
        jobs.api.wait_for_log(run_id, lambda text: logged in text, description=f"{logged!r} in the run's log")


def assert_neighbour_is_well(table: Table, worker: Worker, jobs: Jobs) -> None:
    """The healthy run was still running, in the same daemon, after all that happened beside it, and completed."""
    assert worker.service.returncode is None, worker.service.transcript()
    assert table.healthy_until_released, jobs.api.story(table.healthy)
    assert jobs.api.flow_run(table.healthy)["state_type"] == "COMPLETED", jobs.api.story(table.healthy)


def unprivileged(directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a daemon's `environment` so that directories can be closed to it, even if it is root."""
    site = directory / "unprivileged"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_UNPRIVILEGED)
    paths = [str(site), *filter(None, [environment.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def resident(worker: Worker) -> int:
    """The daemon's memory, in bytes."""
    return psutil.Process(worker.pid).memory_info().rss


def assert_all_is_free(worker: Worker, jobs: Jobs, *, slots: int) -> None:
    """The daemon is alive, nothing of its runs is left, and as many runs as it has slots run at the same time."""
    assert worker.service.returncode is None, worker.service.transcript()
    gate = jobs.gate()
    running = [jobs.start(jobs.gated(gate)) for _ in range(slots)]
    for run_id in running:
        jobs.api.wait_for_state(run_id, "RUNNING")
    gate.touch()
    jobs.api.wait_for_all(running)
    wait_for(lambda: not leftovers(worker), description=lambda: f"nothing left: {leftovers(worker)}")


def leftovers(worker: Worker) -> list[str]:
    """The daemon's children but for its fork server, and the directories of its runs."""
    found: list[str] = []
    for child in psutil.Process(worker.pid).children(recursive=True):
        try:
            if "forkserver_main" not in child.cmdline():
                found.append(f"process {child.pid}: {child.cmdline()}")
        except psutil.Error:
            continue
    for runs in worker.state_dir.glob("*/runs"):
        found.extend(map(str, runs.iterdir()))
    return found
