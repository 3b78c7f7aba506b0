"""What `headrace explain` is asked about: a flow run, a deployment or a work pool, found on the server.

Owns the finding, and what is said when there is no such thing. Reads only. For a deployment and a pool it
makes the run that would come next, with ids and a name that say they are not known yet.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, assert_never
from uuid import UUID

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import Deployment, FlowRun
from worker.api.transport import Patience

NEXT_RUN = UUID(int=0)
"""The id of a run that does not exist yet."""
UNKNOWN_NAME = "(the run's name)"
UNKNOWN_ID = "(the run's id)"

_OFFERED = 3


class Kind(StrEnum):
    """What is explained."""

    FLOW_RUN = "flow run"
    DEPLOYMENT = "deployment"
    WORK_POOL = "work pool"


@dataclass(frozen=True, slots=True)
class Question:
    """What the user asked about; `kind` None: whichever has that id or name.

    `job_variables` are those of the run that is to be imagined.
    """

    kind: Kind | None
    name: str
    job_variables: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Subject:
    """A run to explain, real or the next one, and the name of the pool it is in, if it is in any."""

    kind: Kind
    title: str
    id: UUID | None
    flow_run: FlowRun
    pool: str | None
    remarks: tuple[str, ...] = ()


class NoSuchSubject(Exception):
    """The server has nothing of that id or name; the message says so and what there is instead."""


async def find_subject(question: Question, client: PrefectClient, patience: Patience) -> Subject:
    """Read what was asked about. Raises NoSuchSubject, and the client's errors."""
    match question.kind:
        case Kind.FLOW_RUN:
            return await _flow_run(question, client, patience)
        case Kind.DEPLOYMENT:
            return await _deployment(question, client, patience)
        case Kind.WORK_POOL:
            return await _work_pool(question, client, patience)
        case None:
            return await _either(question, client, patience)
        case _:
            assert_never(question.kind)


async def _flow_run(question: Question, client: PrefectClient, patience: Patience) -> Subject:
    flow_run_id = _uuid(question.name)
    if flow_run_id is None:
        raise NoSuchSubject(f"{question.name!r} is not the id of a flow run: give its UUID")
    try:
        return _subject_of_run(await client.read_flow_run(flow_run_id, **patience))
    except NotFound:
        hint = ""
        if await _is_deployment(flow_run_id, client, patience):
            hint = f"; it is the id of a deployment: --deployment {flow_run_id}"
        raise NoSuchSubject(f"there is no flow run {flow_run_id} on {client.url}{hint}") from None


async def _deployment(question: Question, client: PrefectClient, patience: Patience) -> Subject:
    deployment_id = _uuid(question.name)
    if deployment_id is None:
        return _subject_of_deployment(await _named_deployment(question.name, client, patience), question)
    try:
        return _subject_of_deployment(await client.read_deployment(deployment_id, **patience), question)
    except NotFound:
        hint = ""
        if await _is_flow_run(deployment_id, client, patience):
            hint = f"; it is the id of a flow run: --flow-run {deployment_id}"
        raise NoSuchSubject(f"there is no deployment {deployment_id} on {client.url}{hint}") from None


async def _either(question: Question, client: PrefectClient, patience: Patience) -> Subject:
    found_id = _uuid(question.name)
    if found_id is None:
        return await _deployment(question, client, patience)
    try:
        return _subject_of_run(await client.read_flow_run(found_id, **patience))
    except NotFound:
        pass
    try:
        return _subject_of_deployment(await client.read_deployment(found_id, **patience), question)
    except NotFound:
        raise NoSuchSubject(f"{found_id} is neither a flow run nor a deployment on {client.url}") from None


async def _named_deployment(name: str, client: PrefectClient, patience: Patience) -> Deployment:
    flow_name, slash, deployment_name = name.partition("/")
    if slash and flow_name and deployment_name:
        try:
            return await client.read_deployment_by_name(flow_name, deployment_name, **patience)
        except NotFound:
            pass
    names = await client.deployment_names(**patience)
    if not slash:
        full = [one for one in names if one.partition("/")[2] == name]
        if full:
            raise NoSuchSubject(f"a deployment is named by its flow and itself: did you mean {_offer(full)}?")
    raise NoSuchSubject(f"there is no deployment {name!r} on {client.url}{_hint(name, names)}")


async def _work_pool(question: Question, client: PrefectClient, patience: Patience) -> Subject:
    try:
        pool = await client.read_work_pool(question.name, **patience)
    except NotFound:
        names = await client.work_pool_names(**patience)
        raise NoSuchSubject(
            f"there is no work pool {question.name!r} on {client.url}{_hint(question.name, names)}"
        ) from None
    return Subject(
        kind=Kind.WORK_POOL,
        title=pool.name,
        id=pool.id,
        flow_run=_next_run(question.job_variables),
        pool=pool.name,
        remarks=("what a run gets whose deployment sets nothing",) if not question.job_variables else (),
    )


async def _is_deployment(some_id: UUID, client: PrefectClient, patience: Patience) -> bool:
    try:
        await client.read_deployment(some_id, **patience)
    except NotFound:
        return False
    return True


async def _is_flow_run(some_id: UUID, client: PrefectClient, patience: Patience) -> bool:
    try:
        await client.read_flow_run(some_id, **patience)
    except NotFound:
        return False
    return True


def _subject_of_run(flow_run: FlowRun) -> Subject:
    state = flow_run.state_type
    remarks: tuple[str, ...] = ()
    if state is not None and flow_run.run_count > 0:
        name = flow_run.state_name or state.value
        remarks = (f"the run is {name}: shown is what a start now would give, not what its last one got",)
    elif state is not None and state.is_final:
        remarks = (f"the run is {flow_run.state_name or state.value} and is not started any more",)
    return Subject(
        kind=Kind.FLOW_RUN,
        title=flow_run.name,
        id=flow_run.id,
        flow_run=flow_run,
        pool=flow_run.work_pool_name,
        remarks=remarks,
    )


def _subject_of_deployment(deployment: Deployment, question: Question) -> Subject:
    paused = ("the deployment is paused: its schedules make no runs",) if deployment.paused else ()
    return Subject(
        kind=Kind.DEPLOYMENT,
        title=deployment.name,
        id=deployment.id,
        flow_run=_next_run(question.job_variables, deployment_id=deployment.id, flow_id=deployment.flow_id),
        pool=deployment.work_pool_name,
        remarks=paused,
    )


def _next_run(
    job_variables: Mapping[str, Any], *, deployment_id: UUID | None = None, flow_id: UUID | None = None
) -> FlowRun:
    known = {
        "deployment_id": str(deployment_id) if deployment_id else None,
        "flow_id": str(flow_id) if flow_id else None,
        "job_variables": dict(job_variables),
    }
    run = FlowRun.read({**known, "id": str(NEXT_RUN), "name": UNKNOWN_NAME})
    # What `{{ ctx.flow_run.id }}` in a name leads to.
    return run.model_copy(update={"raw": {**run.raw, "id": UNKNOWN_ID}})


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None


def _hint(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f": did you mean {_offer(close)}?"
    if not names:
        return ", nor any other"
    some = sorted(names)[:_OFFERED]
    return f"; it has {', '.join(map(repr, some))}{' and more' if len(names) > len(some) else ''}"


def _offer(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
