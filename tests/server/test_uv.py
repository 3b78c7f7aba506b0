"""A command that builds the flow's environment first, `uv run --project`: first runs at once build it once."""

import os
import sys
from pathlib import Path

import pytest
import uv

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.thorough]

PYPROJECT = """\
[project]
name = "flows-of-a-user"
version = "1"
requires-python = ">=3.9"

[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# A build backend (PEP 517, PEP 660) with no needs, that notes each build and ends it when it may.
BACKEND = """\
import os, time, zipfile

NAME = "flows_of_a_user-1"
METADATA = "Metadata-Version: 2.1\\nName: flows-of-a-user\\nVersion: 1\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: backend\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"


def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open(os.environ["BUILDS"], "a") as builds:
        builds.write(f"{os.getpid()}\\n")
    while not os.path.exists(os.environ["MAY_END"]):
        time.sleep(0.05)
    files = {
        "venv_marker.py": "NAME = 'built by uv'\\n",
        f"{NAME}.dist-info/METADATA": METADATA,
        f"{NAME}.dist-info/WHEEL": WHEEL,
    }
    record = "".join(f"{name},,\\n" for name in (*files, f"{NAME}.dist-info/RECORD"))
    with zipfile.ZipFile(os.path.join(directory, f"{NAME}-py3-none-any.whl"), "w") as wheel:
        for name, text in {**files, f"{NAME}.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return f"{NAME}-py3-none-any.whl"


build_editable = build_wheel
"""


@pytest.fixture
def uv_project(tmp_path: Path) -> Path:
    """A project whose environment is to be built: from itself alone, so that nothing is downloaded."""
    directory = tmp_path / "uv-project"
    directory.mkdir()
    (directory / "pyproject.toml").write_text(PYPROJECT)
    (directory / "backend.py").write_text(BACKEND)
    return directory


def test_first_runs_at_once_build_the_environment_once(
    api: PrefectApi, project: Project, daemon: StartWorker, uv_project: Path, tmp_path: Path
) -> None:
    builds, may_end = tmp_path / "builds", tmp_path / "may-end"
    # Prefect is where the tests have it: what uv installs is only what the project needs beside it.
    shared = os.pathsep.join(entry for entry in sys.path if Path(entry).name == "site-packages")
    deployment = project.deploy(
        "interpreted",
        file="interpreted.py",
        job_variables={
            "command": f"{uv.find_uv_bin()} run --project {uv_project} python -m prefect.engine",
            "env": {
                "BUILDS": str(builds),
                "MAY_END": str(may_end),
                "PYTHONPATH": shared,
                "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
                "UV_OFFLINE": "1",
                "UV_PYTHON": sys.executable,
            },
        },
    )
    runs = [api.create_flow_run(deployment) for _ in range(2)]
    worker = daemon(pool=project.pool, args=("--max-starting", "2"))
    # One builds, until it is told to end; where the server answers slowly, the other follows once this one has taken long.
    wait_for(
        lambda: builds.exists() and len(worker.events("flow_run.launched")) == len(runs),
        timeout=200,
        description="the start of both runs, and of a build",
    )
    may_end.touch()
    for run_id in runs:
        api.wait_for_state(run_id, "COMPLETED")
        (fact,) = project.facts(run_id, "interpreted")
        assert (fact["marker"], fact["prefix"]) == ("built by uv", str(uv_project / ".venv"))
    reasons = {one["cold_because"] for one in worker.events("flow_run.launched")}
    assert reasons == {"it has a command of its own"}
    assert len(builds.read_text().splitlines()) == 1
    assert worker.stop() == 0
