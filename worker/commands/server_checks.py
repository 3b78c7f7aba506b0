"""What `headrace doctor` asks the server.

Owns the order of asking. What the answers mean is `server_findings`. Nothing is created or changed; every question has a
time limit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Misconfigured
from worker.api.models import WorkPool
from worker.api.probe import count_work_pools, reach, sign_in_to_events, wants_csrf_tokens
from worker.api.transport import Patience
from worker.commands.checks import Check, fail, ok, skipped
from worker.commands.server_findings import (
    judge_clock,
    judge_credentials,
    judge_csrf,
    judge_pool,
    judge_reached,
    judge_template,
    judge_tls,
    judge_version,
    judge_websocket,
    skew,
)
from worker.runs.api_references import ApiReferences
from worker.runs.job_variables import Inputs, JobVariablesError, JobVariablesMode, resolve
from worker.runs.work_pool import PROCESS
from worker.settings import Settings

LIMIT: Final = 15.0
TRIES: Final = 3
NAMES: Final = (
    "server",
    "tls",
    "clock",
    "credentials",
    "csrf",
    "version",
    "websocket",
    "work pool",
    "template",
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about: the settings, the pool that is to be served, and the environment for its template."""

    settings: Settings
    pool: str | None
    environ: Mapping[str, str]


async def examine_server(question: Question, tell: Callable[[Check], None]) -> str | None:
    """Tell of every check of `NAMES`; returns the server's version as far as it is known."""
    settings = question.settings.api
    if not settings.url:
        tell(
            fail(
                "server",
                "PREFECT_API_URL is not set",
                "Set it to the address of the server's API, such as http://127.0.0.1:4200/api, in the environment or with"
                " `prefect config set`",
            )
        )
        _skip(tell, NAMES[1:], "no server is known")
        return None
    try:
        async with PrefectClient(settings=settings, worker_name=None, random=random.random) as client:
            return await _ask(client, question, tell)
    except Misconfigured as error:
        tell(fail("server", error.reason, "Correct that setting"))
        _skip(tell, NAMES[1:], "the server cannot be asked")
        return None


async def _ask(client: PrefectClient, question: Question, tell: Callable[[Check], None]) -> str | None:
    settings = question.settings.api
    reached = await _answer(lambda: reach(client.transport.http, settings, client.url, timeout=LIMIT))
    tell(judge_reached(client.url, reached))
    if isinstance(reached, ApiError) or not reached.healthy:
        _skip(tell, NAMES[1:], "the server has to be reached first")
        return None
    tell(judge_tls(settings, reached, now=time.time()))
    tell(judge_clock(skew(reached)))
    pools = await _answer(lambda: count_work_pools(client.transport, _patience()))
    tell(judge_credentials(settings, pools))
    if isinstance(pools, ApiError):
        _skip(tell, NAMES[4:], "the server has to answer our calls first")
        return None
    if settings.is_cloud:
        tell(ok("csrf", "not used by Prefect Cloud"))
    else:
        tell(judge_csrf(await _answer(lambda: wants_csrf_tokens(client.transport, _patience()))))
    version = await _answer(lambda: client.read_server_version(**_patience()))
    tell(judge_version(version))
    tell(judge_websocket(await _answer(lambda: sign_in_to_events(client.transport, settings, timeout=LIMIT))))
    await _ask_about_pool(client, question, tell)
    return version if isinstance(version, str) else None


async def _ask_about_pool(client: PrefectClient, question: Question, tell: Callable[[Check], None]) -> None:
    name = question.pool
    if name is None:
        _skip(tell, NAMES[7:], "name the pool with --pool to have it looked at")
        return
    pool = await _answer(lambda: client.read_work_pool(name, **_patience()))
    tell(judge_pool(name, pool))
    if isinstance(pool, ApiError) or pool.type != PROCESS:
        _skip(tell, NAMES[8:], "there is no process pool of that name yet")
        return
    tell(judge_template(pool, await _template_error(client, question, pool)))


async def _template_error(client: PrefectClient, question: Question, pool: WorkPool) -> str | None:
    """Why a run that sets no job variables could not be started; None if it could."""
    inputs = Inputs(
        base_job_template=pool.base_job_template,
        deployment_job_variables={},
        flow_run_job_variables={},
        process_env=question.environ,
        context={},
    )
    references = ApiReferences(client=client, hide=lambda _secret: None)
    mode = JobVariablesMode(question.settings.headrace.job_variables)
    try:
        with anyio.fail_after(LIMIT):
            await resolve(inputs, references, mode)
    except TimeoutError:
        return f"what it refers to could not be read within {LIMIT:g} s"
    except (JobVariablesError, ApiError) as error:
        return str(error)
    return None


async def _answer(ask: Callable[[], Awaitable[T]]) -> T | ApiError:
    try:
        return await ask()
    except ApiError as error:
        return error


def _patience() -> Patience:
    return {"max_tries": TRIES, "deadline": anyio.current_time() + LIMIT}


def _skip(tell: Callable[[Check], None], names: tuple[str, ...], why: str) -> None:
    for name in names:
        tell(skipped(name, why))
