"""Real flow runs with job variables from every layer, on a real Prefect server. Run by `make demo`.

Starts a server of its own and the daemon, deploys `demo_project` with Prefect's own command line and SDK, and runs it
once for each way job variables can be given. The table at the end shows what each flow saw (read from the log that the
server has of the run) and which layer that came from (what `headrace explain` says of the same run). Exit code 0 means
that every row is as it should be.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import httpx
from demo_cases import BIN, CASES, CONFIG, RUN_LIMIT, Case, Demo, automate
from demo_prefect import FINAL_STATES, Json, Prefect, seconds_taken
from demo_services import DemoError, Service, clean_environment, free_port, run, start, stopped_afterwards

ROOT = Path(__file__).resolve().parent.parent
POOL = "demo-pool"
# Runs under way at a time: more would only make each of them look slow on a small machine.
ABREAST = 2
# How long the server and the daemon may take to come up, in seconds.
START_LIMIT = 180.0


def main() -> int:
    """Entry point; 0 when everything is as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--keep", action="store_true", help="leave server and daemon running when all is well"
    )
    keep: bool = parser.parse_args().keep
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    if not (BIN / "headrace").exists():
        parser.error(f"no headrace beside {sys.executable}; `make demo` brings it along")
    directory = ROOT / ".demo" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    directory.mkdir(parents=True)
    try:
        with started(directory, keep=keep) as demo:
            mismatches = show(demo)
            if keep:
                say_how_to_stop(demo)
    except (DemoError, httpx.HTTPError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ndemo: interrupted, and everything is stopped. Logs: {directory}", file=sys.stderr)
        return 130
    if mismatches:
        print("\nNot as it should be:", *mismatches, f"Logs: {directory}", sep="\n  ", file=sys.stderr)
        return 1
    if not keep:
        shutil.rmtree(directory)
    print("\nEverything is as it should be.")
    return 0


@contextmanager
def started(directory: Path, *, keep: bool) -> Generator[Demo]:
    """A server, a work pool with a default environment, the daemon, and the deployments."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = clean_environment(
        PREFECT_HOME=str(directory / "prefect"),
        PREFECT_API_URL=api,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )
    project = directory / "demo_project"
    shutil.copytree(ROOT / "examples" / "demo_project", project, ignore=shutil.ignore_patterns("__pycache__"))

    say(f"starting a Prefect server (UI: http://127.0.0.1:{port})")
    argv = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = start(
        "the server",
        argv,
        environment=environment,
        directory=directory,
        log=directory / "server.log",
        # Prefect's server shuts down in order and then dies of the signal that asked it to.
        good_exits=(0, -signal.SIGTERM),
    )
    with (
        stopped_afterwards(server, keep=keep),
        httpx.Client(base_url=api, timeout=60, trust_env=False) as http,
    ):
        demo = Demo(Prefect(http), directory, environment, (server,))
        demo.wait(demo.prefect.is_up, what="the server answers", seconds=START_LIMIT)

        say(f"creating the work pool {POOL!r} with a default environment")
        create_pool(demo)

        say(f"starting the daemon: headrace start --pool {POOL}")
        daemon = start_daemon(demo)
        with stopped_afterwards(daemon, keep=keep):
            demo = Demo(demo.prefect, directory, environment, (server, daemon))
            demo.wait(lambda: demo.prefect.is_served(POOL), what="the daemon is online", seconds=START_LIMIT)

            say("deploying: `prefect deploy --all`, `python demo_project/daily_flow.py`, an automation")
            deploy(demo, git_repository(project))
            automate(demo)
            yield demo


def create_pool(demo: Demo) -> None:
    """The first layer: the `env` default in the pool's base job template."""
    template: Json = json.loads(
        demo.command(
            "prefect", "--no-prompt", "work-pool", "get-default-base-job-template", "--type", "process"
        )
    )
    env: Json = template["variables"]["properties"]["env"]
    env["default"] = {"EXECUTION_ENVIRONMENT": "the pool's", CONFIG: "from-the-pool"}
    path = demo.directory / "base-job-template.json"
    path.write_text(json.dumps(template))
    demo.command(
        "prefect",
        "--no-prompt",
        "work-pool",
        "create",
        POOL,
        "--type",
        "process",
        "--base-job-template",
        str(path),
    )


def start_daemon(demo: Demo) -> Service:
    """`headrace start` where a user would have said `prefect worker start`, polling often for the impatient."""
    argv = [str(BIN / "headrace"), "start", "--pool", POOL, "--log-format", "json"]
    return start(
        "the daemon",
        [*argv, "--state-dir", str(demo.directory / "state")],
        environment=demo.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
        directory=demo.directory,
        log=demo.directory / "daemon.log",
    )


def git_repository(project: Path) -> Path:
    """The project as a git repository to clone from; where there is no git, the directory has to do."""
    git = shutil.which("git")
    if git is None:
        say("no git here: the flow is deployed from a directory instead of a repository")
        return project
    repository = project.with_suffix(".git")
    identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
    steps = (
        [git, "init", "--quiet", "--initial-branch", "main"],
        [git, "add", "."],
        [git, *identity, "commit", "--quiet", "--no-verify", "--message", "The demo project"],
        [git, "clone", "--quiet", "--bare", ".", str(repository)],
    )
    for argv in steps:
        run(argv, environment=clean_environment(), directory=project, log=project.with_name("git.log"))
    return repository


def deploy(demo: Demo, repository: Path) -> None:
    """The second layer: job variables of deployments, from prefect.yaml (twice) and from `.deploy()`."""
    project = str(demo.directory / "demo_project")
    shell = {"EXECUTION_ENVIRONMENT": "the shell's", CONFIG: "from-the-shell"}
    demo.command("prefect", "--no-prompt", "deploy", "--all", DEMO_PROJECT_DIR=project, **shell)
    script = {"EXECUTION_ENVIRONMENT": "the script's", CONFIG: "from-deploy"}
    demo.command(
        "python",
        "demo_project/daily_flow.py",
        DEMO_PROJECT_GIT=str(repository),
        DEMO_WORK_POOL=POOL,
        **script,
    )


def show(demo: Demo) -> list[str]:
    """Make the runs, wait for them, print the table; what is not as it should be."""
    run_ids: dict[Case, str] = {}
    for case in CASES:
        demo.wait(lambda: unfinished(demo, run_ids) < ABREAST, what="a flow run finishes", seconds=RUN_LIMIT)
        say(f"running {case.name}: {case.how}")
        run_ids[case] = case.trigger(demo, case.name)
    say("waiting for the last runs")
    demo.wait(lambda: unfinished(demo, run_ids) == 0, what="the last flow runs finish", seconds=RUN_LIMIT)
    runs = {case: demo.prefect.run(run_id) for case, run_id in run_ids.items()}
    origins = explain(demo, runs)

    rows = [("run", "variable", "value seen", "came from", "state", "seconds")]
    mismatches: list[str] = []
    for case, flow_run in runs.items():
        value, state, layer = value_seen(demo, case, flow_run), str(flow_run["state_type"]), origins[case]
        seconds = f"{seconds_taken(flow_run):.1f}"
        rows.append((case.name, case.variable, value, layer, flow_run["state_name"], seconds))
        seen = {"value": (value, case.value), "layer": (layer, case.layer), "state": (state, case.state)}
        mismatches += [
            f"{case.name}: the {what} is {actual!r}, and should be {expected!r}"
            for what, (actual, expected) in seen.items()
            if actual != expected
        ]
    print()
    print_table(rows)
    return mismatches


def unfinished(demo: Demo, run_ids: dict[Case, str]) -> int:
    """How many of these runs have no final state yet."""
    return sum(demo.prefect.run(run_id)["state_type"] not in FINAL_STATES for run_id in run_ids.values())


def value_seen(demo: Demo, case: Case, flow_run: Json) -> str:
    """What the flow itself printed, from its log on the server (which gets the last lines a moment after the state)."""
    pattern = re.compile(rf"{case.variable} is (.*)")

    def found() -> list[str]:
        lines = demo.prefect.log_lines(flow_run["id"])
        return [match[1] for line in lines if (match := pattern.fullmatch(line))]

    deadline = time.monotonic() + 15
    while not (values := found()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return values[-1] if values else "(nothing logged)"


def explain(demo: Demo, runs: dict[Case, Json]) -> dict[Case, str]:
    """Which layer each run's variable came from, by `headrace explain` over what the server has of it."""
    template: Json = demo.prefect.call("GET", f"/work_pools/{POOL}")["base_job_template"]
    inputs: list[Json] = [
        {
            "base_job_template": template,
            "deployment_job_variables": demo.prefect.call("GET", f"/deployments/{run['deployment_id']}")[
                "job_variables"
            ],
            "flow_run_job_variables": run["job_variables"],
            "blocks": {},
            "blocks_by_id": {},
            "variables": {},
        }
        for run in runs.values()
    ]
    path = demo.directory / "explain.json"
    path.write_text(json.dumps(inputs, indent=2))
    answers: list[Json] = json.loads(demo.command("headrace", "explain", "--input", str(path), "--json"))
    return {case: layer_of(answer, case.variable) for case, answer in zip(runs, answers, strict=True)}


def layer_of(answer: Json, variable: str) -> str:
    """The layer that had the last word on an environment variable, and those it had it over."""
    if "error" in answer:
        return f"error: {answer['error']['message']}"
    provenance: Json | None = answer["provenance"].get(f"env.{variable}")
    if provenance is None:
        return "(nowhere)"
    layer = f"{provenance['layer']} ({provenance['on']})" if "on" in provenance else provenance["layer"]
    return " > ".join([layer, *reversed(provenance["overrode"])])


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns, the first one as the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def say_how_to_stop(demo: Demo) -> None:
    """Where to look, and how to end what was left running."""
    server, daemon = demo.services
    address = demo.environment["PREFECT_API_URL"].removesuffix("/api")
    print(f"\nLeft running: the server (UI: {address}) and the daemon. Logs: {server.log} and {daemon.log}")
    print(f"Stop them: kill {daemon.process.pid} && sleep 1 && kill {server.process.pid}")


STARTED = time.monotonic()


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", flush=True)


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
