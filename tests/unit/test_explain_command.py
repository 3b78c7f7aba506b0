"""Flags of `headrace explain`: job variables as Prefect reads them, and questions that only read."""

import io
from argparse import Namespace
from typing import Any
from uuid import uuid4

import anyio
import pytest

from tests.support.canned import CannedServer
from worker.api.transport import Patience
from worker.explain.command import EXIT_USAGE, UsageError, explain_objects, parse_job_variables
from worker.explain.server import Explainer, Here
from worker.explain.subject import Kind, NoSuchSubject, Question
from worker.runs.job_variables import JobVariablesMode

FLOW, DEPLOYMENT, RUN = (str(uuid4()) for _ in range(3))


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("A=1", 1),
        ("A=text", "text"),
        ("A=a=b", "a=b"),
        ("A=true", True),
        ("A=on", "on"),
        ("A=null", None),
        ('A={"x": [1]}', {"x": [1]}),
        ('A="a b"', "a b"),
        ("A=1 2", "1 2"),
        ("A=", ""),
        ("A", ""),
    ],
)
def test_job_variables(given: str, value: Any) -> None:
    assert parse_job_variables([given]) == {"A": value}


@pytest.mark.parametrize("value", ["{a: 1}", '{"a"', '"open', "{{ $HOME }}", "a\\", "[" * 100_000])
def test_broken_json_is_refused_without_quoting_it(value: str) -> None:
    with pytest.raises(UsageError, match="the value of -jv A=… is neither JSON nor plain text") as error:
        parse_job_variables(["B=1", f"A={value}"])
    assert value not in str(error.value).replace("-jv 'A=\"…\"'", "")


def test_job_variables_need_a_run_that_does_not_exist_yet() -> None:
    arguments = Namespace(job_variable=["A=1"], deployment=None, pool=None, diff=None, flow_run=RUN)
    errors = io.StringIO()
    assert explain_objects(arguments, stdout=io.StringIO(), stderr=errors) == EXIT_USAGE
    assert errors.getvalue().startswith("headrace: -jv sets variables of a run that does not exist yet")


def server() -> CannedServer:
    canned = CannedServer()
    canned.on("GET", f"/flows/{FLOW}", {"id": FLOW, "name": "etl"})
    deployment = {"id": DEPLOYMENT, "name": "nightly", "flow_id": FLOW, "work_pool_name": "lab"}
    canned.on("GET", f"/deployments/{DEPLOYMENT}", deployment)
    canned.on("GET", "/deployments/name/etl/nightly", deployment)
    canned.on("GET", "/work_pools/lab", {"id": str(uuid4()), "name": "lab", "type": "process"})
    run = {"id": RUN, "name": "amber", "deployment_id": DEPLOYMENT, "flow_id": FLOW, "work_pool_name": "lab"}
    canned.on("GET", f"/flow_runs/{RUN}", {**run, "state_type": "SCHEDULED", "state_name": "Late"})
    for missing in (f"/flow_runs/{DEPLOYMENT}", f"/deployments/{RUN}", "/deployments/name/etl/nihtly"):
        canned.on("GET", missing, {"detail": "not found"}, status=404)
    canned.on("POST", "/deployments/filter", [deployment])
    canned.on("POST", "/flows/filter", [{"id": FLOW, "name": "etl"}])
    return canned


def ask(canned: CannedServer, *questions: Question) -> list[Any]:
    here = Here(
        mode=JobVariablesMode.LAYERED,
        python="/opt/python",
        name=lambda pool: f"host-{pool}",
        environment={"HOME": "/h"},
        settings={},
        sources={},
        forkserver_environment={"HOME": "/h"},
        never_warm=None,
        foresee=None,
    )

    async def explain() -> list[Any]:
        async with canned.client() as client:
            explainer = Explainer(
                client=client, here=here, hide=lambda _: None, sleep=anyio.sleep, patience=Patience
            )
            return [await explainer.explain(question, everything=True) for question in questions]

    return anyio.run(explain)


def test_explaining_only_reads() -> None:
    canned = server()
    reports = ask(
        canned,
        Question(Kind.FLOW_RUN, RUN),
        Question(Kind.DEPLOYMENT, DEPLOYMENT, {"A": 1}),
        Question(Kind.WORK_POOL, "lab"),
        Question(None, RUN),
        Question(None, DEPLOYMENT),
    )
    assert [report.problem for report in reports] == [None] * 5
    assert {method for method, _, _ in canned.received} == {"GET"}
    names = [row.value for report in reports for row in report.rows if row.key == "name"]
    assert names == ["amber", "(the run's name)", "(the run's name)", "amber", "(the run's name)"]


def test_what_a_run_that_does_not_exist_yet_cannot_know() -> None:
    (report,) = ask(server(), Question(Kind.DEPLOYMENT, "etl/nightly", {"name": "{{ ctx.flow_run.id }}"}))
    values = {row.key: row.value for row in report.all_rows}
    assert values["name"] == values["env.PREFECT__FLOW_RUN_ID"] == "(the run's id)"
    assert values["env.PREFECT__WORKER_NAME"] == "host-lab"
    assert values["env.PREFECT__DEPLOYMENT_NAME"] == "nightly"
    assert report.launch is not None
    assert (report.launch.argv[0], report.launch.cwd) == ("/opt/python", None)
    assert "the work pool has no template" in report.remarks[0]


def test_another_name_is_offered_by_reading_a_list() -> None:
    with pytest.raises(NoSuchSubject, match="did you mean 'etl/nightly'"):
        ask(server(), Question(Kind.DEPLOYMENT, "etl/nihtly"))
    with pytest.raises(NoSuchSubject, match=r"there is no deployment 'q'.*; it has 'etl/nightly'"):
        ask(server(), Question(Kind.DEPLOYMENT, "q"))
