"""A flow's `on_cancellation` and `on_crashed` hooks after a hard death of its process.

Owns: when they are ours to run, and the helper process that runs them (`hooks_main`) with the flow's interpreter,
environment and directory. Does not own: the hooks that the engine runs itself, which are those of a cancel that it
acknowledged and carried out, and of a crash that it reported (PROTOCOL 4.2, 4.6); and the run's state.
"""

import json
import tempfile
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import assert_never
from uuid import UUID

import anyio
import structlog

from worker.api.models import State, StateType
from worker.processes.launch_problems import LaunchError, LaunchSpec
from worker.processes.launcher import Launcher
from worker.processes.output import Mask, follow, tail
from worker.processes.process import Exit, ProcessHandle
from worker.processes.process_table import Marker
from worker.runs.conclusion import Verdict
from worker.runs.launch_spec import FLOW_RUN_ID

HELPER = Path(__file__).with_name("hooks_main.py")
# The helper's word for what kept it from running the hooks, at the start of a line of its output.
REASON = "hooks not run: "
# The message of the Cancelling state that the engine writes, by force, before it runs its own hooks (PROTOCOL 4.2).
ENGINE_CANCELLING = "Flow run was cancelled."
# The control channel is for one process and was used up by it; a helper must not be taken for the engine.
_ENGINE_ONLY = ("PREFECT__CONTROL_PORT", "PREFECT__CONTROL_TOKEN")
_ENGINES = ("prefect.engine", "prefect.flow_engine")
_LONGEST_MESSAGE = 8 * 1024
_LONGEST_NAME = 1024
_LAST_WORDS = 16 * 1024


class HookKind(StrEnum):
    """Which hooks; the value is the name of the flow decorator's argument."""

    CANCELLATION = "on_cancellation"
    CRASHED = "on_crashed"


def hooks_due(
    *,
    verdict: Verdict,
    accepted: bool,
    launched: bool,
    concluded: bool,
    state: State | None,
) -> HookKind | None:
    """Which hooks are ours to run for an attempt that has ended; None if none are.

    `verdict` is what the daemon has concluded. For Crashed, `accepted` says whether the server took it, and hooks come
    after; for Cancelled they come before, and it says nothing. `launched`: a process of the run was started, even if it
    never reached Running (Prefect tries then, too). `concluded`: the engine sent a receipt of whichever disposition.
    `state`: the run's, as read after the process's end and before Cancelled is proposed.

    Hooks are begun at most once. What the engine has begun is not begun again, even if it was killed half-way: nobody
    can know how far it came, and what hung once will hang again.
    """
    if not launched or concluded:
        return None
    match verdict:
        case Verdict.SETTLED | Verdict.RESCHEDULED:
            return None
        case Verdict.CRASHED:
            return HookKind.CRASHED if accepted else None
        case Verdict.CANCELLED:
            return None if engine_has_begun(state) else HookKind.CANCELLATION
        case _:
            assert_never(verdict)


def engine_has_begun(state: State | None) -> bool:
    """Whether a run's engine is at its `on_cancellation` hooks, or was when it died.

    It writes a Cancelling of its own right before them, also over one that is there already. Nothing else in Prefect
    writes one with this message; and what is decided by the state holds for a daemon that has only just come, too.
    """
    return state is not None and state.type is StateType.CANCELLING and state.message == ENGINE_CANCELLING


def state_to_tell(kind: HookKind, state: State | None, *, message: str) -> State:
    """What hooks are told: the run's state if it is of their type, else one as it would have been, with `message`."""
    state_type = StateType.CANCELLING if kind is HookKind.CANCELLATION else StateType.CRASHED
    if state is not None and state.type is state_type:
        return state
    return State(type=state_type, name=state_type.value.capitalize(), message=message)


class HookRunner:
    """Runs hooks in a process of their own; one for the daemon's life."""

    def __init__(self, *, launcher: Launcher, mask: Mask | None = None) -> None:
        self._launcher = launcher
        self._mask = mask
        self._log = structlog.get_logger()

    async def run(
        self,
        kind: HookKind,
        *,
        spec: LaunchSpec,
        python: str,
        flow_run_id: UUID,
        state: State,
        output: Path,
        marker: Marker | None = None,
        timeout: float,
        print_line: Callable[[str], None] | None = None,
    ) -> str | None:
        """Run the flow's hooks of this kind; None when they were run or there are none, else why not, in a sentence.

        `spec` is what the dead process was started with, and `python` the interpreter if its command does not tell.
        `state` is what the hooks are told, unless the server has a state of this type itself. They and what they start
        have `timeout` seconds. `marker` is the attempt's, so that whoever ends what is left of it ends them, too. `output` is appended to; lines that are added go to `print_line` as they come. Raises
        nothing but cancellation, and no process is left then.
        """
        try:
            offset = _size(output)
            with _directory(spec.cwd, beside=output) as cwd:
                helper = helper_spec(kind, spec, python=python, flow_run_id=flow_run_id, state=state, cwd=cwd)
                handle = self._launcher.launch(helper, output=output, marker=marker)
                printing = partial(self._print, output, offset, print_line) if print_line else None
                ended = await _finish(handle, timeout, printing)
            if ended is None:
                return f"The {kind} hooks did not end within {timeout:g} s and were killed."
            return _judge(kind, ended, output, offset)
        except (LaunchError, OSError) as error:
            return f"The {kind} hooks could not be run: {error}."

    async def _print(
        self, output: Path, offset: int, print_line: Callable[[str], None], done: anyio.Event
    ) -> None:
        try:
            await follow(output, sink=print_line, done=done, offset=offset, mask=self._mask)
        except OSError as error:
            self._log.warning("output.unreadable", reason=str(error))


async def _finish(
    handle: ProcessHandle,
    timeout: float,
    printing: Callable[[anyio.Event], Coroutine[None, None, None]] | None,
) -> Exit | None:
    """Wait for the helper's end; None if it had to be killed. Nothing of it is left in any case."""
    done = anyio.Event()
    async with anyio.create_task_group() as beside:
        if printing is not None:
            beside.start_soon(printing, done)
        try:
            with anyio.move_on_after(timeout):
                return await handle.wait()
            return None
        finally:
            with anyio.CancelScope(shield=True):
                await handle.kill_tree()
            handle.close()
            done.set()


def helper_spec(
    kind: HookKind, spec: LaunchSpec, *, python: str, flow_run_id: UUID, state: State, cwd: Path
) -> LaunchSpec:
    """What the helper is started with: the dead process's interpreter and environment, without its control channel.

    The state is in its arguments, as ASCII and not too long for one; it is a fallback only (`hooks_main`).
    """
    told = {
        "type": state.type.value,
        "name": state.name[:_LONGEST_NAME],
        "message": (state.message or "")[:_LONGEST_MESSAGE],
    }
    env = {name: value for name, value in spec.env.items() if name not in _ENGINE_ONLY}
    return LaunchSpec(
        argv=(*interpreter(spec.argv, default=python), str(HELPER), kind.value, json.dumps(told)),
        env={**env, FLOW_RUN_ID: str(flow_run_id)},
        cwd=cwd,
        stream_output=spec.stream_output,
    )


def interpreter(argv: tuple[str, ...], *, default: str) -> tuple[str, ...]:
    """The words that start the flow's Python: those before `-m prefect.engine`, with their options and wrappers."""
    for position in range(1, len(argv) - 1):
        if argv[position] == "-m" and argv[position + 1] in _ENGINES:
            return argv[:position]
    return (default,)


@contextmanager
def _directory(wanted: Path, *, beside: Path) -> Generator[Path]:
    """The run's own directory while it exists, else an empty one."""
    if wanted.is_dir():
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="hooks-", dir=beside.parent) as fresh:
        yield Path(fresh)


def _judge(kind: HookKind, ended: Exit, output: Path, offset: int) -> str | None:
    if ended.status_code == 0:
        return None
    lines = tail(output, max_bytes=min(_LAST_WORDS, max(0, _size(output) - offset)))
    reasons = [line.removeprefix(REASON) for line in lines if line.startswith(REASON)]
    if reasons:
        return f"The {kind} hooks could not be run: {reasons[-1]}"
    return f"The process that ran the {kind} hooks ended with {ended.describe()}; its output says why."


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
