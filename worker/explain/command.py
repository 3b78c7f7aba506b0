"""`headrace explain`, from its flags to its exit code.

Owns the choice between a file and the server, what is read from the flags, and the sentences for what went
wrong on the way. What is told is `offline`'s (of a file) and `server`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import anyio

from worker import log
from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Misconfigured, NotAnApi, Unauthorized
from worker.api.transport import Patience
from worker.configuration import ConfigurationError, read_settings
from worker.explain.diff import diff_as_json, diff_as_text
from worker.explain.report import Report, as_text, report_as_json
from worker.explain.secrets import Discretion
from worker.explain.server import Explainer, Here
from worker.explain.subject import Kind, NoSuchSubject, Question
from worker.explain.table import printable, terminal_width
from worker.processes.interpreter import InterpreterError, inspect_interpreter
from worker.processes.interpreters import Interpreters
from worker.processes.launch_foresight import foresee
from worker.processes.launch_problems import LaunchSpec
from worker.processes.tree import become_subreaper
from worker.runs.job_variables import JobVariablesMode
from worker.runs.start_method import StartMethod, forkserver_environment, why_never_warm
from worker.settings import Settings
from worker.state_directory import default_name

EXIT_STARTS = 0
EXIT_COULD_NOT_START = 1
EXIT_USAGE = 2
EXIT_CREDENTIALS = 3
EXIT_NOT_FOUND = 4
EXIT_UNREACHABLE = 5
EXIT_INTERRUPTED = 130  # as a shell tells SIGINT

# Seconds for each answer about what was asked; then for everything else, an automation's event included.
PATIENCE = 10.0
LIMIT = 120.0


class UsageError(Exception):
    """Flags that do not go together; the message says which."""


def explain_objects(arguments: argparse.Namespace, *, stdout: TextIO, stderr: TextIO) -> int:
    """Explain what the flags name on the server; returns the exit code."""
    try:
        questions = _questions(arguments)
        settings = read_settings(arguments, purpose="explain what is on a server")
    except (UsageError, ConfigurationError) as error:
        stderr.write(f"headrace: {error}\n")
        return EXIT_USAGE
    redactor = log.Redactor(settings.api.secrets())
    # What goes wrong is said in one sentence at the end; warnings of an outage on the way would only repeat it.
    log.configure(chosen_format=settings.logging.format, level="error", redactor=redactor)
    discretion = Discretion(show=arguments.show_secrets, redact=redactor.text)
    try:
        reports = anyio.run(_explain_all, arguments, settings, redactor, questions)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ApiError, NoSuchSubject, TimeoutError) as error:
        code, sentence = _what_happened(error, settings)
        stderr.write(f"headrace: {discretion.text(sentence)}\n")
        return code
    width = terminal_width(stdout)
    stdout.write(printable(_output(reports, discretion, width, as_json=arguments.json) + "\n", stdout))
    return EXIT_STARTS if all(report.problem is None for report in reports) else EXIT_COULD_NOT_START


def _questions(arguments: argparse.Namespace) -> tuple[Question, ...]:
    job_variables = parse_job_variables(arguments.job_variable)
    if job_variables and not (arguments.deployment or arguments.pool):
        raise UsageError(
            "-jv sets variables of a run that does not exist yet: give it with --deployment or --pool"
        )
    if arguments.diff:
        return tuple(Question(None, name) for name in arguments.diff)
    named = (
        (Kind.FLOW_RUN, arguments.flow_run),
        (Kind.DEPLOYMENT, arguments.deployment),
        (Kind.WORK_POOL, arguments.pool),
    )
    return tuple(Question(kind, name, job_variables) for kind, name in named if name is not None)


def parse_job_variables(given: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE as `prefect deployment run --job-variable` does: JSON, else text. Raises UsageError.

    Text is what JSON cannot begin with and what has no double quote in it: broken objects and strings are
    refused, `a=b` and `on` are not. Without `=` the value is empty text.
    """
    parsed: dict[str, Any] = {}
    for spec in given:
        key, _, value = spec.partition("=")
        try:
            parsed[key] = _json_or_text(value)
        except (ValueError, RecursionError) as error:
            # The value may be secret, and so may what a longer message quotes of it.
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise UsageError(
                f"the value of -jv {key}=… is neither JSON nor plain text ({reason});"
                f" text with braces or quotes is given as a JSON string: -jv '{key}=\"…\"'"
            ) from None
    return parsed


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        if '"' not in value and ("Extra data" in error.msg or "Expecting value" in error.msg):
            return json.loads(f'"{value}"')
        raise


async def _explain_all(
    arguments: argparse.Namespace,
    settings: Settings,
    redactor: log.Redactor,
    questions: Sequence[Question],
) -> list[Report]:
    with anyio.fail_after(LIMIT):
        async with PrefectClient(settings=settings.api, worker_name=None, random=random.random) as client:
            explainer = Explainer(
                client=client,
                here=_here(arguments, settings, os.environ),
                hide=redactor.hide,
                sleep=anyio.sleep,
                patience=lambda: Patience(deadline=anyio.current_time() + PATIENCE),
            )
            return [await explainer.explain(question, everything=arguments.all_env) for question in questions]


def _here(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> Here:
    name: str | None = arguments.name
    own = settings.child_environment
    python = settings.headrace.python or sys.executable
    method = StartMethod(settings.headrace.start_method)
    interpreters = Interpreters()

    async def look(spec: LaunchSpec, *, fresh_directory: bool, engine: bool) -> str | None:
        try:
            if engine and spec.argv[0] != python:
                await interpreters.check(spec.argv[0], environment=spec.env)
            problem = foresee(spec, fresh_directory=fresh_directory)
            if problem is None and engine and spec.argv[0] == python:
                await inspect_interpreter(python)
        except InterpreterError as error:
            return str(error)
        return problem

    return Here(
        mode=JobVariablesMode(settings.headrace.job_variables),
        python=python,
        name=lambda pool: name or default_name(pool, hostname=socket.gethostname()),
        environment=dict(environ),
        settings=own,
        sources=settings.sources,
        forkserver_environment=forkserver_environment(worker_environment=environ, settings=own),
        never_warm=why_never_warm(method, subreaper=become_subreaper()),
        foresee=None if arguments.any_machine else look,
    )


def _what_happened(error: Exception, settings: Settings) -> tuple[int, str]:
    match error:
        case NoSuchSubject():
            return EXIT_NOT_FOUND, str(error)
        case Unauthorized():
            return EXIT_CREDENTIALS, f"the server refused our credentials: {error}"
        case NotAnApi() | Misconfigured():
            return EXIT_USAGE, str(error)
        case TimeoutError():
            return EXIT_UNREACHABLE, f"the server stopped answering; gave up after {LIMIT:g} s"
        case _:
            source = settings.sources.get("PREFECT_API_URL", "default")
            return (
                EXIT_UNREACHABLE,
                f"no answer from {settings.api.url} (PREFECT_API_URL from {source}): {error}",
            )


def _output(reports: Sequence[Report], discretion: Discretion, width: int | None, *, as_json: bool) -> str:
    if not as_json:
        if len(reports) == 1:
            return as_text(reports[0], discretion, width=width)
        return diff_as_text(reports[0], reports[1], discretion, width=width)
    documents = [report_as_json(report, discretion) for report in reports]
    if len(reports) == 1:
        return json.dumps(documents[0], indent=2)
    a, b = reports
    return json.dumps(diff_as_json(a, b, (documents[0], documents[1]), discretion), indent=2)
