"""What `headrace explain` can be asked on a real server, and what it answers where there is nothing to explain."""

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.api import Json, PrefectApi
from tests.support.explaining import Explained, explain
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port
from worker.explain.command import parse_job_variables

pytestmark = pytest.mark.thorough

SECRET = "open-sesame-c0de"
ExplainHere = Callable[..., Explained]


@pytest.fixture(scope="module")
def secret_block(api: PrefectApi) -> str:
    name = f"explain-{uuid.uuid4().hex[:6]}"
    api.create_secret(name, SECRET)
    return name


@pytest.fixture
def here(prefect_server: PrefectServer, tmp_path: Path) -> ExplainHere:
    """Explain from a home and a directory of the test's own."""
    home = tmp_path / "home"
    home.mkdir()

    def ask(*arguments: str, **environment: str) -> Explained:
        own = {"HOME": str(home), "PREFECT_HOME": str(home / ".prefect"), "TMPDIR": str(home)}
        return explain(*arguments, environment=prefect_server.env(own | environment), cwd=home)

    return ask


def everything(api: PrefectApi, pool: str, deployment: str, run: str) -> Json:
    """All that a worker could have changed on the server."""
    return {
        "pool": api.pool(pool),
        "workers": api.workers(pool),
        "deployment": api.deployment(deployment),
        "run": {**api.flow_run(run), "estimated_start_time_delta": 0},
        "runs": len(api.runs_of_deployment(deployment)),
        "states": api.states(run),
        "logs": api.logs(run),
    }


def test_nothing_is_changed_anywhere(
    api: PrefectApi, project: Project, pool: str, here: ExplainHere, tmp_path: Path
) -> None:
    deployment = project.deploy(name="untouched", job_variables={"env": {"A": "1"}})
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": tomorrow}}
    run = api.create_flow_run(deployment, state=state)  # not Late during the test
    before = everything(api, pool, deployment, run)
    for question in (
        ("--flow-run", run),
        ("--deployment", "probe/untouched", "-jv", "B=2"),
        ("--pool", pool, "--all-env"),
        ("--diff", run, deployment),
    ):
        explained = here(*question)
        assert (explained.code, explained.err) == (0, ""), question
    assert everything(api, pool, deployment, run) == before
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_a_deployment_by_name_and_by_id_is_the_same(
    api: PrefectApi, project: Project, here: ExplainHere
) -> None:
    name = f"named-{uuid.uuid4().hex[:6]}"
    deployment = project.deploy(name=name, job_variables={"env": {"A": "1"}})
    by_name = here("--deployment", f"probe/{name}", "--json", "-jv", "env.A=2").json
    assert by_name == here("--deployment", deployment, "--json", "-jv", "env.A=2").json
    assert by_name["about"] == {
        "kind": "deployment",
        "id": deployment,
        "name": f"probe/{name}",
        "deployment": f"probe/{name}",
        "work_pool": project.pool,
    }
    assert by_name["env"] == {"A": "2"}
    assert by_name["provenance"]["env.A"] == {
        "layer": "flow run",
        "overrode": ["deployment"],
        "filled_by": [],
    }
    assert not api.runs_of_deployment(deployment)


def test_what_is_not_there_is_named_with_what_is(
    api: PrefectApi, project: Project, here: ExplainHere
) -> None:
    name = f"nightly-{uuid.uuid4().hex[:6]}"
    deployment = project.deploy(name=name)
    run = api.create_flow_run(deployment)
    nobody = str(uuid.uuid4())
    answers = {
        ("--deployment", f"probe/{name[:-1]}"): f"did you mean 'probe/{name}'",
        ("--deployment", name): f"did you mean 'probe/{name}'?",
        ("--deployment", run): f"it is the id of a flow run: --flow-run {run}",
        ("--deployment", nobody): f"there is no deployment {nobody}",
        ("--flow-run", deployment): f"it is the id of a deployment: --deployment {deployment}",
        ("--flow-run", nobody): f"there is no flow run {nobody}",
        ("--flow-run", "amber-fox"): "'amber-fox' is not the id of a flow run: give its UUID",
        ("--pool", f"{project.pool}x"): f"did you mean '{project.pool}'",
        ("--diff", run, nobody): f"{nobody} is neither a flow run nor a deployment",
    }
    for question, words in answers.items():
        explained = here(*question)
        assert (explained.code, explained.out) == (4, ""), question
        assert words in explained.err
        assert explained.err.count("\n") == 1


def test_what_no_worker_of_ours_starts_is_exit_1(
    api: PrefectApi, project: Project, here: ExplainHere
) -> None:
    flow = api.create_flow("served")
    served = api.post("/deployments/", {"name": f"s-{uuid.uuid4().hex[:6]}", "flow_id": flow})["id"]
    docker = api.create_pool(kind="docker")
    elsewhere = Project(api=api, pool=docker, out=project.out).deploy()
    for question, words in {
        ("--deployment", served): "could not start: it is in no work pool",
        ("--flow-run", api.create_flow_run(served)): "could not start: it is in no work pool",
        ("--pool", docker): f"could not start: the work pool '{docker}' is of type 'docker'",
        ("--deployment", elsewhere): f"could not start: the work pool '{docker}' is of type 'docker'",
    }.items():
        explained = here(*question)
        assert (explained.code, explained.err) == (1, ""), question
        assert words in explained.out
        report = here(*question, "--json").json
        assert (report["starts"], "could not start: " + report["error"]["message"] in explained.out) == (
            False,
            True,
        )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (["command='"], "cannot be split into words"),
        (["command=no-such-program-here"], "the command 'no-such-program-here' is not in PATH"),
        (["working_dir=/no/such/place"], "the working directory /no/such/place does not exist"),
        (['env.A="{{ prefect.blocks.secret.no-such-block }}"'], "there is no block 'no-such-block'"),
        (['env={"A=B": "x"}'], "cannot be the name of an environment variable"),
        (["stream_output=perhaps"], "stream_output must be true or false"),
    ],
)
def test_a_run_that_could_not_start_is_exit_1_with_the_reason(
    variables: list[str], words: str, pool: str, here: ExplainHere
) -> None:
    options = [part for variable in variables for part in ("-jv", variable)]
    # The pool's schema has strings for all of them, so it is asked of the pool's runs as they could be.
    explained = here("--pool", pool, *options)
    assert (explained.code, explained.err) == (1, "")
    assert words in explained.out.splitlines()[-1]


def test_another_machine_is_not_judged_by_this_one(pool: str, here: ExplainHere) -> None:
    variables = ("-jv", "working_dir=/no/such/place", "-jv", "command=no-such-program-here")
    assert here("--pool", pool, *variables).code == 1
    assert here("--pool", pool, *variables, "--any-machine").code == 0


def test_the_server_refuses_what_explain_says_it_refuses(
    api: PrefectApi, here: ExplainHere, tmp_path: Path
) -> None:
    template = api.template()
    template["variables"]["properties"] |= {"size": {"type": "integer"}, "kind": {"enum": ["a", "b"]}}
    template["variables"]["required"] = ["kind"]
    pool = api.create_pool(template=template)
    deployment = Project(api=api, pool=pool, out=tmp_path).deploy()
    told = here("--pool", pool)
    assert told.code == 0
    assert "each deployment or run has to set kind" in told.out
    for variables, accepted in (
        ({}, False),
        ({"kind": "a"}, True),
        ({"kind": "c"}, False),
        ({"kind": "a", "size": "x"}, False),
        ({"kind": "a", "size": None}, True),
        ({"kind": "a", "env": {"A": 1}}, False),
        ({"kind": "a", "env.A": 1, "other": 1}, True),
    ):
        body = {"state": {"type": "SCHEDULED"}, "job_variables": variables}
        answer = api.request("POST", f"/deployments/{deployment}/create_flow_run", body)
        options = [part for key, value in variables.items() for part in ("-jv", f"{key}={json.dumps(value)}")]
        explained = here("--deployment", deployment, *options)
        assert (answer.status_code == 422, explained.code == 1) == (not accepted, not accepted), variables
        assert ("the server would not create the run (422)" in explained.out) is not accepted


def test_job_variables_are_read_as_prefects_command_reads_them(
    api: PrefectApi, prefect_server: PrefectServer, project: Project
) -> None:
    name = f"cli-{uuid.uuid4().hex[:6]}"
    deployment = project.deploy(name=name)
    given = [
        *("A=1", "B=text", "C=a=b", "D=true", "E=null", 'F={"x": [1]}', 'G="quoted"', "H=", "I"),
        *("J=1.50", "K=1 2", "L=[a]", "M=on", "N= 3", "env.X=1", "O=é日", "P=-", "A=2"),
    ]
    options = [part for one in given for part in ("--job-variable", one)]
    prefect_server.cli("deployment", "run", f"probe/{name}", *options)
    (run,) = api.runs_of_deployment(deployment)
    assert parse_job_variables(given) == run["job_variables"]


def test_secrets_are_hidden_unless_asked_for(project: Project, secret_block: str, here: ExplainHere) -> None:
    reference = f"{{{{ prefect.blocks.secret.{secret_block} }}}}"
    deployment = project.deploy(
        job_variables={
            "env": {
                "FROM_BLOCK": reference,
                "IN_TEXT": f"a {reference} b",
                "COPIED": f"x {SECRET} y",
                "MY_PASSWORD": "by-its-name-1",
                "DATABASE": "postgresql://me:in-the-url-2@db/x",
                "OPEN": "to be seen",
            },
            "command": "python -m job --password in-an-option-3",
        }
    )
    credentials = {"PREFECT_API_KEY": "pnu_of-the-settings-4"}
    hidden = (SECRET, "by-its-name-1", "in-the-url-2", "in-an-option-3", "pnu_of-the-settings-4")
    for form in ((), ("--json",)):
        question = ("--deployment", deployment, "--all-env", *form)
        discreet = here(*question, **credentials)
        assert (discreet.code, discreet.err) == (0, "")
        assert not [secret for secret in hidden if secret in discreet.out]
        assert "to be seen" in discreet.out
        candid = here(*question, "--show-secrets", **credentials)
        assert not [secret for secret in hidden if secret not in candid.out]
    report = here("--deployment", deployment, "--json").json
    assert report["env"]["FROM_BLOCK"] == "(hidden)"
    assert report["env"]["DATABASE"] == "postgresql://me:********@db/x"
    assert {"env.FROM_BLOCK", "env.IN_TEXT", "env.COPIED", "env.MY_PASSWORD", "env.DATABASE"} <= {
        *report["hidden"]
    }


def test_where_two_runs_differ(api: PrefectApi, project: Project, here: ExplainHere) -> None:
    deployment = project.deploy(job_variables={"env": {"A": "1", "SAME": "s", "A_TOKEN": "left"}})
    first = api.create_flow_run(deployment)
    second = api.create_flow_run(
        deployment, job_variables={"env": {"A": "2", "A_TOKEN": "right"}, "working_dir": "/tmp"}
    )
    report = here("--diff", first, second, "--json").json
    differing = {one["key"]: (one["a"]["value"], one["b"]["value"]) for one in report["differences"]}
    assert differing.pop("name") == (report["a"]["about"]["name"], report["b"]["about"]["name"])
    assert differing == {
        "working_dir": (None, "/tmp"),
        "env.A": ("1", "2"),
        "env.A_TOKEN": ("(hidden)", "(hidden)"),
    }
    table = here("--diff", first, second)
    assert table.code == 0
    (line,) = [line for line in table.out.splitlines() if line.startswith("env.A_TOKEN")]
    assert "(hidden) differs" in line
    assert here("--diff", first, first).out.endswith("no difference\n")
    broken = project.deploy(job_variables={"command": "no-such-program-here"})
    assert here("--diff", first, broken).code == 1


def test_a_run_that_was_started_before_says_so(api: PrefectApi, project: Project, here: ExplainHere) -> None:
    run = api.create_flow_run(project.deploy())
    api.set_state(run, "PENDING")
    api.set_state(run, "RUNNING")
    assert "shown is what a start now would give" in here("--flow-run", run).out


def test_a_deployment_that_was_deleted(api: PrefectApi, project: Project, here: ExplainHere) -> None:
    deployment = project.deploy()
    run = api.create_flow_run(deployment)
    api.set_state(run, "PENDING")
    api.delete_deployment(deployment)
    explained = here("--flow-run", run)
    assert explained.code == 1
    assert "could not start: " in explained.out


def test_servers_that_do_not_answer_or_are_none(here: ExplainHere, prefect_server: PrefectServer) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    refused = here("--pool", "any", PREFECT_API_URL=url)
    assert refused.code == 5
    assert refused.err.startswith(f"headrace: no answer from {url} (PREFECT_API_URL from environment): ")
    assert refused.err.count("\n") == 1
    elsewhere = here("--pool", "any", PREFECT_API_URL=prefect_server.api_url.removesuffix("/api"))
    assert (elsewhere.code, elsewhere.out) == (2, "")
    assert "does it end with /api?" in elsewhere.err
    unset = here("--pool", "any", PREFECT_API_URL="")
    assert unset.code == 2
    assert "PREFECT_API_URL must be set to explain what is on a server" in unset.err


@pytest.mark.long
def test_credentials_that_are_refused(
    start_prefect_server: Callable[..., AbstractContextManager[PrefectServer]], tmp_path: Path
) -> None:
    with start_prefect_server(PREFECT_SERVER_API_AUTH_STRING="admin:right") as server:
        wrong = explain(
            *("--pool", "any"),
            environment=server.env({"PREFECT_API_AUTH_STRING": "admin:wrong-one"}),
            cwd=tmp_path,
        )
        right = explain("--pool", "any", environment=server.env(), cwd=tmp_path)
    assert wrong.code == 3
    assert "PREFECT_API_AUTH_STRING" in wrong.err
    assert "wrong-one" not in wrong.err
    assert right.code == 4


def test_flags_that_do_not_go_together(here: ExplainHere) -> None:
    for arguments in (
        (),
        ("--pool", "a", "--deployment", "b"),
        ("--flow-run", "x", "-jv", "A=1"),
        ("--pool", "x", "-jv", 'A={"'),
    ):
        explained = here(*arguments)
        assert (explained.code, explained.out) == (2, ""), arguments
