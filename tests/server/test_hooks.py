"""The helper that runs hooks after a hard death, against a real server: what it calls, where, and how it ends."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import psutil
import pytest

from tests.support.api import PrefectApi
from tests.support.project import FLOWS, Project
from tests.support.server import PrefectServer
from tests.support.wait import wait_until
from worker.api.models import State, StateType
from worker.processes.launch_problems import LaunchSpec
from worker.processes.launcher import Launcher
from worker.runs.hooks import HookKind, HookRunner

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300), pytest.mark.thorough]

# Long enough for any helper that ends by itself, on any machine.
PATIENCE = 240.0
CANCELLED = State(type=StateType.CANCELLING, name="Cancelling", message="as the daemon knows it")
CRASHED = State(type=StateType.CRASHED, name="Crashed", message="Process exited with status code: -9.")


@dataclass(kw_only=True)
class Attempt:
    """A run whose process is dead, and what the daemon still has of it."""

    project: Project
    server: PrefectServer
    directory: Path
    run_id: str
    env: dict[str, str] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    argv: tuple[str, ...] = (sys.executable, "-m", "prefect.engine")

    @property
    def cwd(self) -> Path:
        return self.directory / "work"

    @property
    def output(self) -> Path:
        return self.directory / "output"

    async def run_hooks(
        self,
        kind: HookKind = HookKind.CANCELLATION,
        *,
        state: State = CANCELLED,
        timeout: float = PATIENCE,
    ) -> str | None:
        spec = LaunchSpec(argv=self.argv, env=self.server.env(self.env), cwd=self.cwd, stream_output=True)
        return await HookRunner(launcher=Launcher()).run(
            kind,
            spec=spec,
            python=sys.executable,
            flow_run_id=UUID(self.run_id),
            state=state,
            output=self.output,
            timeout=timeout,
            print_line=self.printed.append,
        )

    def told(self) -> list[dict[str, Any]]:
        """What the hooks wrote down, in order."""
        path = self.project.out / f"{self.run_id}.hooks"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self) -> list[str]:
        return [fact["hook"] for fact in self.told()]


MakeAttempt = Callable[..., Attempt]


@pytest.fixture
def attempt(prefect_server: PrefectServer, project: Project, tmp_path: Path) -> MakeAttempt:
    """An attempt at a run of `hooked.py` that was Running, and is being cancelled with `cancelling`."""

    def make(flow: str = "hooked", *, cancelling: bool = True, **fields: Any) -> Attempt:
        project.out.mkdir(exist_ok=True)
        run_id = project.run(flow, file="hooked.py", **fields)
        project.api.set_state(run_id, "PENDING")
        project.api.set_state(run_id, "RUNNING")
        if cancelling:
            project.api.cancel(run_id)
        directory = tmp_path / "run"
        (directory / "work").mkdir(parents=True)
        (directory / "output").write_text("what the flow had printed\n")
        return Attempt(project=project, server=prefect_server, directory=directory, run_id=run_id)

    return make


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_hooks_run_in_order_and_one_that_raises_stops_nothing(
    api: PrefectApi, attempt: MakeAttempt
) -> None:
    dead = attempt()
    dead.env = {"PREFECT__CONTROL_PORT": "1", "PREFECT__CONTROL_TOKEN": "used"}
    assert await dead.run_hooks() is None
    assert dead.called() == ["plain", "awaited", "broken", "last"]
    plain, awaited, _, last = dead.told()
    run = api.flow_run(dead.run_id)
    assert (plain["flow"], plain["state"], plain["id"]) == ("hooked", "Cancelling", run["state_id"])
    assert (awaited["state"], awaited["run"]) == ("CANCELLING", dead.run_id)
    # The server's own state is what they are told.
    assert last["message"] is None
    # The flow's code sees what it would see in the engine, and nothing of the daemon.
    assert plain["argv"] == []
    assert plain["python"] == sys.executable
    assert plain["cwd"] == str(FLOWS)
    assert not any("runs" in entry.split("/") for entry in plain["path"])
    assert not last["worker"]
    # Its output follows the flow's, and is passed on.
    assert dead.output.read_text().startswith("what the flow had printed\n")
    assert "printed by the last hook" in dead.printed
    assert "what the flow had printed" not in dead.printed
    # All that was logged has reached the server when the helper has ended.
    log = api.log_messages(dead.run_id)
    assert any("'broken' failed" in line and "on purpose" in line for line in log)
    assert any("the last hook was told None" in line for line in log)
    assert sum("has finished" in line for line in log) == 3
    assert run["state_type"] == "CANCELLING"


async def test_hooks_of_a_deployment_with_a_path_use_the_code_that_ran(
    attempt: MakeAttempt, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(FLOWS / "hooked.py", source)
    dead = attempt(path=str(source))
    # Killed before it had copied anything: the helper does.
    assert await dead.run_hooks() is None
    assert dead.called() == ["plain", "awaited", "broken", "last"]
    assert dead.told()[0]["cwd"] == str(dead.cwd)
    # Killed later: what it had copied is there, whatever became of the source.
    shutil.rmtree(source)
    assert await dead.run_hooks() is None
    assert dead.called() == ["plain", "awaited", "broken", "last"] * 2


async def test_a_hook_after_a_crash_is_told_the_state_that_was_accepted(
    api: PrefectApi, attempt: MakeAttempt
) -> None:
    dead = attempt(cancelling=False)
    answer = api.set_state(dead.run_id, "CRASHED", message="accepted by the server")
    assert answer["status"] == "ACCEPT"
    assert await dead.run_hooks(HookKind.CRASHED, state=CRASHED) is None
    assert dead.told() == [{"hook": "crashed", "state": "Crashed", "message": "accepted by the server"}]


async def test_a_hook_is_told_the_given_state_when_the_run_s_is_another_one(attempt: MakeAttempt) -> None:
    dead = attempt(cancelling=False)
    assert await dead.run_hooks(HookKind.CRASHED, state=CRASHED) is None
    assert dead.told() == [{"hook": "crashed", "state": "Crashed", "message": CRASHED.message}]


async def test_a_flow_without_hooks_is_done_quietly(api: PrefectApi, attempt: MakeAttempt) -> None:
    dead = attempt("unhooked")
    assert await dead.run_hooks() is None
    assert not any("hook" in line for line in api.log_messages(dead.run_id))


async def test_a_hook_that_exits_does_not_keep_the_next_one_from_running(attempt: MakeAttempt) -> None:
    dead = attempt("leaves")
    assert await dead.run_hooks() is None
    assert dead.called() == ["leaving", "last"]


async def test_a_flow_file_that_is_gone_is_the_reason(attempt: MakeAttempt, tmp_path: Path) -> None:
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    dead = attempt(pull_steps=[step])
    reason = await dead.run_hooks()
    assert reason is not None
    assert reason.startswith("The on_cancellation hooks could not be run: ")
    assert "hooked.py" in reason
    assert "\n" not in reason
    assert dead.called() == []


async def test_the_entrypoint_of_the_environment_comes_first(attempt: MakeAttempt, tmp_path: Path) -> None:
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path / "nowhere")}}
    dead = attempt("leaves", pull_steps=[step])
    dead.env = {"PREFECT__FLOW_ENTRYPOINT": f"{FLOWS / 'hooked.py'}:leaves"}
    # Nor does the directory have to be there still, or the command to be the engine's.
    dead.argv = ("bash", "run.sh")
    dead.cwd.rmdir()
    assert await dead.run_hooks() is None
    assert dead.called() == ["leaving", "last"]
    assert [path.name for path in dead.directory.iterdir()] == ["output"]


async def test_a_hook_that_hangs_is_killed_with_all_it_started(attempt: MakeAttempt) -> None:
    dead = attempt("hangs")
    reasons: list[str | None] = []

    async def run() -> None:
        reasons.append(await dead.run_hooks(timeout=deadline))

    # The time a helper needs to reach its hook is the machine's; it is given longer until it got there.
    deadline = 10.0
    while not dead.called():
        await run()
        deadline *= 2
    assert reasons[-1] == f"The on_cancellation hooks did not end within {deadline / 2:g} s and were killed."
    for pid in dead.told()[0]["pids"]:
        assert gone(pid)


async def test_a_cancelled_call_leaves_nothing_behind(attempt: MakeAttempt) -> None:
    dead = attempt("hangs")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dead.run_hooks)
        await wait_until(dead.called, timeout=PATIENCE, description="the hook's start")
        tasks.cancel_scope.cancel()
    for pid in dead.told()[0]["pids"]:
        assert gone(pid)


async def test_an_interpreter_that_is_gone_is_the_reason(attempt: MakeAttempt) -> None:
    dead = attempt("unhooked")
    dead.argv = ("/nowhere/python", "-m", "prefect.engine")
    reason = await dead.run_hooks()
    assert reason is not None
    assert "/nowhere/python" in reason


async def test_a_helper_that_fails_is_the_reason(attempt: MakeAttempt, tmp_path: Path) -> None:
    dead = attempt("unhooked")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho something else broke\nexit 7\n")
    python.chmod(0o755)
    dead.argv = (str(python), "-m", "prefect.engine")
    reason = await dead.run_hooks()
    assert reason is not None
    assert "exit code 7" in reason
    assert dead.printed == ["something else broke"]
