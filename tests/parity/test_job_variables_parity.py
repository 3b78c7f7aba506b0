"""Stock mode beside Prefect's own ProcessJobConfiguration, on the worked cases and on random input.

Prefect runs in this process with a stub for its API client. Two things of it are patched: what it
has resolved is captured before it adds the worker's environment, and the placeholders of one text
are walked in the order they appear, where Prefect walks a set, in an order that changes with the
hash seed.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import anyio
import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.support.job_variable_inputs import BLOCKS_BY_ID, DOTTED, NAMES, Case, cases
from worker.explain.input import FileReferences
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE
from worker.runs.job_variables import Inputs, JobVariablesError, JobVariablesMode, resolve

pytestmark = pytest.mark.filterwarnings("default")

PREFECT_VERSION: Final = "3.8.8"
CASES: Final = json.loads(
    (Path(__file__).parent.parent / "conformance" / "job_variable_cases.json").read_text(encoding="utf-8")
)
CONTEXT: Final[dict[str, Any]] = CASES["context"]
EXAMPLES: Final = os.environ.get("HEADRACE_PARITY_EXAMPLES")
"""How many random inputs to try, always new ones; unset: 300, the same every time."""

Result = tuple[str, ...]
"""What both sides are compared by: text, so that 1, 1.0 and True differ and the order of keys counts."""


def _api_object(key: str) -> SimpleNamespace:
    fields = CONTEXT[key]

    def model_dump(*, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return fields

    return SimpleNamespace(**fields, model_dump=model_dump)


class StubClient:
    """What Prefect's configuration asks of its API client."""

    def __init__(self, case: Case, not_found: Callable[..., Exception]) -> None:
        self._case = case
        self._not_found = not_found

    async def read_flow(self, _: str) -> Any:
        return _api_object("flow")

    async def read_block_document_by_name(self, *, name: str, block_type_slug: str) -> Any:
        return self._document(self._case.blocks, f"{block_type_slug}/{name}")

    async def read_block_document(self, document_id: Any) -> Any:
        return self._document(self._case.blocks_by_id, str(document_id))

    def _document(self, documents: Mapping[str, dict[str, Any]], key: str) -> Any:
        if key not in documents:
            raise self._not_found(http_exc=LookupError(key))
        return SimpleNamespace(data=copy.deepcopy(documents[key]))

    async def read_variable_by_name(self, *, name: str) -> Any:
        if name not in self._case.variables:
            return None
        return SimpleNamespace(value=copy.deepcopy(self._case.variables[name]))


class Stock:
    """Prefect's own resolver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process: Any = importlib.import_module("prefect.workers.process")
            templating: Any = importlib.import_module("prefect.utilities.templating")
            exceptions: Any = importlib.import_module("prefect.exceptions")
            self.version: str = importlib.import_module("prefect").__version__
        self._configuration: Any = process.ProcessJobConfiguration
        self._not_found: Callable[..., Exception] = exceptions.ObjectNotFound
        self.default_template: dict[str, Any] = process.ProcessWorker.get_default_base_job_template()
        self._captured: list[dict[str, Any]] = []
        prepare: Callable[..., None] = self._configuration.prepare_for_flow_run

        def captured_prepare(configuration: Any, *arguments: Any, **keywords: Any) -> None:
            before = {field: getattr(configuration, field) for field in ("command", "env", "labels")}
            prepare(configuration, *arguments, **keywords)
            self._captured.append(before)

        def in_order(template: Any) -> Any:
            return list(
                dict.fromkeys(sorted(find(template), key=lambda found: template.index(found.full_match)))
            )

        find: Callable[[Any], Any] = templating.find_placeholders
        monkeypatch.setattr(self._configuration, "prepare_for_flow_run", captured_prepare)
        monkeypatch.setattr(templating, "find_placeholders", in_order)

    async def resolve(self, case: Case) -> Result:
        flow_run = _api_object("flow_run")
        flow_run.job_variables = copy.deepcopy(case.flow_run)
        deployment = SimpleNamespace(
            **CONTEXT["deployment"], job_variables=copy.deepcopy(case.deployment), updated=None
        )
        pool = SimpleNamespace(
            **CONTEXT["work_pool"],
            base_job_template=copy.deepcopy(case.template) or copy.deepcopy(self.default_template),
        )
        self._captured.clear()
        try:
            configuration = await self._configuration.resolve_for_flow_run(
                flow_run,
                client=StubClient(case, self._not_found),
                work_pool=pool,
                worker_name="w-1",
                deployment=deployment,
            )
        except Exception as error:  # noqa: BLE001 - whatever Prefect raises is the answer
            assert not self._captured
            return ("error", type(error).__name__, "build")
        directory = configuration.working_dir
        return _comparable(
            **self._captured[-1],
            name=configuration.name,
            stream_output=configuration.stream_output,
            working_dir=None if directory is None else str(directory),
        )


async def _ours(case: Case, mode: JobVariablesMode = JobVariablesMode.STOCK) -> Result:
    inputs = Inputs(
        base_job_template=case.template,
        deployment_job_variables=case.deployment,
        flow_run_job_variables=case.flow_run,
        process_env=CONTEXT["process_env"],
        context={"flow": CONTEXT["flow"], "flow_run": CONTEXT["flow_run"]},
    )
    references = FileReferences(blocks=case.blocks, blocks_by_id=case.blocks_by_id, variables=case.variables)
    untouched = repr((inputs, references))
    try:
        job = await resolve(inputs, references, mode)
    except JobVariablesError as error:
        return ("error", error.type, error.stage)
    finally:
        assert repr((inputs, references)) == untouched
    return _comparable(
        command=job.command,
        env=job.env,
        labels=job.labels,
        name=job.name,
        stream_output=job.stream_output,
        working_dir=job.working_dir,
    )


def _comparable(**fields: Any) -> Result:
    return tuple(f"{field}={fields[field]!r}" for field in sorted(fields))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect-home")))
        monkeypatch.setenv("LEAN_ENV_PROBE", CONTEXT["process_env"]["LEAN_ENV_PROBE"])
        monkeypatch.delenv("LEAN_ENV_MISSING", raising=False)
        yield Stock(monkeypatch)


def test_the_cases_hold_for_the_installed_prefect(stock: Stock) -> None:
    assert stock.version == PREFECT_VERSION == CASES["prefect_version"]


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_worked_cases(stock: Stock, case: dict[str, Any]) -> None:
    inputs = Case(
        template=case["base_job_template"],
        deployment=case["deployment_job_variables"],
        flow_run=case["flow_run_job_variables"],
        blocks=case["blocks"],
        blocks_by_id=case["blocks_by_id"],
        variables=case["variables"],
    )
    theirs = anyio.run(stock.resolve, inputs)
    if "expected" in case:
        assert theirs == _comparable(**case["expected"])
    else:
        assert theirs == ("error", case["expected_error"]["type"], case["expected_error"]["stage"])
    assert anyio.run(_ours, inputs) == theirs


def test_the_default_template_is_prefects_but_for_the_descriptions_and_python(stock: Stock) -> None:
    def bare(template: dict[str, Any]) -> dict[str, Any]:
        template = copy.deepcopy(template)
        for attributes in template["variables"]["properties"].values():
            del attributes["description"]
        return template

    ours = bare(DEFAULT_BASE_JOB_TEMPLATE)
    assert ours["job_configuration"].pop("python") == "{{ python }}"
    assert ours["variables"]["properties"].pop("python")["default"] is None
    assert ours == bare(stock.default_template)


def _with(configuration: dict[str, Any], properties: Any = None) -> dict[str, Any]:
    return {"job_configuration": configuration, "variables": {"properties": properties or {}}}


STOCK_FIELDS: Final = [name for name in DEFAULT_BASE_JOB_TEMPLATE["job_configuration"] if name != "python"]
NOT_A_PROPERTY: Final[tuple[Any, ...]] = (None, 5, True, 1.5, [], ["default"], "", "my default", {})
STREAM_OUTPUT: Final[tuple[Any, ...]] = (
    *(True, False, 0, 1, 2, -1, 10**30, 0.0, -0.0, 1.0, 0.5, float("nan"), None, [], {}),
    *("yes", "YES", "y", "on", "t", "TRUE", "1", "no", "N", "oFF", "f", "0", "", " yes", "İ", "2"),
)
ENV_OF_THE_RUN: Final[tuple[Any, ...]] = (
    *(None, 5, True, 1.5, "", "ab", "abc", [], ["ab"], [["k", "v"]], [["k"]], [[1, "v"]], [[None, None]]),
    *([[["k"], "v"]], [5], [{"x": 1, "y": 2}], {}, {"$ref": {}}, {"$ref": None}, {"$ref": "x"}),
)
SHARP: Final[list[Case]] = [
    *(Case(_with({"command": "x"}, {"a": odd}), {}, {}) for odd in NOT_A_PROPERTY),
    *(Case({"job_configuration": odd, "variables": {}}, {}, {}) for odd in NOT_A_PROPERTY),
    *(Case({"job_configuration": odd, "variables": {}}, {"env.A": 1, "env.A.B": 2}, {}) for odd in NOT_A_PROPERTY),
    *(Case({"job_configuration": {}, "variables": odd}, {}, {}) for odd in NOT_A_PROPERTY),
    *(Case({"job_configuration": {}, "variables": {"properties": odd}}, {}, {}) for odd in NOT_A_PROPERTY),
    *(Case(_with({"env": {"A": "t"}}, {"env": {"default": odd}}), {}, {}) for odd in NOT_A_PROPERTY),
    *(Case(_with({"env": {"A": "t"}}), {"env": odd}, {}) for odd in ENV_OF_THE_RUN),
    *(Case({}, {"env": {"A": "d"}}, {"env": odd}) for odd in ENV_OF_THE_RUN),
    *(Case({}, {"env": odd}, {"env": {"A": "r"}}) for odd in ENV_OF_THE_RUN),
    *(Case({}, {"stream_output": odd}, {}) for odd in STREAM_OUTPUT),
    *(Case({}, {field: odd}, {}) for field in STOCK_FIELDS for odd in (*NOT_A_PROPERTY, "\ud800", "a\0b", "//x/./y/")),
    *(Case({}, {"labels": {"a": odd}}, {}) for odd in NOT_A_PROPERTY),
    *(Case(_with({"command": f"{{{{ {name} }}}}", "name": f"<{{{{ {name} }}}}>"}), {"cfg": cfg}, {}) for name in NAMES
      for cfg in ({"a": 1, "A": {"B": None}, "0": "zero", "é": 2}, ["x", [1]], "text", None)),
    *(Case({}, {"command": f"{{{{ {name} }}}}", "env": {"A": f"<{{{{ {name} }}}}>"}}, {}) for name in NAMES),
    *(Case({}, {"name": f"{{{{ {name} }}}}"}, {}) for name in NAMES),
    *(Case({}, {"env": {"A": {"$ref": {"block_document_id": odd}}}}, {}) for odd in (*NOT_A_PROPERTY, *BLOCKS_BY_ID)),
    *(Case({}, {one: "x"}, {other: {"a": 1}}) for one in DOTTED for other in DOTTED),
    Case({"job_configuration": {"$ref": {"block_document_id": next(iter(BLOCKS_BY_ID))}}, "variables": {}}, {}, {}),
]  # fmt: skip
"""Inputs at the edge of each rule, so that no run of the tests depends on chance to meet them."""


@pytest.mark.long
@pytest.mark.anyio
@pytest.mark.timeout(600)  # thousands of resolutions, twice each
async def test_sharp_input(stock: Stock) -> None:
    for case in SHARP:
        assert (case, await _ours(case)) == (case, await stock.resolve(case))


@pytest.mark.timeout(600)  # hypothesis may need minutes to simplify a failure
@settings(
    max_examples=int(EXAMPLES or 300),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=cases)
def test_random_input(stock: Stock, case: Case) -> None:
    async def both() -> tuple[Result, Result]:
        return await _ours(case), await stock.resolve(case)

    ours, theirs = anyio.run(both)
    event("refused" if theirs[0] == "error" else "resolved")
    assert ours == theirs
