"""From a resolved job configuration to what is executed: argv, environment, directory.

Owns the layering of the child's environment (PROTOCOL 4.2, the rule of Prefect 3.8.4 and later) and the
choice of command and directory (PROTOCOL 4.1). Job variables have been resolved before.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from worker.api.models import Deployment, Flow, FlowRun
from worker.processes.launch_problems import LaunchSpec
from worker.runs.job_variables import JobConfiguration

ENGINE = ("-m", "prefect.engine")
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
# What a flow gets unless anybody says otherwise. Each of an engine's clients would ask for the server's version first.
DEFAULTS = {"PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false"}


class EnvironmentLayer(StrEnum):
    """Who can set a variable of the child's environment."""

    DEFAULT = "headrace default"
    WORKER = "worker environment"
    SETTINGS = "prefect settings"
    ATTRIBUTION = "attribution"
    JOB = "job variables"
    PROTECTED = "the run's own"


EnvironmentLayers = tuple[tuple[EnvironmentLayer, Mapping[str, str]], ...]
"""What each layer sets, weakest layer first."""


class CommandError(ValueError):
    """The configured command cannot be split into words."""


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where the child reports to (PROTOCOL 4.4): a loopback port and a token for this attempt."""

    port: int
    token: str


def attribution(
    *,
    flow_run: FlowRun,
    flow: Flow | None,
    deployment: Deployment | None,
    worker_name: str,
    worker_id: UUID | str | None,
) -> dict[str, str]:
    """Variables that let the engine say on whose behalf it asks (PROTOCOL 4.2, all optional)."""
    values: dict[str, str | None] = {
        "PREFECT__WORKER_ID": str(worker_id) if worker_id else None,
        "PREFECT__WORKER_NAME": worker_name,
        "PREFECT__FLOW_ID": str(flow_run.flow_id) if flow_run.flow_id else None,
        "PREFECT__FLOW_NAME": flow.name if flow else None,
        "PREFECT__DEPLOYMENT_ID": str(flow_run.deployment_id) if flow_run.deployment_id else None,
        "PREFECT__DEPLOYMENT_NAME": deployment.name if deployment else None,
    }
    return {name: value for name, value in values.items() if value}


def environment_layers(
    *,
    worker_environment: Mapping[str, str],
    settings: Mapping[str, str],
    attributed: Mapping[str, str],
    job: Mapping[str, str | None],
    protected: Mapping[str, str],
    command_configured: bool,
) -> EnvironmentLayers:
    """What the child's environment is laid together from (PROTOCOL 4.2, 3.8.4 and later); `DEFAULTS` are weaker still.

    A job's variables win over the worker's Prefect settings, except under a custom command, where stock
    lays the settings over them. A null value is dropped: it hides the job's weaker layers, and what the
    worker's own environment has shows through.
    """
    job_values = {name: value for name, value in job.items() if value is not None}
    of_settings = (EnvironmentLayer.SETTINGS, settings)
    of_job = ((EnvironmentLayer.ATTRIBUTION, attributed), (EnvironmentLayer.JOB, job_values))
    return (
        (EnvironmentLayer.DEFAULT, DEFAULTS),
        (EnvironmentLayer.WORKER, worker_environment),
        *((*of_job, of_settings) if command_configured else (of_settings, *of_job)),
        (EnvironmentLayer.PROTECTED, protected),
    )


def child_environment(layers: EnvironmentLayers) -> dict[str, str]:
    """The child's whole environment: a later layer wins."""
    return {name: value for _, variables in layers for name, value in variables.items()}


def protected_environment(*, flow_run_id: UUID, control: ControlAddress | None) -> dict[str, str]:
    """Variables no job may change: the run's identity, who runs its hooks, and the control channel.

    The engine runs its own cancellation and crash hooks (PROTOCOL 4.2, 4.6).
    """
    values = {
        FLOW_RUN_ID: str(flow_run_id),
        "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "true",
    }
    if control is not None:
        values["PREFECT__CONTROL_PORT"] = str(control.port)
        values["PREFECT__CONTROL_TOKEN"] = control.token
    return values


def command_line(command: str | None, *, python: str) -> tuple[str, ...]:
    """The words to execute: the configured command split as a POSIX shell would, else the engine."""
    if command is None:
        return (python, *ENGINE)
    try:
        words = shlex.split(command)
    except ValueError as error:
        # The command itself may hold a secret: it is not quoted.
        msg = f"the job variable 'command' cannot be split into words as a shell would: {error}"
        raise CommandError(msg) from None
    if not words:
        msg = "the command is configured but empty; remove the job variable 'command' or give it a program"
        raise CommandError(msg)
    return tuple(words)


def launch_spec(
    job: JobConfiguration,
    *,
    python: str,
    environment: Mapping[str, str],
    fresh_directory: Path,
) -> LaunchSpec:
    """Put the parts together; `python` is the interpreter, where no command is configured. A relative working directory is relative to the daemon's own (PROTOCOL 4.1)."""
    return LaunchSpec(
        argv=command_line(job.command, python=python),
        env=environment,
        cwd=Path(job.working_dir) if job.working_dir is not None else fresh_directory,
        stream_output=job.stream_output,
    )
