"""The pictures of the README: `python -m tests.ui.screenshots DIRECTORY`, run by `make screenshots`.

Starts a server, our daemon and a browser of its own, starts a custom run of the demo's flow through the form, and
takes a picture of each page on the way. Nothing of the machine is in them: every name is given here.
"""

import argparse
import sys
import tempfile
import uuid
from pathlib import Path

from tests.support.api import Json, PrefectApi
from tests.support.daemons import ROLE_DAEMON, worker_factory
from tests.support.server import PrefectServer, running_server
from tests.ui import pages
from tests.ui.browser import Browser, BrowserMissingError, browser
from tests.ui.conftest import UI

ROOT = Path(__file__).parents[2]
POOL = "demo-pool"
RUN = "brave-otter"
PULL_STEPS = [
    {
        "prefect.deployments.steps.set_working_directory": {
            "directory": str(ROOT / "examples" / "demo_project")
        }
    }
]
SCHEMA: Json = {"type": "object", "properties": {}}


def main() -> int:
    """Take all pictures; 0 when they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where the pictures go")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-pictures-") as name:
            home = Path(name)
            settings = UI | {"PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "pages")}
            with (
                running_server(home / "server", mark=mark, settings=settings) as server,
                server.api() as api,
                browser(
                    server.api_url.removesuffix("/api"), evidence=ROOT / ".demo" / "ui-evidence", mark=mark
                ) as window,
            ):
                take(window, server, api, home=home, directory=directory)
    except BrowserMissingError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    return 0


def take(window: Browser, server: PrefectServer, api: PrefectApi, *, home: Path, directory: Path) -> None:
    """The custom run form, the run it made, and the worker that ran it."""
    env = {"EXECUTION_ENVIRONMENT": "production", "MY_NOT_SO_SECRET_CONFIG": "from-the-pool"}
    api.create_pool(POOL, template=api.template(defaults={"env": env}))
    deployment = api.create_deployment(
        pool=POOL,
        name="demo-deployment",
        flow="some-work",
        entrypoint="demo_project/demo_flow.py:some_work",
        pull_steps=PULL_STEPS,
        parameter_openapi_schema=SCHEMA,
    )
    with worker_factory(server, home / "daemon", role=ROLE_DAEMON) as start:
        start(pool=POOL, name="demo")
        job_variables = {"env": {"EXECUTION_ENVIRONMENT": "staging"}}
        pages.fill_custom_run(window, deployment, name=RUN, job_variables=job_variables)
        window.show(pages.EDITOR, what="the editor of job variables")
        window.picture(directory / "custom-run.png")

        pages.submit_custom_run(window, name=RUN)
        run_id = pages.shown_run(window)
        api.wait_for_state(run_id, "COMPLETED")
        api.wait_for_log(run_id, lambda line: "Finished in state" in line, description="the end of the log")
        pages.open_run(window, run_id)
        pages.wait_for_badge(window, "Completed")
        window.wait_text("EXECUTION_ENVIRONMENT is staging")
        said = "//*[contains(text(), 'EXECUTION_ENVIRONMENT is staging')]"
        window.show(said, what="the flow's own line")
        window.picture(directory / "run.png")

        pages.open_workers(window, POOL)
        window.wait_text("demo", "Online", "Last Polled")
        window.picture(directory / "worker.png")


if __name__ == "__main__":
    sys.exit(main())
