"""A Prefect server with its UI, a work pool and a deployment on it, our daemon, and a browser to look with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.server import PrefectServer, running_server
from tests.ui.browser import Browser, BrowserMissingError, browser

UI = {"PREFECT_SERVER_UI_ENABLED": "true", "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
POOL_ENV = {"POOLS": "the pool's", "DEPLOYMENTS": "the pool's", "RUNS": "the pool's"}


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, session_mark: str) -> Iterator[PrefectServer]:
    """The server of these tests, in place of the one without a UI. It copies its pages to a directory of its own."""
    directory = tmp_path_factory.mktemp("ui-server")
    settings = UI | {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(directory / "pages")}
    with running_server(directory, mark=session_mark, settings=settings) as server:
        yield server


@pytest.fixture(scope="session")
def api(prefect_server: PrefectServer) -> Iterator[PrefectApi]:
    with prefect_server.api() as client:
        yield client


@pytest.fixture(scope="module")
def project(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The flow project on a pool with a default environment."""
    pool = api.create_pool(template=api.template(defaults={"env": POOL_ENV}))
    return Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def worker(module_daemon: StartWorker, project: Project) -> Worker:
    return module_daemon(pool=project.pool)


@pytest.fixture
def window(prefect_server: PrefectServer, tmp_path: Path, session_mark: str) -> Iterator[Browser]:
    """A browser on the server."""
    base_url = prefect_server.api_url.removesuffix("/api")
    try:
        with browser(base_url, evidence=tmp_path / "evidence", mark=session_mark) as opened:
            yield opened
    except BrowserMissingError as error:
        pytest.fail(str(error), pytrace=False)
