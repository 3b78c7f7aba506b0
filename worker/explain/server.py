"""`headrace explain` over real objects: the daemon's own preparation of a run, without the run.

What is told is what `runs.preparation` gives, which is what the daemon launches. Owns the order of reading,
and turning what was prepared into a report. Nothing is written: not on the server, not on disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import anyio

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import WorkPool
from worker.api.transport import Patience
from worker.explain.report import Launch, Problem, Report
from worker.explain.rows import environment_rows, job_rows, label_rows
from worker.explain.schema import refusal, still_required
from worker.explain.strays import idle_python, undeclared, unused
from worker.explain.subject import NEXT_RUN, UNKNOWN_ID, Kind, Question, Subject, find_subject
from worker.processes.interpreters import locate
from worker.processes.launch_problems import LaunchSpec, find_problem
from worker.processes.launcher import EXECUTION_ID
from worker.runs.job_variables import JobVariablesError, JobVariablesMode
from worker.runs.placeholders import is_object
from worker.runs.preparation import Preparation, Prepared, Unpreparable
from worker.runs.readings import DeploymentGone, Readings
from worker.runs.start_method import eligible_for_warm_start
from worker.runs.work_pool import PROCESS

_FRESH = Path("/a fresh directory")
_AT_LAUNCH = ("PREFECT__CONTROL_PORT", "PREFECT__CONTROL_TOKEN", EXECUTION_ID)


class Foresee(Protocol):
    """Looks at the machine for what would keep a process from being started."""

    async def __call__(self, spec: LaunchSpec, /, *, fresh_directory: bool, engine: bool) -> str | None:
        """One sentence, None if nothing is in the way; `engine`: Prefect has to be importable."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """What the daemon on this machine would bring along: the layers that are its own.

    `name` gives the worker's name for a pool. `never_warm` is why no run is started warm, if that is so;
    `foresee` looks at the machine for what would keep a process from being started, None where another
    machine is to run it.
    """

    mode: JobVariablesMode
    python: str
    name: Callable[[str], str]
    environment: Mapping[str, str]
    settings: Mapping[str, str]
    sources: Mapping[str, str]
    forkserver_environment: Mapping[str, str]
    never_warm: str | None
    foresee: Foresee | None


@dataclass(frozen=True, slots=True)
class _OnePool:
    """The pool of one run, as `Preparation` wants it."""

    pool: WorkPool
    worker_id: str | None = None

    async def read(self) -> WorkPool:
        return self.pool


@dataclass(frozen=True, slots=True)
class _NotAsked:
    """Interpreters that are looked for on this machine, if it is `here` that they are to be, and not asked what they are.

    What is wrong with one is for the end of the report: `Here.foresee` finds it.
    """

    here: bool

    async def locate(self, value: str, /, *, working_dir: Path | None, path: str) -> str:
        return locate(value, working_dir=working_dir, path=path) if self.here else value

    async def check(self, python: str, /, *, environment: Mapping[str, str]) -> None:
        """Nothing is asked."""


class Explainer:
    """Explains any number of runs through one client.

    `hide` is told every secret that is read, `sleep` waits for an automation's event. `patience` bounds the
    reading of what is asked about, which comes first: a server that answers that is waited for afterwards.
    """

    def __init__(
        self,
        *,
        client: PrefectClient,
        here: Here,
        hide: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]],
        patience: Callable[[], Patience],
    ) -> None:
        self._client = client
        self._here = here
        self._hide = hide
        self._sleep = sleep
        self._patience = patience

    async def explain(self, question: Question, *, everything: bool) -> Report:
        """Find out all about one run. Raises NoSuchSubject and the client's errors."""
        subject = await find_subject(question, self._client, self._patience())
        report = Report(
            about=_about(subject), mode=self._here.mode.value, problem=None, remarks=subject.remarks
        )
        if subject.pool is None:
            return replace(report, problem=_without_pool(subject))
        try:
            pool = await self._client.read_work_pool(subject.pool, **self._patience())
        except NotFound:
            message = (
                f"its work pool {subject.pool!r} does not exist any more: create it, or change the deployment"
            )
            return replace(report, problem=Problem("NotFound", message))
        report = replace(report, remarks=(*report.remarks, *_remarks(pool)))
        if pool.type != PROCESS:
            message = (
                f"the work pool {pool.name!r} is of type {pool.type!r}, and headrace runs 'process' pools only;"
                " the worker made for that type starts its runs"
            )
            return replace(report, problem=Problem("PoolRefused", message))
        try:
            prepared = await self._preparation(pool).prepare(
                subject.flow_run, control=None, fresh_directory=_FRESH
            )
        except DeploymentGone:
            message = "its deployment was deleted: a daemon gives such a run up"
            return replace(report, problem=Problem("DeploymentGone", message))
        except Unpreparable as error:
            return replace(report, problem=_unpreparable(error))
        told = self._told(report, subject, prepared, everything=everything)
        problem = await self._problem(subject, prepared)
        return replace(told, problem=problem)

    async def _problem(self, subject: Subject, prepared: Prepared) -> Problem | None:
        spec = prepared.spec
        if subject.kind is not Kind.FLOW_RUN:  # else the server has created it
            complete = subject.kind is Kind.DEPLOYMENT
            if (reason := refusal(prepared.inputs, complete=complete)) is not None:
                return Problem("InvalidRequest", reason)
        reason = find_problem(spec)
        if reason is None and self._here.foresee is not None:
            reason = await self._here.foresee(
                spec, fresh_directory=spec.cwd == _FRESH, engine=prepared.job.command is None
            )
        return None if reason is None else Problem("LaunchError", reason)

    def _preparation(self, pool: WorkPool) -> Preparation:
        here = self._here
        return Preparation(
            client=self._client,
            readings=Readings(client=self._client, pool=_OnePool(pool), monotonic=anyio.current_time),
            mode=here.mode,
            python=here.python,
            interpreters=_NotAsked(here=here.foresee is not None),
            worker_name=here.name(pool.name),
            worker_environment=here.environment,
            settings=here.settings,
            sleep=self._sleep,
            hide=self._hide,
        )

    def _told(self, report: Report, subject: Subject, prepared: Prepared, *, everything: bool) -> Report:
        job, spec, here = prepared.job, prepared.spec, self._here
        reason = here.never_warm or eligible_for_warm_start(
            spec=spec,
            command_configured=job.command is not None,
            pull_steps=prepared.deployment.pull_steps if prepared.deployment else None,
            environment=here.forkserver_environment,
        )
        rows = environment_rows(job, prepared.layers, here.sources, everything=everything)
        return replace(
            report,
            about=_about(subject, prepared),
            remarks=(*report.remarks, *_required(subject, prepared)),
            rows=tuple(job_rows(job)),
            environment=tuple(
                replace(row, value=UNKNOWN_ID) if row.value == str(NEXT_RUN) else row for row in rows
            ),
            labels=tuple(label_rows(job)),
            everything=everything,
            launch=Launch(
                argv=spec.argv,
                cwd=None if spec.cwd == _FRESH else str(spec.cwd.absolute()),
                cold_because=reason,
                named_python=job.python is not None and job.command is None,
                pull_steps=_step_names(prepared.deployment.pull_steps if prepared.deployment else None),
                later=_AT_LAUNCH,
            ),
            undeclared=undeclared(prepared.inputs, here.mode),
            unused=(*unused(prepared.inputs), *idle_python(job)),
            notes=job.notes,
        )


def _about(subject: Subject, prepared: Prepared | None = None) -> dict[str, Any]:
    deployment = prepared.deployment if prepared is not None else None
    flow = prepared.flow if prepared is not None else None
    full_name = f"{flow.name}/{deployment.name}" if flow is not None and deployment is not None else None
    is_deployment = subject.kind is Kind.DEPLOYMENT
    return {
        "kind": subject.kind.value,
        "id": str(subject.id),
        "name": full_name if is_deployment and full_name else subject.title,
        "deployment": full_name,
        "work_pool": subject.pool,
    }


def _without_pool(subject: Subject) -> Problem:
    message = (
        "it is in no work pool, so no worker starts it: deploy it with a work pool, or run it where it is served"
        if subject.kind is Kind.DEPLOYMENT
        else "it is in no work pool, so no worker starts it: it runs where its flow is called or served"
    )
    return Problem("NoWorkPool", message)


def _remarks(pool: WorkPool) -> list[str]:
    remarks: list[str] = []
    if pool.is_paused:
        remarks.append("the work pool is paused: no run of it starts until it is resumed")
    if not pool.base_job_template:
        remarks.append(
            "the work pool has no template: the worker's own is used, and written into it at start"
        )
    return remarks


def _required(subject: Subject, prepared: Prepared) -> list[str]:
    missing = still_required(prepared.inputs) if subject.kind is Kind.WORK_POOL else ()
    return [f"each deployment or run has to set {', '.join(missing)}"] if missing else []


def _unpreparable(error: Unpreparable) -> Problem:
    cause = error.__cause__
    if isinstance(cause, JobVariablesError):
        return Problem(cause.type, cause.message)
    return Problem(type(cause or error).__name__, str(cause or error))


def _step_names(pull_steps: Any) -> tuple[str, ...]:
    if not isinstance(pull_steps, list):
        return ()
    steps = cast("list[Any]", pull_steps)
    return tuple(name for step in steps if is_object(step) for name in step)
