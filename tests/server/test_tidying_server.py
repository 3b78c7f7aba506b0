"""A real server can be made to collect its garbage, and is, before a backlog of late runs is begun."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project
from tests.support.server import PrefectServer
from tests.support.wait import wait_for
from worker.api.client import PrefectClient
from worker.runs.tidying import MANY, MOST_REQUESTS
from worker.settings import load_settings

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]

# Imported at start by the server's interpreter: a byte is written for each full collection.
COUNTING = """
import gc, os

log = os.open(os.environ["COLLECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(phase, info):
    if phase == "stop" and info["generation"] == 2:
        os.write(log, b".")

gc.callbacks.append(note)
"""


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """What the server below writes."""
    return tmp_path / "collections"


@pytest.fixture
def counted_server(
    start_prefect_server: Callable[..., AbstractContextManager[PrefectServer]],
    tmp_path: Path,
    collections: Path,
) -> Iterator[PrefectServer]:
    """A server with Python's collector as it is, whose full collections are counted."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(COUNTING)
    settings = {
        "PYTHONPATH": str(site),
        "COLLECTIONS": str(collections),
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
    }
    with start_prefect_server(**settings) as server:
        yield server


@pytest.mark.anyio
async def test_a_server_collects_within_so_many_requests(
    counted_server: PrefectServer, collections: Path, tmp_path: Path
) -> None:
    settings = load_settings(environ={"PREFECT_API_URL": counted_server.api_url}, cwd=tmp_path)
    async with PrefectClient(settings=settings.api, worker_name=None, random=lambda: 0.5) as client:
        for _ in range(3):
            before = counted(collections)
            for _ in range(MOST_REQUESTS):
                await client.collect_garbage()
            assert counted(collections) > before


def test_a_backlog_of_late_runs_is_begun_after_a_collection(
    counted_server: PrefectServer, daemon: StartWorker, tmp_path: Path, collections: Path
) -> None:
    with counted_server.api() as api:
        project = Project(api=api, pool=api.create_pool(), out=tmp_path / "out")
        due = (datetime.now(UTC) - timedelta(seconds=60)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
        deployment = project.deploy()
        runs = [api.create_flow_run(deployment, state=state) for _ in range(MANY + 1)]
        wait_for(lambda: late(api, runs), timeout=60, description="some are marked as late")
        count = counted(collections)
        worker = daemon(pool=project.pool, at=counted_server, args=("--limit", "2"))
        worker.wait_for_event("server.tidied")
        assert counted(collections) > count
        assert "flow_run.claimed" not in until(worker.logs(), "server.tidied")
        api.wait_for_all(runs)


def counted(collections: Path) -> int:
    """How many full collections there have been."""
    return collections.stat().st_size


def late(api: PrefectApi, runs: list[str]) -> bool:
    return sum(api.flow_run(run)["state_name"] == "Late" for run in runs) > 1


def until(logs: list[dict[str, Any]], event: str) -> list[str]:
    """The events that were logged before this one."""
    events = [str(one["event"]) for one in logs]
    return events[: events.index(event)]
