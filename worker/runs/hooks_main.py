"""The process that runs a flow's hooks after the flow's own process has died; executed by path, never imported.

`python hooks_main.py on_cancellation|on_crashed STATE`, with STATE as JSON (`type`, `name`, `message`) and the run's id
in PREFECT__FLOW_RUN_ID, started by `hooks.HookRunner` with the flow's interpreter, environment and directory.

Owns: finding the flow as the engine would, and calling its hooks one by one. Does not own: whether hooks are due, how
long they may take, and the run's state: nothing is reported from here.

It imports the standard library and Prefect only. Nothing of `worker` may get into `sys.modules`, and this file's
directory must not stay on `sys.path`: flows have modules of their own called `worker` or `states`.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow

    Hook = Callable[..., object]

KINDS = ("on_cancellation", "on_crashed")
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"
FLOW_ENTRYPOINT = "PREFECT__FLOW_ENTRYPOINT"
# How `HookRunner` recognises the line that says why, among all that the flow's code may print.
REASON = "hooks not run: "
USAGE = 2


def main(arguments: Sequence[str]) -> int:
    """Run the hooks; 0 also if there are none or some of them failed, 1 if the flow could not be loaded."""
    if len(arguments) != 2 or arguments[0] not in KINDS:  # noqa: PLR2004 - the two of the usage line
        _complain(f"usage: hooks_main.py {'|'.join(KINDS)} STATE")
        return USAGE
    kind, given = arguments[0], json.loads(arguments[1])
    _look_like_the_engine()
    try:
        flow_run, flow = _load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the flow's code runs here, and may raise anything
        _complain(f"{REASON}{_in_a_line(error)}")
        _flush_logs()
        return 1
    hooks: list[Hook] = getattr(flow, f"{kind}_hooks", None) or []
    state = _state(flow_run, given)
    for hook in hooks:
        _run_hook(hook, kind, flow, flow_run, state)
    _flush_logs()
    return 0


def _look_like_the_engine() -> None:
    """Make argv and the module path what they are under `python -m prefect.engine`."""
    sys.argv[1:] = []
    if not sys.flags.isolated and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()  # noqa: PTH109 - a string, as `-m` has it


def _load() -> tuple[FlowRun, Flow[..., Any]]:
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - only now is sys.path the engine's
    from prefect.flow_engine import load_flow_and_flow_run  # noqa: PLC0415 - same

    flow_run_id = UUID(os.environ[FLOW_RUN_ID])
    if not os.environ.get(FLOW_ENTRYPOINT):
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(flow_run_id)
            code_is_here = _code_is_here(flow_run, client)
        if code_is_here:
            return flow_run, _load_from_here(flow_run)
    return load_flow_and_flow_run(flow_run_id)


def _code_is_here(flow_run: FlowRun, client: SyncPrefectClient) -> bool:
    """Whether the dead process had copied the flow's file to where we are.

    It is taken as it is then: it is the code that ran, and its source may have changed or gone meanwhile. After pull
    steps nobody knows where they led to, so they are run again.
    """
    if flow_run.deployment_id is None:
        return False
    deployment = client.read_deployment(flow_run.deployment_id)
    file, colon, _ = (deployment.entrypoint or "").rpartition(":")
    return bool(colon) and not deployment.pull_steps and Path(file).is_file()


def _load_from_here(flow_run: FlowRun) -> Flow[..., Any]:
    from prefect.flows import load_flow_from_flow_run  # noqa: PLC0415 - only now is sys.path the engine's
    from prefect.utilities.asyncutils import run_coro_as_sync  # noqa: PLC0415 - same

    sys.path.insert(0, ".")  # as it is after the copying
    return run_coro_as_sync(
        load_flow_from_flow_run(flow_run, ignore_storage=True, use_placeholder_flow=False)
    )


def _state(flow_run: FlowRun, given: dict[str, str | None]) -> State:
    """The state the hooks are told: the run's own if the server still has it, with its id and time."""
    from prefect.client.schemas.objects import State, StateType  # noqa: PLC0415 - only now is sys.path the engine's

    state_type = StateType(given["type"])
    if flow_run.state is not None and flow_run.state.type is state_type:
        return flow_run.state
    return State(type=state_type, name=given["name"], message=given["message"])


def _run_hook(hook: Hook, kind: str, flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Call one hook on the main thread, outside of any event loop, as the engine calls those of a sync flow."""
    from prefect.logging.loggers import flow_run_logger  # noqa: PLC0415 - only now is sys.path the engine's
    from prefect.utilities.asyncutils import run_coro_as_sync  # noqa: PLC0415 - same

    logger = flow_run_logger(flow_run, flow)
    name = _name(hook)
    logger.info("Calling %s hook %r: the run is %s", kind, name, state.name)
    try:
        result = hook(flow, flow_run, state)
        if inspect.isawaitable(result):
            run_coro_as_sync(_awaited(result))
    except (Exception, SystemExit):
        logger.exception("%s hook %r failed", kind, name)
    else:
        logger.info("%s hook %r has finished", kind, name)


async def _awaited(result: Awaitable[object]) -> None:
    await result


def _name(hook: Hook) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__name__", type(hook).__name__)


def _flush_logs() -> None:
    """Wait until what was logged has been sent to the server."""
    try:
        from prefect.logging.handlers import APILogHandler  # noqa: PLC0415 - only now is sys.path the engine's
    except ImportError:
        return  # then nothing was logged through it, and why is being told
    APILogHandler().flush()


def _complain(line: str) -> None:
    """Write to standard error itself: the flow's code may have put something else in `sys.stderr`."""
    os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
