"""The job variable `python`: each deployment's flows in an interpreter of their own, each with its fork server."""

import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support import services
from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.venvs import Venv, make_venv
from tests.support.wait import wait_for, wait_until

pytestmark = pytest.mark.timeout(400)


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
