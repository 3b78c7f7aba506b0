"""`headrace stop`: cancel a run through the server, as Prefect's UI does; whoever has the run then ends it.

Owns which run is meant and what the server's answer is called. No process is signalled from here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TextIO
from uuid import UUID

import anyio

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.api.models import FlowRun, SetStateAnswer, SetStateStatus, StateType
from worker.commands.connection import connected
from worker.commands.daemons import Attempt, as_run_id, attempts, find_daemons, the_one
from worker.commands.session import EXIT_DONE, EXIT_FAILED, CommandError
from worker.settings import Settings

_PATIENCE: Final = 10.0
_LOOK_INTERVAL: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    """How the run stands; `stopping` says whether that is what was asked for."""

    stopping: bool
    state_type: StateType | None
    state_name: str
    message: str


def stop(arguments: argparse.Namespace, settings: Settings, *, stdout: TextIO) -> int:
    """Cancel the run; with `--wait` wait until its state is final. Raises CommandError."""
    here = _here(arguments.run, settings)
    if here is not None and here.daemon.pid is None:
        print(f"headrace: {unattended(here)}", file=sys.stderr)
    run_id = as_run_id(arguments.run) or (here and here.entry.flow_run_id)
    run, answered = anyio.run(_stop, settings, run_id, arguments.run, arguments.wait)
    if arguments.json:
        report = {
            "flow_run_id": str(run.id),
            "name": run.name,
            "state_type": answered.state_type and answered.state_type.value,
            "state_name": answered.state_name,
            "stopping": answered.stopping,
            "message": answered.message,
        }
        stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        stdout.write(f"run {run.name} ({run.id}) {answered.message}\n")
    return EXIT_DONE if answered.stopping else EXIT_FAILED


def _here(text: str, settings: Settings) -> Attempt | None:
    """The attempt at the run on this machine, if it is here. Raises CommandError."""
    try:
        return the_one(attempts(find_daemons(settings.headrace.state_dir, pool=None, name=None)), text)
    except CommandError:
        if as_run_id(text) is None:
            raise
        return None  # with the whole id, whether it is here is only good to know


def unattended(attempt: Attempt) -> str:
    """That nobody is there to carry out the cancel."""
    daemon = attempt.daemon
    return (
        f"the daemon that has this run does not run (name {daemon.name}, pool {daemon.pool or 'unknown'}):"
        " start it again, and it ends the run"
    )


async def _stop(settings: Settings, run_id: UUID | None, text: str, wait: bool) -> tuple[FlowRun, Answered]:
    async with connected(settings) as client:
        run = await _find(client, run_id, text)
        answered = judge_answer(await _cancel(client, run.id))
        if wait and answered.stopping:
            answered = judge_end(await _final(client, run.id))
    return run, answered


async def _find(client: PrefectClient, run_id: UUID | None, text: str) -> FlowRun:
    deadline = anyio.current_time() + _PATIENCE
    if run_id is not None:
        try:
            return await client.read_flow_run(run_id, deadline=deadline)
        except NotFound as error:
            raise CommandError(f"the server has no flow run {run_id}") from error
    return choose(await client.flow_runs_named(text, deadline=deadline), text)


async def _cancel(client: PrefectClient, run_id: UUID) -> SetStateAnswer:
    deadline = anyio.current_time() + _PATIENCE
    return await client.set_state(run_id, type=StateType.CANCELLING, deadline=deadline)


async def _final(client: PrefectClient, run_id: UUID) -> FlowRun:
    """Wait, through outages as well, until the run's state is final."""
    while True:
        run = await client.read_flow_run(run_id)
        if run.state_type is not None and run.state_type.is_final:
            return run
        await anyio.sleep(_LOOK_INTERVAL)


def choose(found: Sequence[FlowRun], name: str) -> FlowRun:
    """The run that is meant by a name: the one that goes on, else the latest. Raises CommandError."""
    going_on = [run for run in found if run.state_type is None or not run.state_type.is_final]
    if len(going_on) > 1:
        lines = "".join(f"\n  {run.id}  {run.state_name}" for run in going_on)
        raise CommandError(f"several runs are called {name!r}; give the id of one:{lines}")
    if not found:
        raise CommandError(
            f"no run is called {name!r}, neither here nor on the server (the beginning of an id is known for runs in"
            " flight on this machine only): give the whole id"
        )
    return (going_on or list(found))[0]


def judge_answer(answer: SetStateAnswer) -> Answered:
    """What the server's answer to Cancelling means (PROTOCOL 2.6, 5.1)."""
    state = answer.state
    if state is None:
        return Answered(
            stopping=answer.accepted,
            state_type=None,
            state_name="",
            message="is being cancelled" if answer.accepted else f"was not cancelled: {answer.reason}",
        )
    ended = state.type.is_final
    match answer.status, state.type:
        case _, StateType.CANCELLING:
            stopping, message = True, "is being cancelled"
        case SetStateStatus.REJECT, StateType.CANCELLED:
            # The server writes it at once for a run that nobody has begun.
            stopping, message = True, "is Cancelled: nobody had begun it"
        case _:
            why = f"has ended already, as {state.name}" if ended else f"was not cancelled: {answer.reason}"
            stopping, message = False, why
    return Answered(stopping=stopping, state_type=state.type, state_name=state.name, message=message)


def judge_end(run: FlowRun) -> Answered:
    """How a run ended that was being cancelled."""
    cancelled = run.state_type is StateType.CANCELLED
    name = run.state_name or ""
    message = f"is {name}" if cancelled else f"ended as {name} before it could be cancelled"
    return Answered(stopping=cancelled, state_type=run.state_type, state_name=name, message=message)
