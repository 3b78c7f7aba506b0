"""Fixtures of the tests with injected faults on a real server: a pool, flows and bare jobs on it."""

from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.bare_jobs import BareJobs
from tests.support.project import Project


@pytest.fixture
def pool(api: PrefectApi) -> str:
    return api.create_pool()


@pytest.fixture
def project(api: PrefectApi, pool: str, tmp_path: Path) -> Project:
    return Project(api=api, pool=pool, out=tmp_path / "out")


@pytest.fixture
def jobs(project: Project, tmp_path: Path) -> BareJobs:
    return BareJobs(project, tmp_path)
