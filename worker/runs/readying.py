"""Getting a run's process ready to start, beside its claim.

Neither needs the other: what is to be started is read and resolved, and a process is made that waits for the word, while
the server decides about the claim. A process gets the word only once the claim is won; one that was made in vain is gone
when that is known. Owns the two going on side by side. Does not own claiming (`claims`), resolving (`preparation`) and
making processes (`start_method`).
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
from structlog.contextvars import bind_contextvars

from worker.api.models import FlowRun
from worker.processes.launch_problems import LaunchError
from worker.processes.process_table import Marker
from worker.runs.launch_spec import ControlAddress
from worker.runs.preparation import Preparation, Prepared
from worker.runs.start_method import Ready, Starter
from worker.runs.workspace import Workspace

# How long before its run is claimed a start may have been begun, in seconds. Claims take that long where a server is away.
LONGEST_BEFORE_CLAIM = 5.0


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started, and the process that waits for the word, or why there can be none."""

    prepared: Prepared
    ready: Ready | LaunchError


class Readying:
    """Gets processes ready; one for the daemon's life."""

    def __init__(self, *, preparation: Preparation, starter: Starter) -> None:
        self._preparation = preparation
        self._starter = starter

    async def make(
        self,
        stack: AsyncExitStack,
        flow_run: FlowRun,
        *,
        workspace: Workspace,
        address: ControlAddress,
        marker: Marker,
    ) -> Start:
        """Resolve the run and have its process wait; what is not started is gone when `stack` is left.

        Raises Unpreparable and DeploymentGone. The log events from here on name what the run belongs to.
        """
        prepared = await self._preparation.prepare(flow_run, control=address, fresh_directory=workspace.work)
        bind_contextvars(**prepared.names())
        ready = self._starter.ready(
            prepared.spec,
            command_configured=prepared.job.command is not None,
            pull_steps=prepared.deployment.pull_steps if prepared.deployment else None,
            output=workspace.output,
            marker=marker,
        )
        try:
            return Start(prepared, await stack.enter_async_context(ready))
        except LaunchError as error:
            return Start(prepared, error)


async def beside(
    claim: Callable[[], Awaitable[bool]],
    make: Callable[[], Awaitable[Start]],
    discard: Callable[[], Awaitable[None]],
    *,
    after: bool,
) -> Start | Exception | None:
    """Claim the run and make its start side by side; None when the claim was not won, and the start's error as it is.

    `discard` gives up what `make` has made: it is made anew where the claim took so long that what it was made from may
    be another by now. `after`: the start is begun only once the claim is won. Raises what `claim` raises.
    """
    won, failure = False, None
    outcome: Start | Exception | None = None
    began = won_at = anyio.current_time()
    decided = anyio.Event()

    async def win() -> None:
        nonlocal won, won_at, failure
        try:
            won = await claim()
        except Exception as error:  # noqa: BLE001 - raised again below, and not in a group
            failure = error
        won_at = anyio.current_time()
        if not won:
            both.cancel_scope.cancel()
        decided.set()

    async with anyio.create_task_group() as both:
        both.start_soon(win)
        if after:
            await decided.wait()
            began = won_at
        outcome = await _outcome(make)
    if failure is not None:
        raise failure
    if not won:
        return None
    if won_at - began > LONGEST_BEFORE_CLAIM:
        await discard()
        outcome = await _outcome(make)
    return outcome


async def _outcome(make: Callable[[], Awaitable[Start]]) -> Start | Exception:
    try:
        return await make()
    except Exception as error:  # noqa: BLE001 - told when the claim is decided
        return error
