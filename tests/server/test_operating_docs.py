"""Every command of docs/operating.md, run as it stands there, beside a real daemon with a run in flight."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "operating.md").read_text()
POOL, RUN = "my-pool", "swift-otter"
BLOCKS = [block.splitlines() for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)]
SHOWN = {block[0].removeprefix("$ headrace "): "\n".join(block[1:]) for block in BLOCKS}


class Desk:
    """Where the page's commands are typed."""

    def __init__(self, server: PrefectServer, worker: Worker) -> None:
        self.server = server
        self.worker = worker
        self.done: set[str] = set()

    def start(self, command: str, stdout: Path) -> subprocess.Popen[bytes]:
        """Start a command of the page; its output goes to a file."""
        self.done.add(command)
        words = [self.worker.pool if word == POOL else word for word in shlex.split(command)]
        with stdout.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "worker.cli", *words],
                cwd=ROOT,
                env=self.server.env({"HEADRACE_STATE_DIR": str(self.worker.state_dir)}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def type(self, command: str, tmp_path: Path, *, code: int = 0) -> str:
        """Run a command of the page to its end; what it printed."""
        out = tmp_path / "out"
        assert self.start(command, out).wait(120) == code, (command, out.read_text())
        return out.read_text()


@pytest.fixture
def desk(
    prefect_server: PrefectServer, daemon: StartWorker, api: PrefectApi, tmp_path: Path
) -> Iterator[tuple[Desk, Path]]:
    """A daemon, and a run of the name that the page uses, which has printed three lines."""
    project = Project(api=api, pool=api.create_pool(), out=tmp_path / "out-of-flow")
    worker = daemon(pool=project.pool, name="build-host-my-pool")
    script = tmp_path / "script"
    script.write_text("extracting\ntransforming\nloading\n")
    run_id = api.create_flow_run(
        project.deploy("chatty", file="chatty.py", name="nightly", parameters={"script": str(script)}),
        name=RUN,
    )
    api.wait_for_state(run_id, "RUNNING")
    yield Desk(prefect_server, worker), script
    api.wait_for_final(run_id)
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)


def keys(value: Any) -> Any:
    """The shape of a JSON value: keys, and of lists the shape of the first item."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [keys(item) for item in cast("list[Any]", value)[:1]]
    return None


def test_every_command_of_the_page(desk: tuple[Desk, Path], tmp_path: Path) -> None:
    at, script = desk
    wait_for(
        lambda: "loading" in at.type(f"logs {RUN}", tmp_path),
        description="the three lines of the run's output",
    )
    assert RUN in at.type("ps", tmp_path)
    watching = at.start("ps --watch", tmp_path / "watch")
    wait_for(lambda: RUN in (tmp_path / "watch").read_text(), description="a first look")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 0
    for command in ("ps --json", f"doctor --pool {POOL} --json"):
        assert keys(json.loads(at.type(command, tmp_path))) == keys(json.loads(SHOWN[command]))
    lines = at.type(f"doctor --pool {POOL}", tmp_path).splitlines()
    names = [line[8:].partition(":")[0] for line in lines]
    assert names == [line[8:].partition(":")[0] for line in SHOWN[f"doctor --pool {POOL}"].splitlines()]
    following = at.start(f"logs {RUN} --follow", tmp_path / "followed")
    with script.open("a") as more:
        more.write("done\n")
    wait_for(lambda: "done" in (tmp_path / "followed").read_text(), description="the line just printed")
    assert "is Cancelled" in at.type(f"stop {RUN} --wait", tmp_path)
    assert following.wait(60) == 0
    at.worker.wait_for_event("flow_run.reported")
    at.type(f"logs {RUN}", tmp_path, code=1)
    assert at.done == set(SHOWN)
