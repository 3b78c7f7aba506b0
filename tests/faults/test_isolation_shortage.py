"""One bad run hurts no other and never the daemon: floods of output, secrets in it, and a machine that is full.

A shortage is made for the live daemon and taken away again: its limit on open files, its disk. Limiting processes does
the same in the launcher (EAGAIN is a `Shortage`, too) and binds no root, hence it is done to the launcher alone.
"""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.isolation import Jobs, assert_all_is_free, resident, unprivileged
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

SLOTS = 2
# Generous: what the daemon may grow by while its runs write 400 MB.
GROWTH = 60 << 20
SECRET = "planted-secret-4711-do-not-show"
RUNNING = "report('RUNNING'); "
COMPLETED = "; report('COMPLETED')"


@pytest.fixture(scope="module")
def jobs(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(api=api, pool=api.create_pool(), directory=tmp_path_factory.mktemp("shortage"))


@pytest.fixture(scope="module")
def worker(module_daemon: StartWorker, prefect_server: PrefectServer, jobs: Jobs) -> Worker:
    environment = unprivileged(jobs.directory, prefect_server.env())
    return module_daemon(
        pool=jobs.pool, args=("--limit", str(SLOTS)), env=environment | {"PREFECT_API_KEY": SECRET}
    )


@contextmanager
def beside(jobs: Jobs) -> Generator[None]:
    """A healthy run beside whatever happens inside, which completes afterwards."""
    gate = jobs.gate()
    healthy = jobs.start(jobs.gated(gate))
    jobs.api.wait_for_state(healthy, "RUNNING")
    try:
        yield
        assert jobs.api.flow_run(healthy)["state_name"] == "Running", jobs.api.story(healthy)
    finally:
        gate.touch()
    jobs.api.wait_for_state(healthy, "COMPLETED")


# Output


def test_floods_of_output(daemon: StartWorker, jobs: Jobs) -> None:
    """300 MB in lines and 100 MB without an end of line at the same time: the daemon's memory does not notice."""
    own = replace(jobs, pool=jobs.api.create_pool())
    worker = daemon(pool=own.pool, args=("--limit", "3"))
    before = peak = resident(worker)
    with beside(own):
        floods = [
            own.start(RUNNING + flood(total, block) + "; say(' the end')" + COMPLETED)
            for total, block in ((300 << 20, r"b'x' * 1023 + b'\n'"), (100 << 20, "b'x' * 1024"))
        ]

        def ended() -> bool:
            nonlocal peak
            peak = max(peak, resident(worker))
            # The healthy run's directory is the only one left when all has been passed on and reported.
            return len(list(worker.state_dir.glob("*/runs/*"))) == 1

        wait_for(lambda: len(list(worker.state_dir.glob("*/runs/*"))) == 3, description="the floods begin")
        wait_for(ended, timeout=500, interval=0.2, description=lambda: "\n".join(map(own.api.story, floods)))
        own.api.wait_for_all(floods)
    assert peak - before < GROWTH
    assert_all_is_free(worker, own, slots=3)
    printed = worker.service.stderr_path
    with printed.open("rb") as output:
        assert sum(b" the end" in line for line in output) == 2
    os.truncate(printed, 0)


def flood(total: int, block: str) -> str:
    """Statements that write `total` bytes in pieces of a megabyte, each made of an expression's 1024 bytes."""
    return f"block = ({block}) * 1024; [os.write(1, block) for _ in range({total >> 20})]"


def test_output_that_is_no_text(worker: Worker, jobs: Jobs) -> None:
    statements = r"os.write(1, b'\xff\xfe\x00 \xc3\x28 before\nafter \xf0\x9f'); os._exit(7)"
    with beside(jobs):
        run_id = jobs.start(RUNNING + statements)
        jobs.api.wait_for_state(run_id, "CRASHED")
        jobs.api.wait_for_log(
            run_id,
            lambda text: "before" in text and "after" in text,
            description="the last output in the log",
        )


@pytest.mark.parametrize(
    "statements",
    [
        "say('it is ' + os.environ['PREFECT_API_KEY'])",
        # A line so long that it is passed on in pieces, with the secret where one of them ends.
        "say('x' * (16 * 1024 - 9) + os.environ['PREFECT_API_KEY'] + 'y' * 99)",
        # The tail of the output begins in the middle of the secret.
        "say('x' * 99 + os.environ['PREFECT_API_KEY'] + 'y' * (16 * 1024 - 20))",
    ],
    ids=["in a line", "across pieces", "across the tail's beginning"],
)
def test_a_secret_in_the_output_is_masked(statements: str, worker: Worker, jobs: Jobs) -> None:
    run_id = jobs.start(RUNNING + statements + "; os._exit(7)")
    jobs.api.wait_for_state(run_id, "CRASHED")
    logged = jobs.api.wait_for_log(run_id, lambda text: "last output" in text, description="the last output")
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    printed = "".join(event["line"] for event in worker.events("flow_run.output", flow_run_id=run_id))
    assert len(printed) > 10
    for size in (len(SECRET), len(SECRET) // 2, 10):
        parts = {SECRET[start : start + size] for start in range(len(SECRET) - size + 1)}
        assert [part for part in parts if part in logged] == []
        assert [part for part in parts if part in printed] == []


# A machine that is full


def test_no_open_files_left(worker: Worker, jobs: Jobs) -> None:
    """What cannot be started for want of descriptors is given back, and runs when there are some again."""
    process = psutil.Process(worker.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    with beside(jobs):
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), hard))
        try:
            run_id = jobs.start()
            wait_for(
                lambda: worker.events("flow_run.given_back", flow_run_id=run_id) or trouble(worker),
                timeout=120,
                description="a sign of the shortage",
            )
        finally:
            process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        jobs.api.wait_for_state(run_id, "COMPLETED")
    assert_all_is_free(worker, jobs, slots=SLOTS)


def trouble(worker: Worker) -> list[object]:
    """Events that tell of failed requests for want of descriptors."""
    return [event for event in worker.logs() if "open files" in str(event.get("reason"))]


_NO_PROCESSES = """
import os, resource, sys
from pathlib import Path
from worker.processes.launch_problems import LaunchSpec, Shortage
from worker.processes.launcher import Launcher

if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
spec = LaunchSpec(argv=("true",), env={"PATH": "/usr/bin:/bin"}, cwd=Path("/"), stream_output=False)
try:
    Launcher().launch(spec, output=Path("/dev/null"))
except Shortage as shortage:
    print(shortage)
"""


def test_no_process_can_be_started() -> None:
    """The limit on processes of a user who is not root, as the launcher sees it: a shortage, not the run's fault."""
    said = subprocess.run(
        [sys.executable, "-c", _NO_PROCESSES], capture_output=True, text=True, timeout=60, check=True
    )
    assert "ulimit -u" in said.stdout, said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system for a daemon's state; None where none may be mounted."""
    state = tmp_path / "disk"
    state.mkdir()
    options = "size=48m,nr_inodes=400"
    mount = ["mount", "-t", "tmpfs", "-o", options, "headrace-test", str(state)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        yield None
        return
    yield state
    subprocess.run(["umount", str(state)], check=True)


FILLERS = {
    "bytes": "filler = open('filler', 'wb', buffering=0)\n"
    "try:\n while True: filler.write(bytes(4096))\nexcept OSError as error: full = error\n",
    "files": "try:\n for number in range(1000000): open(str(number), 'w').close()\nexcept OSError as error: full = error\n",
}
# What a run may not write where nothing can be mounted: it stands for a disk that has no room for it, and for it only.
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)); "


@pytest.mark.parametrize("what", FILLERS)
def test_a_run_fills_the_disk(what: str, disk: Path | None, daemon: StartWorker, jobs: Jobs) -> None:
    """A run takes all that is left, bytes or files: those beside it end well, and once it is gone all is as before."""
    if disk is None and what == "files":
        what = "bytes"
    own = replace(jobs, pool=jobs.api.create_pool())
    arguments = ("--limit", "3", *(("--state-dir", str(disk)) if disk else ()))
    worker = daemon(pool=own.pool, args=arguments)
    state = disk or worker.state_dir
    gate, is_full = own.gate(), own.gate()
    with beside(own):
        greedy = own.start(
            RUNNING
            + ("" if disk else LIMITED)
            + "\n"
            + FILLERS[what]
            + f"open({str(is_full)!r}, 'w').close(); wait_for({str(gate)!r}); sys.exit(str(full))"
        )
        wait_for(is_full.exists, timeout=120, description=lambda: own.api.story(greedy))
        late = own.start()
        # The third slot is free: the run is tried, or seen and left alone.
        polls = len(worker.events("poll.done"))
        wait_for(lambda: len(worker.events("poll.done")) > polls + 3, timeout=120, description="some polls")
        assert own.api.flow_run(late)["state_type"] not in {"PENDING", "RUNNING"} or disk is None
        gate.touch()
        own.api.wait_for_state(greedy, "CRASHED")
        run = own.api.wait_for_final(late)
        reason = run["state"]["message"] or ""
        assert run["state_type"] == "COMPLETED" or "No space left" in reason, own.api.story(late)
    assert_all_is_free(worker, own, slots=3)
    # A directory goes after its run's report, and a large one takes a moment.
    wait_for(lambda: not list(state.glob("*/runs/*")), description="no directory of a run is left")
    assert worker.stop() == 0


def test_a_state_directory_that_may_not_be_written(worker: Worker, jobs: Jobs) -> None:
    (runs,) = worker.state_dir.glob("*/runs")
    with beside(jobs):
        runs.chmod(0o500)
        try:
            run_id = jobs.start()
            polls = len(worker.events("poll.done"))
            wait_for(lambda: len(worker.events("poll.done")) > polls + 5, description="some polls")
        finally:
            runs.chmod(0o700)
        run = jobs.api.wait_for_final(run_id)
        reason = run["state"]["message"] or ""
        assert run["state_type"] == "COMPLETED" or "Permission denied" in reason, jobs.api.story(run_id)
    assert_all_is_free(worker, jobs, slots=SLOTS)
