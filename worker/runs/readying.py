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
    claim: Callable[[], Awaitable[bool]], make: Callable[[], Awaitable[Start]], *, after: bool
) -> Start | Exception | None:
    """Claim the run and make its start side by side; None when the claim was not won, and the start's error as it is.

    `after`: the start is begun only once the claim is won. Raises what `claim` raises.
    """
    won, failure = False, None
    outcome: Start | Exception | None = None
    decided = anyio.Event()

    async def win() -> None:
        nonlocal won, failure
        try:
            won = await claim()
        except Exception as error:  # noqa: BLE001 - raised again below, and not in a group
            failure = error
        if not won:
            both.cancel_scope.cancel()
        decided.set()

    async with anyio.create_task_group() as both:
        both.start_soon(win)
        if after:
            await decided.wait()
        try:
            outcome = await make()
        except Exception as error:  # noqa: BLE001 - told when the claim is decided
            outcome = error
    if failure is not None:
        raise failure
    return outcome if won else None
