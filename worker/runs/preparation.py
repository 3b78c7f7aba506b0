"""From a claimed run to a launch spec: reads what the layers need and resolves them.

Effects are reads only. Every failure that belongs to the run (not to the server's reachability) is an
`Unpreparable` with the sentence its Crashed state will carry.
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError
from worker.api.models import Deployment, Flow, FlowRun, WorkPool
from worker.processes.interpreter import InterpreterError
from worker.processes.launch_problems import LaunchSpec, find_problem
from worker.runs import automations
from worker.runs.api_references import ApiReferences
from worker.runs.job_variables import (
    Inputs,
    JobConfiguration,
    JobVariablesError,
    JobVariablesMode,
    resolve,
)
from worker.runs.launch_spec import (
    CommandError,
    ControlAddress,
    EnvironmentLayers,
    attribution,
    child_environment,
    environment_layers,
    launch_spec,
    protected_environment,
)
from worker.runs.readings import Reading, Readings
from worker.runs.worker_events import Subject


class Unpreparable(Exception):
    """The run cannot be started; the message is for the run's owner."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that launching and reporting one attempt need, and what it was made of.

    `inputs` and `layers` are what explains it: what the job was resolved from, and what `spec.env` was laid
    together from.
    """

    spec: LaunchSpec
    job: JobConfiguration
    inputs: Inputs
    layers: EnvironmentLayers
    flow: Flow | None
    deployment: Deployment | None
    work_pool: WorkPool

    def names(self) -> dict[str, str]:
        """What it is an attempt of, for every log event of the execution from here on."""
        named = {"deployment": self.deployment, "flow": self.flow}
        return {key: known.name for key, known in named.items() if known is not None}

    def subject(self, flow_run: FlowRun) -> Subject:
        """What the run's events relate to."""
        return Subject(
            flow_run=flow_run, flow=self.flow, deployment=self.deployment, work_pool=self.work_pool
        )


class NamedInterpreters(Protocol):
    """The interpreters that job variables name, as `processes.interpreters.Interpreters` looks at them."""

    async def locate(self, value: str, /, *, working_dir: Path | None, path: str) -> str:
        """The program that a value means. Raises InterpreterError."""
        ...

    async def check(self, python: str, /, *, environment: Mapping[str, str]) -> None:
        """Make sure that it can run flows. Raises InterpreterError."""
        ...


class Preparation:
    """Reads and resolves; one for the daemon's life.

    `python` is the interpreter of flows that name no other; `interpreters` looks at those that are named. `worker_environment` and `settings` are the two layers of the
    child's environment that come from the daemon itself (PROTOCOL 4.2). `hide` is told every secret that comes
    along, so that no log line shows it.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        readings: Readings,
        mode: JobVariablesMode,
        python: str,
        interpreters: NamedInterpreters,
        worker_name: str,
        worker_environment: Mapping[str, str],
        settings: Mapping[str, str],
        sleep: Callable[[float], Awaitable[None]],
        hide: Callable[[str], None],
    ) -> None:
        self._client = client
        self._readings = readings
        self._mode = mode
        self._python = python
        self._interpreters = interpreters
        self._worker_name = worker_name
        self._worker_environment = worker_environment
        self._settings = settings
        self._sleep = sleep
        self._hide = hide
        self._log = structlog.get_logger()

    async def prepare(
        self, flow_run: FlowRun, *, control: ControlAddress | None, fresh_directory: Path
    ) -> Prepared:
        """Resolve one run; raises Unpreparable or DeploymentGone (`readings`)."""
        reading = await self._readings.of(flow_run)
        inputs, job = await self._resolve(flow_run, reading)
        layers = environment_layers(
            worker_environment=self._worker_environment,
            settings=self._settings,
            attributed=attribution(
                flow_run=flow_run,
                flow=reading.flow,
                deployment=reading.deployment,
                worker_name=self._worker_name,
                worker_id=self._readings.worker_id,
            ),
            job=job.env,
            protected=protected_environment(flow_run_id=flow_run.id, control=control),
            command_configured=job.command is not None,
        )
        try:
            spec = await self._spec(job, child_environment(layers), fresh_directory)
        except (CommandError, InterpreterError) as error:
            raise Unpreparable(submission_failure(error)) from error
        return Prepared(
            spec=spec,
            job=job,
            inputs=inputs,
            layers=layers,
            flow=reading.flow,
            deployment=reading.deployment,
            work_pool=reading.pool,
        )

    async def _spec(
        self, job: JobConfiguration, environment: Mapping[str, str], fresh_directory: Path
    ) -> LaunchSpec:
        """Raises CommandError and InterpreterError."""
        if job.python is None or job.command is not None:
            return launch_spec(
                job, python=self._python, environment=environment, fresh_directory=fresh_directory
            )
        python = await self._interpreters.locate(
            job.python,
            working_dir=None if job.working_dir is None else Path(job.working_dir),
            path=environment.get("PATH", os.defpath),
        )
        spec = launch_spec(job, python=python, environment=environment, fresh_directory=fresh_directory)
        # What can be given to no program can not be asked with; launching says what is wrong with it.
        if find_problem(spec) is None:
            await self._interpreters.check(python, environment=environment)
        return spec

    async def _resolve(self, flow_run: FlowRun, reading: Reading) -> tuple[Inputs, JobConfiguration]:
        try:
            inputs = Inputs(
                base_job_template=reading.pool.base_job_template or {},
                deployment_job_variables=(reading.deployment.job_variables if reading.deployment else None)
                or {},
                flow_run_job_variables=await self._flow_run_variables(flow_run),
                process_env=self._worker_environment,
                context={"flow": reading.flow.raw if reading.flow else {}, "flow_run": flow_run.raw},
            )
            references = ApiReferences(client=self._client, hide=self._hide)
            return inputs, await resolve(inputs, references, self._mode)
        except (JobVariablesError, automations.AutomationTemplateError, ApiError) as error:
            raise Unpreparable(submission_failure(error)) from error

    async def _flow_run_variables(self, flow_run: FlowRun) -> Any:
        variables: Any = flow_run.job_variables or {}
        if (
            self._mode is JobVariablesMode.LAYERED
            and flow_run.created_by is not None
            and flow_run.created_by.type == automations.CREATED_BY
            and automations.needs_rendering(variables)
        ):
            return await automations.rendered_job_variables(
                flow_run, self._client, sleep=self._sleep, deadline=automations.EVENT_WAIT
            )
        return variables


def submission_failure(error: Exception) -> str:
    """The message of a run that could not be started, worded as Prefect's worker does (PROTOCOL 2.12)."""
    kind = error.type if isinstance(error, JobVariablesError) else type(error).__name__
    return f"Failed to submit flow run to infrastructure: {kind}: {error}"
