"""The job variable `python`: each deployment's flows in an interpreter of their own, each with its fork server."""

import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.explaining import explain_as
from tests.support.project import Project
from tests.support.venvs import Venv, make_venv
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.thorough]

ProjectOn = Callable[[str], Project]


@dataclass(frozen=True, slots=True)
class Place:
    """A pool that headrace has made, its daemon, and two virtual environments."""

    project: Project
    worker: Worker
    one: Venv
    other: Venv

    def run(self, python: object, *, gate: Path | None = None, **variables: object) -> str:
        """A run of a deployment that names this interpreter."""
        parameters: Json = {} if gate is None else {"gate": str(gate)}
        return self.project.run(
            "interpreted",
            file="interpreted.py",
            parameters=parameters,
            job_variables={"python": python, **variables},
        )

    def fact(self, run_id: str) -> Json:
        return self.project.wait_for_fact(run_id, "interpreted")

    def launched(self, run_id: str) -> Json:
        return self.worker.wait_for_event("flow_run.launched", flow_run_id=run_id)


def fork_servers(worker: Worker, venv: Venv) -> list[int]:
    """The pids of the daemon's fork servers of this interpreter."""
    return [
        process.pid
        for process in psutil.Process(worker.pid).children()
        if process.status() != psutil.STATUS_ZOMBIE
        and process.cmdline()[:2] == [venv.python, "forkserver_main"]
    ]


def hook(project: Project, run_id: str) -> Json:
    """What the run's `on_crashed` hook wrote down."""
    path = project.out / f"{run_id}.hook.json"
    wait_for(path.exists, timeout=120, description=f"the hook of {project.api.story(run_id)}")
    return wait_for(lambda: json.loads(path.read_text() or "null"), description="what the hook wrote down")


def started(worker: Worker, python: str) -> list[Json]:
    return worker.events("forkserver.started", python=python)


@pytest.fixture(scope="module")
def venvs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Venv, Venv]:
    directory = tmp_path_factory.mktemp("venvs")
    return make_venv(directory / "one"), make_venv(directory / "other")


@pytest.fixture(scope="module")
def place(
    api: PrefectApi,
    module_daemon: StartWorker,
    venvs: tuple[Venv, Venv],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    worker = module_daemon(pool=pool, args=("--limit", "8"))
    project = Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))
    one, other = venvs
    yield Place(project=project, worker=worker, one=one, other=other)
    assert worker.stop() == 0


def test_deployments_run_in_their_own_interpreters_warm_from_their_own_fork_servers(
    place: Place, api: PrefectApi
) -> None:
    """First runs at once start one fork server for each interpreter; a directory and its bin/python are one."""
    runs = {
        venv.name: [place.run(str(venv.directory)), place.run(venv.python), place.run(str(venv.directory))]
        for venv in (place.one, place.other)
    }
    for venv in (place.one, place.other):
        for run_id in runs[venv.name]:
            api.wait_for_state(run_id, "COMPLETED")
            fact = place.fact(run_id)
            assert (fact["marker"], fact["prefix"]) == (venv.name, str(venv.directory))
            assert fact["executable"] == venv.python
        place.worker.wait_for_event("forkserver.started", python=venv.python)
        again = place.run(venv.python)
        api.wait_for_state(again, "COMPLETED")
        launched = place.launched(again)
        assert (launched["start_method"], launched["cold_because"]) == ("warm", None)
        assert place.fact(again)["marker"] == venv.name
        assert len(started(place.worker, venv.python)) == 1
        assert len(fork_servers(place.worker, venv)) == 1


def test_a_relative_path_is_the_jobs_and_a_name_is_found_in_its_path(place: Place, api: PrefectApi) -> None:
    path = f"{place.other.directory / 'bin'}:{os.environ['PATH']}"
    expected = {
        place.run("./one", working_dir=str(place.one.directory.parent)): place.one,
        place.run("python", env={"PATH": path}): place.other,
        # A command is started as it is.
        place.run(place.one.python, command=f"{place.other.python} -X utf8 -m prefect.engine"): place.other,
    }
    for run_id, venv in expected.items():
        api.wait_for_state(run_id, "COMPLETED")
        assert place.fact(run_id)["executable"] == venv.python


@dataclass(frozen=True, slots=True)
class Wrong:
    """Job variables that name no interpreter that could run flows, and what their run's owner is told."""

    variables: Mapping[str, object]
    words: tuple[str, ...]


WRONG = {
    "missing": Wrong({"python": "/no/such/venv"}, ("/no/such/venv, which does not exist",)),
    "a directory that is none": Wrong({"python": "/usr"}, ("/usr", "has no bin/python")),
    "not in PATH": Wrong({"python": "python2.0"}, ("python2.0", "not in PATH")),
    "relative to nothing": Wrong({"python": "./one"}, ("'./one'", "`working_dir`")),
    "another program": Wrong({"python": "/bin/false"}, ("/bin/false", "did not answer")),
    "without Prefect": Wrong({"python": "{bare}"}, ("Prefect is not installed for {bare}/bin/python", "pip")),
}


def test_what_is_no_interpreter_for_flows_crashes_its_run_and_hurts_no_other(
    place: Place, api: PrefectApi, tmp_path: Path
) -> None:
    bare = make_venv(tmp_path / "bare", with_prefect=False).directory
    runs = {
        name: place.run(str(wrong.variables["python"]).format(bare=bare)) for name, wrong in WRONG.items()
    }
    neighbour = place.run(str(place.one.directory))
    for name, run_id in runs.items():
        message = api.wait_for_state(run_id, "CRASHED")["state"]["message"]
        assert message.startswith("Failed to submit flow run to infrastructure: ")
        for words in (*WRONG[name].words, "`python`"):
            assert words.format(bare=bare) in message
    api.wait_for_state(neighbour, "COMPLETED")
    assert not started(place.worker, str(bare / "bin" / "python"))


def test_hooks_after_a_hard_death_run_in_the_flows_interpreter(place: Place, api: PrefectApi) -> None:
    run_id = place.run(place.other.python, gate=place.project.gate())
    place.fact(run_id)
    api.wait_for_state(run_id, "RUNNING")
    os.kill(place.launched(run_id)["pid"], signal.SIGKILL)
    api.wait_for_state(run_id, "CRASHED")
    assert hook(place.project, run_id)["executable"] == place.other.python


@pytest.mark.long
def test_an_environment_that_was_made_anew_is_noticed(place: Place, api: PrefectApi, tmp_path: Path) -> None:
    old = make_venv(tmp_path / "venv")
    first = place.run(str(old.directory))
    api.wait_for_state(first, "COMPLETED")
    assert place.fact(first)["marker"] == "venv"
    place.worker.wait_for_event("forkserver.started", python=old.python)
    shutil.rmtree(old.directory)
    new = make_venv(tmp_path / "venv", name="made anew")
    second = place.run(str(new.directory))
    api.wait_for_state(second, "COMPLETED")
    assert place.fact(second)["marker"] == "made anew"
    replaced = place.worker.wait_for_event("forkserver.replaced", python=new.python)
    assert str(new.directory) in replaced["reason"]
    wait_for(lambda: len(started(place.worker, new.python)) == 2, description="the next fork server")
    third = place.run(str(new.directory))
    api.wait_for_state(third, "COMPLETED")
    assert place.launched(third)["start_method"] == "warm"
    assert place.fact(third)["marker"] == "made anew"


@pytest.mark.long
def test_explain_tells_the_interpreter_and_whether_it_is_there(place: Place, tmp_path: Path) -> None:
    def ask(*flags: str, **variables: object) -> tuple[int, Json]:
        deployment = place.project.deploy(
            "interpreted", file="interpreted.py", job_variables=variables, name=f"x-{uuid.uuid4().hex[:6]}"
        )
        told = explain_as(place.worker, "--deployment", deployment, "--json", *flags)
        return told.code, told.json

    code, told = ask(python=str(place.one.directory))
    assert (code, told["python"]) == (0, str(place.one.directory))
    assert told["provenance"]["python"] == {"layer": "deployment", "overrode": [], "filled_by": []}
    assert told["launch"]["argv"] == [place.one.python, "-m", "prefect.engine"]
    assert told["start_method"] == {"method": "warm", "reason": None}

    code, told = ask(python="/no/such/venv")
    assert code == 1
    assert "/no/such/venv, which does not exist" in told["error"]["message"]
    assert told["python"] == "/no/such/venv"
    code, told = ask("--any-machine", python="/no/such/venv")
    assert (code, told["starts"]) == (0, True)

    code, told = ask(python=str(make_venv(tmp_path / "bare", with_prefect=False).directory))
    assert code == 1
    assert "Prefect is not installed" in told["error"]["message"]

    code, told = ask(python="/no/such/venv", command="echo hello")
    assert code == 0
    (idle,) = (one for one in told["unused"] if one["name"] == "python")
    assert idle["layers"] == ["deployment"]
    text = explain_as(place.worker, "--pool", place.project.pool, "-jv", f"python={place.one.directory}").out
    assert f"warm, unless the fork server of {place.one.python} finds" in text


@pytest.mark.long
def test_a_run_that_was_adopted_has_its_hooks_in_its_interpreter(
    api: PrefectApi, daemon: StartWorker, venvs: tuple[Venv, Venv], project_on: ProjectOn
) -> None:
    """What the next daemon does not know of the dead process, the interpreter, is resolved again."""
    first = daemon(pool=f"pool-{uuid.uuid4().hex[:8]}")
    place = Place(project_on(first.pool), first, *venvs)
    run_id = place.run(place.one.python, gate=place.project.gate())
    place.fact(run_id)
    api.wait_for_state(run_id, "RUNNING")
    pid = place.launched(run_id)["pid"]
    os.kill(first.pid, signal.SIGKILL)
    first.wait_exit()
    second = daemon(pool=first.pool, successor_of=first)
    second.wait_for_event("flow_run.adopted", flow_run_id=run_id)
    os.kill(pid, signal.SIGKILL)
    api.wait_for_state(run_id, "CRASHED")
    assert hook(place.project, run_id)["executable"] == place.one.python
    assert second.stop() == 0


@pytest.mark.long
def test_a_fork_server_that_no_run_asks_for_ends_and_comes_back(
    api: PrefectApi, daemon: StartWorker, venvs: tuple[Venv, Venv], project_on: ProjectOn
) -> None:
    worker = daemon(pool=f"pool-{uuid.uuid4().hex[:8]}", program="tests.support.forgetful_daemon")
    place = Place(project_on(worker.pool), worker, *venvs)
    for times in (1, 2):
        run_id = place.run(place.one.python)
        api.wait_for_state(run_id, "COMPLETED")
        wait_for(
            lambda times=times: len(worker.events("forkserver.retired", python=place.one.python)) == times,
            description="the end of the fork server",
        )
        wait_for(lambda: not fork_servers(worker, place.one), description="the end of its process")
        assert not list(worker.state_dir.glob("*/forkserver-*.log"))
    assert not worker.events("forkserver.retired", python=sys.executable)
    assert worker.stop() == 0


@pytest.mark.long
def test_a_pool_that_headrace_made_is_served_by_stock_as_any_and_run_once_works(
    api: PrefectApi,
    daemon: StartWorker,
    stock_worker: StartWorker,
    venvs: tuple[Venv, Venv],
    project_on: ProjectOn,
) -> None:
    maker = daemon(pool=f"pool-{uuid.uuid4().hex[:8]}")
    assert maker.stop() == 0
    project = project_on(maker.pool)
    declared = api.pool(maker.pool)["base_job_template"]["variables"]["properties"]
    assert declared["python"]["default"] is None

    variables = {"python": venvs[0].python, "env": {"GREETING": "hello"}}
    of_stock = project.run(job_variables=variables)
    stock = stock_worker(pool=maker.pool)
    seen = project.seen(of_stock)
    assert (Path(seen["executable"]).parent, seen["env"]["GREETING"]) == (
        Path(sys.executable).parent,
        "hello",
    )
    stock.service.end()

    place = Place(project, maker, *venvs)
    runs = [place.run(place.one.python) for _ in range(2)]
    once = daemon(pool=maker.pool, args=("--run-once",), wait=False)
    assert once.wait_exit(timeout=120) == 0
    for run_id in runs:
        assert api.flow_run(run_id)["state_type"] == "COMPLETED"
        assert place.fact(run_id)["executable"] == place.one.python
    assert len(started(once, place.one.python)) <= 1
