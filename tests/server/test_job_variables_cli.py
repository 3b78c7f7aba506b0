"""Job variables set with Prefect's own tools: prefect.yaml, `prefect deploy`, `.deploy()`, `prefect deployment run`.

The commands take seconds each, so every deployment comes from one `prefect deploy --all` and all runs are
executed side by side; each test then looks at what its flow saw.
"""

import json
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import FLOWS, Project
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

PREFECT_YAML = """
name: e2e
prefect-version: 3.8.8

definitions:
  pool: &pool
    name: {pool}

pull:
- prefect.deployments.steps.set_working_directory:
    directory: {directory}

deployments:
- name: literal
  entrypoint: probe.py:probe
  parameters: {{out: "{out}"}}
  work_pool:
    <<: *pool
    job_variables:
      env:
        EXECUTION_ENVIRONMENT: staging
        MY_NOT_SO_SECRET_CONFIG: plastic-fantastic
- name: templated
  entrypoint: probe.py:probe
  parameters: {{out: "{out}"}}
  work_pool:
    <<: *pool
    job_variables:
      env:
        EXECUTION_ENVIRONMENT: "{{{{ $EXECUTION_ENVIRONMENT }}}}"
        MY_NOT_SO_SECRET_CONFIG: "{{{{ $MY_NOT_SO_SECRET_CONFIG }}}}"
- name: base
  entrypoint: probe.py:probe
  parameters: {{out: "{out}"}}
  work_pool:
    <<: *pool
    job_variables:
      env: {{X: deployment}}
- name: base-stock
  entrypoint: probe.py:probe
  parameters: {{out: "{out}"}}
  work_pool:
    name: {stock_pool}
    job_variables:
      env: {{X: deployment}}
"""

DEPLOY_SCRIPT = """
import sys
from prefect import flow
from prefect.runner.storage import GitRepository

repository, pool, out = sys.argv[1:]
flow.from_source(
    source=GitRepository(url=repository, branch="main"), entrypoint="probe.py:probe"
).deploy(
    name="from-python",
    work_pool_name=pool,
    parameters={"out": out},
    job_variables={"env": {"EXECUTION_ENVIRONMENT": "from-deploy"}},
)
"""


def git(*arguments: str, cwd: Path, server: PrefectServer) -> None:
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.invalid")
    subprocess.run(["git", *identity, *arguments], cwd=cwd, env=server.env(), check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer) -> str:
    """A local git repository that holds the flow project; its address."""
    directory = tmp_path_factory.mktemp("repository")
    shutil.copy(FLOWS / "probe.py", directory)
    git("init", "--initial-branch", "main", cwd=directory, server=prefect_server)
    git("add", ".", cwd=directory, server=prefect_server)
    git("commit", "--message", "flows", cwd=directory, server=prefect_server)
    return f"file://{directory}"


@pytest.fixture(scope="module")
def stock_pool(api: PrefectApi) -> str:
    return api.create_pool()


@pytest.fixture(scope="module")
def cli_project(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(api=api, pool=api.create_pool(), out=tmp_path_factory.mktemp("out"))


def started_by_cli(server: PrefectServer, deployment: str, *variables: str) -> str:
    """`prefect deployment run` with these job variables; the run's id."""
    options = [part for variable in variables for part in ("--job-variable", variable)]
    printed = server.cli("deployment", "run", deployment, *options).stdout
    (line,) = [line for line in printed.splitlines() if "UUID:" in line]
    return str(UUID(line.partition("UUID:")[2].strip()))


@pytest.fixture(scope="module")
def runs(
    *,
    prefect_server: PrefectServer,
    api: PrefectApi,
    cli_project: Project,
    stock_pool: str,
    repository: str,
    module_daemon: StartWorker,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Every run of this module, Completed."""
    directory = tmp_path_factory.mktemp("prefect-yaml")
    shutil.copy(FLOWS / "probe.py", directory)
    (directory / "prefect.yaml").write_text(
        PREFECT_YAML.format(
            pool=cli_project.pool, stock_pool=stock_pool, directory=directory, out=cli_project.out
        )
    )
    module_daemon(pool=cli_project.pool, args=("--limit", "2"))
    module_daemon(pool=stock_pool, job_variables="stock")
    environment = {"EXECUTION_ENVIRONMENT": "from-ci", "MY_NOT_SO_SECRET_CONFIG": "templated at deploy time"}
    prefect_server.cli("deploy", "--all", cwd=directory, env=environment)
    created = {
        name: api.create_flow_run(api.deployment_by_name("probe", name)["id"])
        for name in ("literal", "templated")
    }
    created["run wins"] = started_by_cli(prefect_server, "probe/base", "env.X=1")
    created["deployment wins"] = started_by_cli(prefect_server, "probe/base-stock", "env.X=1", "NEW_ONE=2")
    created["undeclared"] = started_by_cli(prefect_server, "probe/base", "MY_NEW_ENV_VAR=42", "HELLO=THERE")
    script = directory / "deploy.py"
    script.write_text(DEPLOY_SCRIPT)
    prefect_server.python(str(script), repository, cli_project.pool, str(cli_project.out), cwd=directory)
    created["deploy"] = api.create_flow_run(api.deployment_by_name("probe", "from-python")["id"])
    api.wait_for_all(created.values())
    return created


def seen_environment(project: Project, run_id: str) -> dict[str, str]:
    return project.seen(run_id)["env"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            "literal",
            {"EXECUTION_ENVIRONMENT": "staging", "MY_NOT_SO_SECRET_CONFIG": "plastic-fantastic"},
        ),
        (
            "templated",
            {"EXECUTION_ENVIRONMENT": "from-ci", "MY_NOT_SO_SECRET_CONFIG": "templated at deploy time"},
        ),
        ("deploy", {"EXECUTION_ENVIRONMENT": "from-deploy"}),
        ("run wins", {"X": "1"}),
        ("deployment wins", {"X": "deployment", "NEW_ONE": None}),
        ("undeclared", {"X": "deployment", "MY_NEW_ENV_VAR": "42", "HELLO": "THERE"}),
    ],
)
def test_the_flow_sees(
    run: str, expected: dict[str, str | None], cli_project: Project, runs: dict[str, str]
) -> None:
    environment = seen_environment(cli_project, runs[run])
    assert {name: environment.get(name) for name in expected} == expected


def test_the_flow_from_the_repository_ran_in_its_clone(cli_project: Project, runs: dict[str, str]) -> None:
    seen = cli_project.seen(runs["deploy"])
    assert "probe.py" in seen["files"]
    assert ".git" in seen["files"]
    wait_for(lambda: not Path(seen["cwd"]).exists(), description="the clone ends with its run")


def test_the_runs_carry_what_the_command_line_sent(api: PrefectApi, runs: dict[str, str]) -> None:
    sent = api.flow_run(runs["undeclared"])["job_variables"]
    assert json.loads(json.dumps(sent)) == {"MY_NEW_ENV_VAR": 42, "HELLO": "THERE"}
