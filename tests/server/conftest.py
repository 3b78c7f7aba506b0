"""Fixtures of the tests on a real server: a pool, the flow project on it, and where flows write."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project


@pytest.fixture
def pool(api: PrefectApi) -> str:
    """A work pool of the test's own."""
    return api.create_pool()


@pytest.fixture
def project(api: PrefectApi, pool: str, tmp_path: Path) -> Project:
    """The flow project on the test's own pool."""
    return Project(api=api, pool=pool, out=tmp_path / "out")


@pytest.fixture(scope="module")
def module_project(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The flow project on one pool for all tests of a module."""
    return Project(api=api, pool=api.create_pool(), out=tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def worker(module_daemon: StartWorker, module_project: Project) -> Worker:
    """One daemon on the module's pool, at most four runs at a time."""
    return module_daemon(pool=module_project.pool, args=("--limit", "4"))


@pytest.fixture
def project_on(api: PrefectApi, tmp_path: Path) -> Callable[[str], Project]:
    """The flow project on a pool the test names."""
    return lambda pool: Project(api=api, pool=pool, out=tmp_path / "out")
