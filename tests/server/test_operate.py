"""`headrace ps`, `logs`, `stop` beside real daemons, running and killed, and runs in flight."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]

Finished = subprocess.CompletedProcess[str]


class Operator:
    """Somebody at a terminal beside a daemon: its state directory, its server."""

    def __init__(self, server: PrefectServer, state_dir: Path) -> None:
        self.server = server
        self.state_dir = state_dir

    def __call__(self, command: str, *arguments: str, code: int = 0, **env: str) -> Finished:
        """Run `headrace COMMAND`, which must exit with this code."""
        finished = self.server.python(
            *("-m", "worker.cli", command, "--state-dir", str(self.state_dir), *arguments),
            cwd=ROOT,
            env=env,
            check=False,
        )
        assert finished.returncode == code, (command, arguments, finished)
        return finished

    def json(self, command: str, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(command, "--json", *arguments, code=code).stdout)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """What `ps` says of a run."""
        return next((run for run in self.json("ps")["runs"] if run["flow_run_id"] == run_id), None)

    def begin(self, command: str, *arguments: str, stdout: Path) -> subprocess.Popen[bytes]:
        """Start `headrace COMMAND`, its output going to a file."""
        with stdout.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "worker.cli", command, "--state-dir", str(self.state_dir), *arguments],
                cwd=ROOT,
                env=self.server.env(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )


ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def operator(prefect_server: PrefectServer, worker: Worker) -> Operator:
    """Beside the module's daemon."""
    return Operator(prefect_server, worker.state_dir)


@pytest.fixture
def sleeping(module_project: Project, worker: Worker, api: PrefectApi) -> Iterator[str]:
    """A run in flight with a child; cancelled afterwards."""
    run_id = module_project.run("sleeps", parameters={"deaf": True})
    module_project.wait_for_fact(run_id, "sleeping")
    api.wait_for_state(run_id, "RUNNING")
    yield run_id
    if api.flow_run(run_id)["state_type"] == "RUNNING":
        api.cancel(run_id)
    api.wait_for_final(run_id)
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)


def test_ps_shows_a_run_with_its_whole_tree(
    operator: Operator, sleeping: str, worker: Worker, module_project: Project, api: PrefectApi
) -> None:
    (fact,) = module_project.facts(sleeping, "sleeping")
    before = {path: path.stat() for path in worker.journal.parent.iterdir()}
    shown = operator.run(sleeping)
    assert shown is not None
    run = api.flow_run(sleeping)
    assert shown["name"] == run["name"]
    assert shown["flow"] == "sleeps"
    assert shown["deployment"] == api.deployment(run["deployment_id"])["name"]
    assert (shown["pool"], shown["worker"]) == (worker.pool, worker.name)
    assert (shown["phase"], shown["pid"]) == ("running", fact["pid"])
    assert shown["processes"] == 2
    assert shown["age_seconds"] > 0
    assert shown["cpu_percent"] >= 0
    resident = psutil.Process(fact["pid"]).memory_info().rss
    assert shown["memory_kind"] == "pss"
    assert 0 < shown["memory_bytes"] < 2 * resident
    assert {path: path.stat().st_ino for path in worker.journal.parent.iterdir()} == {
        path: status.st_ino for path, status in before.items()
    }
    table = operator("ps").stdout
    assert table.startswith("RUN ")
    assert sleeping[:8] in table
    assert f"{worker.name} (pool {worker.pool}): daemon running, pid {worker.pid}, 1 run in flight" in table


def test_ps_needs_no_server(operator: Operator, sleeping: str) -> None:
    assert sleeping[:8] in operator("ps", PREFECT_API_URL="http://127.0.0.1:9/api").stdout


def test_ps_of_one_daemon(operator: Operator, worker: Worker) -> None:
    (daemon,) = operator.json("ps", "--pool", worker.pool, "--name", worker.name)["daemons"]
    assert daemon["running"]
    refused = operator("ps", "--pool", "nobody", code=1)
    assert "'nobody'" in refused.stderr
    assert worker.name in refused.stderr


def test_watch_goes_on_until_ctrl_c(operator: Operator, sleeping: str, tmp_path: Path) -> None:
    watching = operator.begin("ps", "--watch", stdout=tmp_path / "watch")
    try:
        wait_for(
            lambda: (tmp_path / "watch").read_text().count(sleeping[:8]) >= 2,
            description=(tmp_path / "watch").read_text,
        )
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    finally:
        watching.kill()
        watching.wait()


def test_logs_follow_a_run_to_its_end(
    operator: Operator, module_project: Project, api: PrefectApi, worker: Worker, tmp_path: Path
) -> None:
    script, printed = tmp_path / "script", tmp_path / "printed"
    script.write_text("first line\n")
    run_id = module_project.run("chatty", file="chatty.py", parameters={"script": str(script)})
    api.wait_for_state(run_id, "RUNNING")
    wait_for(
        lambda: "first line" in operator("logs", run_id).stdout, description="the first line of the output"
    )
    masked = operator("logs", run_id, PREFECT_API_KEY="first line").stdout
    assert "********" in masked
    assert "first line" not in masked
    name = api.flow_run(run_id)["name"]
    following = operator.begin("logs", name, "--follow", stdout=printed)
    try:
        wait_for(lambda: "first line" in printed.read_text(), description="what was printed before")
        with script.open("a") as lines:
            lines.write("second line\n")
        wait_for(lambda: "second line" in printed.read_text(), description="what is printed now")
        assert following.poll() is None
        with script.open("a") as lines:
            lines.write("end\n")
        assert following.wait(90) == 0, printed.read_text()
    finally:
        following.kill()
        following.wait()
    assert printed.read_text().count("second line") == 1
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
    gone = operator("logs", run_id[:8], code=1)
    assert "removed" in gone.stderr
    assert "on the server" in gone.stderr


def test_stop_cancels_a_run_here(operator: Operator, sleeping: str, api: PrefectApi) -> None:
    stopped = operator("stop", sleeping[:8], "--wait")
    assert "is Cancelled" in stopped.stdout
    assert api.flow_run(sleeping)["state_type"] == "CANCELLED"
    again = operator("stop", sleeping, code=1)
    assert "has ended already, as Cancelled" in again.stdout


def test_stop_of_a_run_nobody_has_begun(operator: Operator, api: PrefectApi, tmp_path: Path) -> None:
    elsewhere = Project(api=api, pool=api.create_pool(), out=tmp_path)
    run_id = elsewhere.run()
    answer = operator.json("stop", api.flow_run(run_id)["name"])
    assert answer["flow_run_id"] == run_id
    assert (answer["stopping"], answer["state_type"]) == (True, "CANCELLED")
    assert "nobody had begun it" in answer["message"]


def test_stop_says_why_it_cannot(operator: Operator) -> None:
    unknown = operator("stop", "00000000-0000-4000-8000-000000000000", code=1)
    assert "no flow run 00000000" in unknown.stderr
    assert "give the whole id" in operator("stop", "nobody-at-all", code=1).stderr
    away = operator("stop", "nobody-at-all", code=1, PREFECT_API_URL=f"http://127.0.0.1:{free_port()}/api")
    assert "headrace doctor" in away.stderr


def test_following_survives_the_output_limit(
    prefect_server: PrefectServer, daemon: StartWorker, project: Project, api: PrefectApi, tmp_path: Path
) -> None:
    bounded = daemon(pool=project.pool, args=("--output-limit", "64KiB"))
    operator = Operator(prefect_server, bounded.state_dir)
    script, printed = tmp_path / "script", tmp_path / "printed"
    script.write_text("before\n")
    run_id = project.run("chatty", file="chatty.py", parameters={"script": str(script)})
    api.wait_for_state(run_id, "RUNNING")
    following = operator.begin("logs", run_id, "--follow", stdout=printed)
    try:
        wait_for(lambda: "before" in printed.read_text(), description="the first line")
        with script.open("a") as lines:
            lines.writelines(f"{number} {'x' * 200}\n" for number in range(5000))
            lines.write("after\n")
        wait_for(lambda: "after\n" in printed.read_text(), description="the line after the flood")
        late = operator("logs", run_id).stdout
        assert "bytes of output dropped" in late
        assert late.endswith("after\n")
        with script.open("a") as lines:
            lines.write("end\n")
        assert following.wait(90) == 0
    finally:
        following.kill()
        following.wait()
    bounded.wait_for_event("flow_run.reported", flow_run_id=run_id)


def test_a_killed_daemon_leaves_its_run_to_see(
    prefect_server: PrefectServer, daemon: StartWorker, project: Project, api: PrefectApi
) -> None:
    killed = daemon(pool=project.pool)
    operator = Operator(prefect_server, killed.state_dir)
    run_id = project.run("sleeps")
    pid = project.wait_for_fact(run_id, "sleeping")["pid"]
    api.wait_for_state(run_id, "RUNNING")
    killed.service.signal(signal.SIGKILL)
    killed.wait_exit()
    left = operator.run(run_id)
    assert left is not None
    assert (left["phase"], left["pid"]) == ("left running", pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid), description=f"the end of process {pid}")
    left = operator.run(run_id)
    assert left is not None
    assert (left["phase"], left["pid"]) == ("left behind", None)
    table = operator("ps").stdout
    assert "daemon not running, 1 run left: start it again" in table
    assert operator("logs", run_id, "--follow").stderr == ""
    warned = operator("stop", run_id)
    assert "start it again" in warned.stderr
    assert "is being cancelled" in warned.stdout
    successor = daemon(pool=project.pool, successor_of=killed)
    api.wait_for_final(run_id)
    successor.wait_for_event("flow_run.reported", flow_run_id=run_id)
    assert operator.run(run_id) is None
