"""A user of Prefect's own UI: starts custom runs with job variables, watches them, cancels them."""

import uuid

import psutil
import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.wait import wait_for
from tests.ui import pages
from tests.ui.browser import Browser

pytestmark = pytest.mark.timeout(900)

# What the form needs to offer a field for it.
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "out": {"type": "string", "title": "out", "position": 0},
        "greeting": {"type": "string", "title": "greeting", "position": 1},
    },
    "required": ["out"],
}


@pytest.fixture
def deployment(project: Project) -> str:
    """A deployment with an environment of its own."""
    env = {"DEPLOYMENTS": "the deployment's", "RUNS": "the deployment's"}
    return project.deploy(job_variables={"env": env}, parameter_openapi_schema=SCHEMA)


@pytest.fixture
def name() -> str:
    """Of a run, as nobody else's."""
    return f"from-the-form-{uuid.uuid4().hex[:6]}"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_custom_run_completes_with_the_values_of_the_form(
    window: Browser, api: PrefectApi, project: Project, worker: Worker, deployment: str, name: str
) -> None:
    pages.fill_custom_run(
        window,
        deployment,
        name=name,
        parameters={"greeting": "good morning"},
        job_variables={"env": {"GREETING": "from the form", "RUNS": "the form's"}},
    )
    pages.submit_custom_run(window, name=name)
    pages.wait_for_badge(window, "Completed")
    run_id = pages.shown_run(window)

    seen = project.seen(run_id)
    environment = {key: seen["env"][key] for key in ("GREETING", "RUNS", "DEPLOYMENTS", "POOLS")}
    assert environment == {
        "GREETING": "from the form",
        "RUNS": "the form's",
        "DEPLOYMENTS": "the deployment's",
        "POOLS": "the pool's",
    }
    assert seen["greeting"] == "good morning"
    assert api.state_names(run_id) == ["Scheduled", "Pending", "Running", "Completed"]
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id)

    # The page of a run that has ended asks for its log once.
    api.wait_for_log(run_id, lambda line: "Finished in state" in line, description="the end of the log")
    pages.open_run(window, run_id)
    window.wait_text(
        f"Worker '{worker.name}' submitting flow run '{run_id}'",
        f"Flow run '{name}' submitted to infrastructure",
        "probe says good morning",
    )


def test_a_value_that_cannot_be_launched_is_shown_as_crashed_with_the_reason(
    window: Browser, project: Project, worker: Worker, deployment: str, name: str
) -> None:
    pages.fill_custom_run(window, deployment, name=name, job_variables={"working_dir": "/no/such/place"})
    pages.submit_custom_run(window, name=name)
    pages.wait_for_badge(window, "Crashed")
    pages.open_details(window)
    window.wait_text("the working directory /no/such/place does not exist: create it or change `working_dir`")
    assert not project.facts(pages.shown_run(window), "seen")


def test_a_value_of_the_wrong_type_is_refused_by_the_form(
    window: Browser, api: PrefectApi, worker: Worker, deployment: str, name: str
) -> None:
    pages.fill_custom_run(window, deployment, name=name, job_variables={"env": ["GREETING"]})
    pages.until_answered(window, "create_flow_run", by=lambda: window.press("Submit"))
    window.wait_text("Validation failed for field 'env'")
    assert not api.runs_of_deployment(deployment)


def test_a_run_is_cancelled_from_its_page(
    window: Browser, api: PrefectApi, project: Project, worker: Worker
) -> None:
    run_id = project.run("sleeps", parameters={"deaf": True})
    pages.open_run(window, run_id)
    pages.wait_for_badge(window, "Running")
    sleeping = project.wait_for_fact(run_id, "sleeping")
    pages.cancel_run(window, run_id)
    pages.wait_for_badge(window, "Cancelled")
    for pid in (sleeping["pid"], sleeping["grandchild"]):
        wait_for(lambda pid=pid: gone(pid), description=f"the end of process {pid}")
    assert "Crashed" not in api.state_names(run_id)
    assert not project.facts(run_id, "woke")
