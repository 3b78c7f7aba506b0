"""`headrace doctor`: everything a daemon needs, checked one by one, with what to do about each finding.

Owns the order of the checks and the exit code. It changes nothing: no pool is created, no heartbeat sent, no directory made.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import TextIO

import anyio

from worker import __version__, log, state_directory
from worker.commands import machine_checks
from worker.commands.checks import Check, Status, fail, line, ok, report, skipped, warn
from worker.commands.server_checks import NAMES, Question, examine_server
from worker.commands.session import EXIT_DONE, EXIT_FAILED, settings_for
from worker.configuration import default_name
from worker.processes.kernel import has_pidfd, has_subreaper, read_limits
from worker.processes.machine import available_memory
from worker.settings import Settings, SettingsError


def doctor(arguments: argparse.Namespace, *, stdout: TextIO) -> int:
    """Check, and say so; 1 if anything failed."""
    found: list[Check] = []

    def tell(check: Check) -> None:
        found.append(check)
        if not arguments.json:
            stdout.write(line(check) + "\n")
            stdout.flush()

    anyio.run(_examine, arguments, tell)
    if arguments.json:
        stdout.write(json.dumps(report(found), indent=2) + "\n")
    return EXIT_FAILED if any(check.status is Status.FAIL for check in found) else EXIT_DONE


async def _examine(arguments: argparse.Namespace, tell: Callable[[Check], None]) -> None:
    log.configure(chosen_format="console", level="critical", redactor=log.Redactor(), stream=sys.stderr)
    tell(ok("headrace", f"version {__version__}"))
    try:
        settings = settings_for(arguments)
    except SettingsError as error:
        tell(fail("settings", str(error), "All else depends on it"))
        for name in (*NAMES, "interpreter", "fork server", "state directory", "disk", "memory"):
            tell(skipped(name, "the settings have to be readable first"))
    else:
        tell(judge_settings(settings))
        await _examine_with(settings, arguments, tell)
    tell(machine_checks.judge_limits(read_limits()))
    tell(machine_checks.judge_kernel(pidfd=has_pidfd(), subreaper=has_subreaper()))


async def _examine_with(
    settings: Settings, arguments: argparse.Namespace, tell: Callable[[Check], None]
) -> None:
    version = await examine_server(
        Question(settings=settings, pool=arguments.pool, environ=dict(os.environ)), tell
    )
    python = settings.headrace.python or sys.executable
    check, interpreter = await machine_checks.examine_interpreter(python, server_version=version)
    tell(check)
    if interpreter is None:
        tell(skipped("fork server", "the interpreter has to be well first"))
    else:
        tell(await machine_checks.examine_fork_server(python, settings, dict(os.environ)))
    for finding in _examine_state(settings, arguments):
        tell(finding)
    tell(
        machine_checks.judge_memory(
            available_memory(), least=settings.headrace.min_free_memory, limits=read_limits()
        )
    )


def _examine_state(settings: Settings, arguments: argparse.Namespace) -> list[Check]:
    root, pool = settings.headrace.state_dir, arguments.pool
    if pool is None:
        place = machine_checks.look_at(root.expanduser())
        return machine_checks.judge_place(place, worker_known=False)
    name = arguments.name or default_name(pool, hostname=socket.gethostname())
    path = state_directory.path_for_worker(root, api_url=settings.api.url or "", pool=pool, name=name)
    return machine_checks.judge_place(machine_checks.look_at(path), worker_known=True)


def judge_settings(settings: Settings) -> Check:
    """Whether all that is set was understood, and where from."""
    profile = f"profile {settings.profile!r}" if settings.profile else "no profile"
    if settings.warnings:
        return warn("settings", "; ".join(settings.warnings), "Correct or remove it")
    return ok("settings", f"read ({profile}; {len(settings.sources)} set)")
