"""What the tests of the job-variable resolver share: the worked cases, inputs, references, outcomes."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from worker.explain.input import FileReferences
from worker.runs.base_job_template import DEFAULT_BASE_JOB_TEMPLATE
from worker.runs.job_variables import (
    Inputs,
    JobConfiguration,
    JobVariablesError,
    JobVariablesMode,
    resolve,
)

LAYERED, STOCK = JobVariablesMode.LAYERED, JobVariablesMode.STOCK
CORPUS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "conformance" / "job_variable_cases.json").read_text(encoding="utf-8")
)
CONTEXT: Final[dict[str, Any]] = CORPUS["context"]
CASES: Final[list[dict[str, Any]]] = CORPUS["cases"]
FIELDS: Final = ("command", "env", "working_dir", "stream_output", "labels", "name")


@dataclass
class CountingReferences:
    """References that remember what was read."""

    source: FileReferences
    reads: list[str] = field(default_factory=list[str])

    async def block_document(self, *, type_slug: str, name: str) -> dict[str, Any]:
        self.reads.append(f"block:{type_slug}/{name}")
        return await self.source.block_document(type_slug=type_slug, name=name)

    async def block_document_by_id(self, document_id: str) -> dict[str, Any]:
        self.reads.append(f"block_id:{document_id}")
        return await self.source.block_document_by_id(document_id)

    async def variable(self, name: str) -> Any:
        self.reads.append(f"variable:{name}")
        return await self.source.variable(name)


def inputs_of(
    *,
    template: Any = None,
    deployment: dict[str, Any] | None = None,
    flow_run: dict[str, Any] | None = None,
) -> Inputs:
    return Inputs(
        base_job_template=template or {},
        deployment_job_variables=deployment or {},
        flow_run_job_variables=flow_run or {},
        process_env=CONTEXT["process_env"],
        context={"flow": CONTEXT["flow"], "flow_run": CONTEXT["flow_run"]},
    )


def references_of(blocks: Any = None, blocks_by_id: Any = None, variables: Any = None) -> CountingReferences:
    return CountingReferences(FileReferences(blocks or {}, blocks_by_id or {}, variables or {}))


def resolved(
    inputs: Inputs,
    mode: JobVariablesMode = LAYERED,
    references: CountingReferences | None = None,
) -> JobConfiguration:
    return anyio.run(resolve, inputs, references or references_of(), mode)


def default_with(configuration: dict[str, Any] | None = None, **defaults: Any) -> dict[str, Any]:
    """Give the default template with other entries in job_configuration and other defaults."""
    template = copy.deepcopy(DEFAULT_BASE_JOB_TEMPLATE)
    template["job_configuration"].update(configuration or {})
    for name, default in defaults.items():
        template["variables"]["properties"].setdefault(name, {})["default"] = default
    return template


def fields_of(job: JobConfiguration) -> dict[str, Any]:
    return {name: getattr(job, name) for name in FIELDS}


def outcome(inputs: Inputs, mode: JobVariablesMode, references: CountingReferences | None = None) -> str:
    """Give a result or an error as text in which 1, 1.0 and True differ and the order of keys counts."""
    try:
        return repr(fields_of(resolved(inputs, mode, references)))
    except JobVariablesError as error:
        return f"{error.type} in {error.stage}"
