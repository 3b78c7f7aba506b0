"""`headrace explain` against a real server: what it tells of a run is what the run's process then gets.

The runs are made while their pool is paused and explained before anything has touched them; then the daemon
runs them, and each flow writes down what it saw.
"""

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.explaining import Explained, explain_as
from tests.support.project import FLOWS, Project
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE

pytestmark = pytest.mark.thorough

SECRET = "open-sesame-77aa"
MODES = ("layered", "stock")
# Of the environment that a process starts with, what its engine takes out or its attempt alone knows.
AT_LAUNCH = {"PREFECT__CONTROL_PORT", "PREFECT__CONTROL_TOKEN", "HEADRACE_EXECUTION_ID"}
# What an interpreter adds by itself in the C locale (PEP 538).
BY_ITSELF = {"LC_CTYPE"}
ENGINE = [sys.executable, "-m", "prefect.engine"]
COMMAND = [sys.executable, "-X", "utf8", "-m", "prefect.engine"]


@dataclass(frozen=True, slots=True)
class Case:
    """Job variables of two layers; `{directory}` in a `working_dir` is one that exists."""

    deployment: Json = field(default_factory=dict[str, Any])
    run: Json = field(default_factory=dict[str, Any])
    command: list[str] = field(default_factory=lambda: ENGINE)
    own_directory: bool = False
    layers: Mapping[str, str] = field(default_factory=dict[str, str])


CASES = {
    "nothing set": Case(layers={"env.LAYER": "pool default"}),
    "later layers, dotted and plain": Case(
        deployment={"env": {"LAYER": "deployment", "OTHER": "deployment"}},
        run={"env.LAYER": "run", "env": {"OTHER": "run"}},
        layers={"env.OTHER": "flow run"},
    ),
    "undeclared": Case(run={"MY_NEW_ENV_VAR": 42, "nmae": "typo"}),
    "references": Case(
        deployment={
            "env": {
                "FROM_BLOCK": "{{ prefect.blocks.secret.explain-token }}",
                "IN_TEXT": "token={{ prefect.blocks.secret.explain-token }}",
                "FROM_VARIABLE": "{{ prefect.variables.explain_greeting }}",
                "FROM_WORKER": "{{ $ONLY_WORKER }}",
                "LONG": "x" * 3000,
            }
        },
        layers={"env.FROM_BLOCK": "deployment", "env.FROM_WORKER": "deployment"},
    ),
    "over and under the worker's environment": Case(
        deployment={"env": {"BOTH": "job", "SHOWS_THROUGH": None, "PREFECT_LOGGING_LEVEL": "DEBUG"}},
        layers={
            "env.BOTH": "deployment",
            "env.SHOWS_THROUGH": "worker environment",
            "env.PREFECT_LOGGING_LEVEL": "deployment",
        },
    ),
    "a command, over which settings win": Case(
        deployment={"command": " ".join(COMMAND), "env": {"PREFECT_LOGGING_LEVEL": "DEBUG"}},
        command=COMMAND,
        layers={"command": "deployment", "env.PREFECT_LOGGING_LEVEL": "prefect settings"},
    ),
    "a directory": Case(
        run={"working_dir": "{directory}"}, own_directory=True, layers={"working_dir": "flow run"}
    ),
}
OF_THE_WORKER = {
    "ONLY_WORKER": "from the daemon",
    "BOTH": "worker",
    "SHOWS_THROUGH": "worker",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True)
class Served:
    """A pool with its daemon, and what was told of each run before it began."""

    project: Project
    worker: Worker
    mode: str
    runs: Mapping[str, str]
    told: Mapping[str, Explained]
    directories: Mapping[str, Path]


def template_with_defaults(**defaults: Any) -> Json:
    template = copy.deepcopy(DEFAULT_BASE_JOB_TEMPLATE)
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    return template


@pytest.fixture(scope="module")
def references(api: PrefectApi) -> None:
    api.create_secret("explain-token", SECRET)
    api.create_variable("explain_greeting", "good morning")


@pytest.fixture(scope="module", params=MODES)
def served(
    request: pytest.FixtureRequest,
    api: PrefectApi,
    references: None,
    module_daemon: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    mode: str = request.param
    pool = api.create_pool(template=template_with_defaults(env={"LAYER": "pool"}))
    project = Project(api=api, pool=pool, out=tmp_path_factory.mktemp("out"))
    worker = module_daemon(pool=pool, args=("--limit", "4"), job_variables=mode, env=OF_THE_WORKER)
    api.update_pool(pool, is_paused=True)
    directories = {name: tmp_path_factory.mktemp("own") for name in CASES}
    runs: dict[str, str] = {}
    for number, (name, case) in enumerate(CASES.items()):
        variables = {
            key: value.format(directory=directories[name]) if key == "working_dir" else value
            for key, value in case.run.items()
        }
        # Without pull steps the sources are copied to where the run starts.
        deployment = project.deploy(
            name=f"{mode}-{number}", job_variables=case.deployment, path=str(FLOWS), pull_steps=None
        )
        runs[name] = api.create_flow_run(deployment, job_variables=variables)
    told = {
        name: explain_as(worker, "--flow-run", run, "--json", "--all-env", "--show-secrets", mode=mode)
        for name, run in runs.items()
    }
    api.update_pool(pool, is_paused=False)
    api.wait_for_all(runs.values())
    return Served(project, worker, mode, runs, told, directories)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CASES)
def test_a_flow_sees_what_was_told(name: str, served: Served) -> None:
    case, seen = CASES[name], served.project.seen(served.runs[name])
    explained = served.told[name]
    assert (explained.code, explained.err) == (0, "")
    told = explained.json
    environment = {key: value for key, value in seen["env"].items() if key not in AT_LAUNCH | BY_ITSELF}
    assert {
        key: value for key, value in told["env"].items() if value is not None and key not in BY_ITSELF
    } == environment
    assert told["launch"]["argv"] == seen["command_line"] == case.command
    if case.own_directory:
        assert told["launch"]["cwd"] == seen["cwd"] == str(served.directories[name])
    else:
        assert told["launch"]["cwd"] is None
        assert Path(seen["cwd"]).is_relative_to(served.worker.state_dir)
    assert {key: told["provenance"][key]["layer"] for key in case.layers} == case.layers
    launched = served.worker.wait_for_event("flow_run.launched", flow_run_id=served.runs[name])
    assert told["start_method"] == {"method": launched["start_method"], "reason": launched["cold_because"]}
