"""Prefect's own pages as a user goes through them: the custom run form, a run, a work pool, the event feed.

Owns their paths and the words on them, those of Prefect 3.8.8's default UI. Asserts nothing.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from tests.ui.browser import Browser, pressable, quoted

# The server shows two UIs; `/` leads here.
ROOT = "/v2"
EDITOR = "//*[@name='job_variables']//*[@contenteditable='true']"


def fill_custom_run(
    browser: Browser,
    deployment_id: str,
    *,
    name: str,
    job_variables: Mapping[str, Any],
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Open the form of a custom run and fill it in; the start is `Now`."""
    browser.open(f"{ROOT}/deployments/deployment/{deployment_id}/run")
    browser.replace("//form//input[@name='name']", name, what="the run's name")
    for label, value in (parameters or {}).items():
        field = f"//textarea[@id=//label[starts-with(normalize-space(), {quoted(label)})]/@for]"
        browser.replace(field, value, what=f"parameter {label}")
    now = "//button[@role='tab'][normalize-space()='Now'][@aria-selected='true']"
    browser.find(now, what="a start at once")
    browser.press("Additional Options")
    browser.replace(EDITOR, json.dumps(job_variables), what="the editor of job variables")


def submit_custom_run(browser: Browser, *, name: str) -> None:
    """Submit the filled form, and go to the page of the run."""
    until_answered(browser, "create_flow_run", by=lambda: browser.press("Submit"))
    link = f"//a[normalize-space()={quoted(name)}]"
    browser.click(f"{pressable('View run')} | {link}", what=f"a way to the run {name}")
    browser.wait(
        lambda: "/runs/flow-run/" in browser.driver.current_url or None, what=f"the page of the run {name}"
    )


def open_run(browser: Browser, run_id: str) -> None:
    """The page of a run; it opens with its log."""
    browser.open(f"{ROOT}/runs/flow-run/{run_id}")


def shown_run(browser: Browser) -> str:
    """The id of the run whose page is open."""
    return browser.driver.current_url.partition("/flow-run/")[2][:36]


def wait_for_badge(browser: Browser, state: str) -> None:
    """Wait until the page of a run, which follows what becomes of it, shows this state."""
    badge = f"//*[@data-slot='badge'][normalize-space()={quoted(state)}]"
    browser.find(badge, what=f"the state {state}")


def cancel_run(browser: Browser, run_id: str) -> None:
    """Cancel a run from its page."""

    def cancel() -> None:
        open_run(browser, run_id)
        browser.press("Open menu")
        browser.press("Cancel")
        browser.press("Cancel Flow Run")

    until_answered(browser, "set_state", by=cancel)


def until_answered(browser: Browser, request: str, *, by: Callable[[], None]) -> None:
    """Do something until the server has time for what it asks for.

    On SQLite it answers 503 while another writer holds the database (PROTOCOL 1.5). The UI says that for a moment and
    leaves it to the user to try again.
    """
    browser.wait(
        lambda: browser.asks(request, by=by) != HTTPStatus.SERVICE_UNAVAILABLE,
        what=f"a server that has time for {request}",
    )


def open_workers(browser: Browser, pool: str) -> None:
    """The workers of a work pool."""
    browser.open(f"{ROOT}/work-pools/work-pool/{pool}?tab=Workers")


def open_details(browser: Browser) -> None:
    """The tab of a run's page that has its state's message."""
    browser.press("Details")


def open_events(browser: Browser, resource: str) -> None:
    """The feed of the events that are about this resource, from an hour ago on.

    Left to itself the feed ends with the last full minute.
    """
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    query = {
        "resource": json.dumps([resource]),
        "rangeType": "range",
        "start": (now - hour).isoformat(),
        "end": (now + hour).isoformat(),
    }
    browser.open(f"{ROOT}/events?{urlencode(query)}")
