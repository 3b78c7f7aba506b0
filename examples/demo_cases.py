"""The flow runs of the demo: how each is made, and what has to come of it.

One for each way to give job variables that Prefect's guide on customizing them shows, and one that has to fail.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo_prefect import Prefect
from demo_services import DemoError, Service, run, wait_until

BIN = Path(sys.executable).parent
CONFIG = "MY_NOT_SO_SECRET_CONFIG"
ORDER_PLACED = "demo.order.placed"
# What `headrace explain` has to say of a value: the layer that won, and those it won over.
DEPLOYED = "deployment > pool default"
OVERRIDDEN = "flow run > deployment > pool default"
# How long an order may go without a run before the next one is placed, in seconds.
ORDER_PAUSE = 15.0
# How long a flow run may take, in seconds.
RUN_LIMIT = 180.0


@dataclass(frozen=True, slots=True)
class Demo:
    """What the steps share: the server, a directory to leave things in, and the environment commands run with."""

    prefect: Prefect
    directory: Path
    environment: dict[str, str]
    services: tuple[Service, ...]

    def command(self, name: str, *argv: str, **environment: str) -> str:
        """Run a command of .venv in the demo's copy of the project; what it printed."""
        log = self.directory / f"{name}-{time.monotonic_ns()}.log"
        return run(
            [str(BIN / name), *argv],
            environment=self.environment | environment,
            directory=self.directory / "demo_project",
            log=log,
        )

    def wait(self, condition: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Wait for something that the services are to bring about."""
        wait_until(condition, what=what, seconds=seconds, services=self.services)


@dataclass(frozen=True, slots=True)
class Case:
    """One flow run: how it is made, and what has to come of it."""

    name: str
    how: str
    trigger: Callable[[Demo, str], str]
    value: str
    layer: str
    variable: str = CONFIG
    state: str = "COMPLETED"


def plain_run(deployment: str) -> Callable[[Demo, str], str]:
    """A run that adds nothing: the layers below decide."""

    def trigger(demo: Demo, name: str) -> str:
        return demo.prefect.custom_run(demo.prefect.deployment(f"some-work/{deployment}"), name=name)

    return trigger


def cli_run(*job_variables: str, show: str = "") -> Callable[[Demo, str], str]:
    """`prefect deployment run` with `--job-variable`."""
    flags = [part for variable in job_variables for part in ("--job-variable", variable)]
    if show:
        flags += ["--param", f"also_show={json.dumps([show])}"]

    def trigger(demo: Demo, name: str) -> str:
        argv = ["deployment", "run", "some-work/demo-deployment", "--flow-run-name", name]
        demo.command("prefect", "--no-prompt", *argv, *flags)
        run_id = demo.prefect.run_named(name)
        if run_id is None:
            raise DemoError(f"`prefect deployment run` said it made the run {name!r}, the server has none")
        return run_id

    return trigger


def custom_run(env: dict[str, str | None], *, show: str = "") -> Callable[[Demo, str], str]:
    """A custom run, as the form in Prefect's UI posts it."""

    def trigger(demo: Demo, name: str) -> str:
        deployment = demo.prefect.deployment("some-work/demo-deployment")
        parameters = {"also_show": [show]} if show else {}
        return demo.prefect.custom_run(
            deployment, name=name, parameters=parameters, job_variables={"env": env}
        )

    return trigger


def automate(demo: Demo) -> None:
    """An automation whose job variables are a template over the event that fires it."""
    template = "from-order-{{ event.payload.number }}"
    demo.prefect.automate(
        demo.prefect.deployment("some-work/demo-deployment"),
        event=ORDER_PLACED,
        job_variables={"env": {CONFIG: template}},
    )


def automated_run(demo: Demo, name: str) -> str:
    """The run that the automation makes when an order is placed."""
    next_order = 0.0

    def made() -> bool:
        nonlocal next_order
        if time.monotonic() > next_order:
            # The server can miss an event that comes while it still takes the automation in: order again then.
            demo.prefect.emit(ORDER_PLACED, resource="demo.shop", payload={"number": 1042})
            next_order = time.monotonic() + ORDER_PAUSE
        return demo.prefect.automated_run() is not None

    demo.wait(made, what="the automation makes a run", seconds=RUN_LIMIT)
    run_id = demo.prefect.automated_run() or ""
    demo.prefect.call("PATCH", f"/flow_runs/{run_id}", {"name": name})
    return run_id


CASES = (
    Case("pool-default", "work pool", plain_run("pool-defaults"), "from-the-pool", "pool default"),
    Case("yaml-literal", "prefect.yaml", plain_run("demo-deployment"), "plumbus", DEPLOYED),
    Case(
        "yaml-shell",
        "prefect.yaml, {{ $VAR }}",
        plain_run("from-the-shell"),
        "from-the-shell",
        DEPLOYED,
    ),
    Case("deploy-method", ".deploy(job_variables=)", plain_run("daily"), "from-deploy", DEPLOYED),
    Case(
        "cli-dotted",
        "--job-variable env.X=",
        cli_run(f"env.{CONFIG}=from-the-cli"),
        "from-the-cli",
        OVERRIDDEN,
    ),
    Case(
        "cli-undeclared",
        "--job-variable X=",
        cli_run("MY_NEW_ENV_VAR=42", "HELLO=THERE", show="MY_NEW_ENV_VAR"),
        "42",
        "undeclared (flow run)",
        variable="MY_NEW_ENV_VAR",
    ),
    Case(
        "custom-run", "custom run in the UI", custom_run({CONFIG: "from-the-ui"}), "from-the-ui", OVERRIDDEN
    ),
    Case("automation", "automation, Jinja", automated_run, "from-order-1042", OVERRIDDEN),
    Case(
        "must-fail",
        "custom run, null",
        custom_run({CONFIG: None}, show=CONFIG),
        "not set",
        OVERRIDDEN,
        state="FAILED",
    ),
)
