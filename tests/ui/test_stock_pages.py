"""A run of ours and one of stock Prefect's worker, side by side on the pages of Prefect's UI."""

import re
from collections.abc import Callable

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.project import Project
from tests.support.wait import wait_for
from tests.ui import pages
from tests.ui.browser import Browser

pytestmark = pytest.mark.timeout(900)

WORKER_EVENTS = (
    "prefect.worker.started",
    "prefect.worker.submitted-flow-run",
    "prefect.worker.executed-flow-run",
    "prefect.worker.stopped",
)
NAME = re.compile("'[^']+'")
LINES = ["Worker '…' submitting flow run '…'", "Flow run '…' submitted to infrastructure"]


@pytest.fixture
def project_on(api: PrefectApi, project: Project) -> Callable[[str], Project]:
    """The flow project on a new pool of this name."""
    return lambda name: Project(api=api, pool=api.create_pool(name), out=project.out)


def worker_page(window: Browser, worker: Worker) -> tuple[str, ...]:
    """What the row of the one worker of a pool says, less its name and when it was last seen."""
    pages.open_workers(window, worker.pool)
    window.wait_text(worker.name, "Online")
    row = window.find("//tr[td]", what="the row of the worker").text
    return tuple(line for line in row.splitlines() if line != worker.name and not line.endswith("ago"))


def run_page(window: Browser, run_id: str) -> list[str]:
    """The lines of the worker in the log on the run's page, without the names in them."""
    pages.open_run(window, run_id)
    pages.wait_for_badge(window, "Completed")
    lines = window.wait_text("submitting flow run", "submitted to infrastructure").splitlines()
    return [NAME.sub("'…'", line) for line in lines if line.startswith(("Worker '", "Flow run '"))]


def event_names(window: Browser, resource: str, *names: str) -> list[str]:
    """The events of a worker that its feed shows, newest first, when all of `names` are there."""
    pages.open_events(window, resource)
    text = window.wait_text(*names)
    return [line for line in text.splitlines() if line.startswith("prefect.worker.")]


def test_worker_run_and_events_look_as_with_the_stock_worker(
    window: Browser,
    api: PrefectApi,
    daemon: StartWorker,
    stock_worker: StartWorker,
    project_on: Callable[[str], Project],
) -> None:
    seen: list[object] = []
    for start, name in ((daemon, "side-ours"), (stock_worker, "side-stock")):
        project = project_on(name)
        worker = start(pool=name, name=f"worker-{name}")
        run_id = project.run()
        project.seen(run_id)
        rows = worker_page(window, worker)
        lines = run_page(window, run_id)
        assert worker.stop() == 0
        resource = f"prefect.worker.process.{worker.name}"
        wait_for(
            lambda resource=resource: len(api.events(any_resource=resource, names=WORKER_EVENTS)) == 4,
            interval=0.5,
            description=f"four events of {worker.name}",
        )
        events = event_names(window, resource, *WORKER_EVENTS)
        assert sorted(events) == sorted(WORKER_EVENTS)
        assert lines == LINES
        assert "Online" in rows
        seen.append((rows, lines, events))
    ours, stock = seen
    assert ours == stock
