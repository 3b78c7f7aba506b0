"""Prefect's own pages as a user goes through them: the custom run form, a run, a work pool, the event feed.

Owns their paths and the words on them, those of Prefect 3.8.8's default UI. Asserts nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

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
    browser.press("Submit")
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


def cancel_run(browser: Browser) -> None:
    """Cancel the run whose page is open."""
    browser.press("Open menu")
    browser.press("Cancel")
    browser.press("Cancel Flow Run")


def open_workers(browser: Browser, pool: str) -> None:
    """The workers of a work pool."""
    browser.open(f"{ROOT}/work-pools/work-pool/{pool}?tab=Workers")


def open_details(browser: Browser) -> None:
    """The tab of a run's page that has its state's message."""
    browser.press("Details")
