"""`headrace start`: from flags and settings to a running daemon, and from its end to an exit code."""

import argparse
import gc
import io
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import anyio
import structlog

from worker import console, daemon, log, output_printer, state_directory
from worker.configuration import ConfigurationError, read_settings
from worker.fatal import FatalError
from worker.lean_imports import lean_imports
from worker.options import Options
from worker.runs.job_variables_mode import JobVariablesMode
from worker.sd_notify import take_address
from worker.settings import Settings
from worker.state_directory import StateDirectory

EXIT_IN_USE = 7


def start(arguments: argparse.Namespace) -> int:
    """Serve the pool the flags name; returns the exit code. Raises ConfigurationError before anything runs."""
    pool, name = _identity(arguments)
    with lean_imports():  # reading the settings is what makes pydantic build its validators
        settings = read_settings(arguments)
    redactor = log.Redactor(settings.api.secrets())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a flow prints must be printable under any locale.
            stream.reconfigure(errors="backslashreplace")
    log.configure(
        chosen_format=settings.logging.format,
        level=settings.logging.level,
        redactor=redactor,
        color=console.wants_color(sys.stderr, os.environ, allowed=settings.logging.colors),
    )
    for warning in settings.warnings:
        structlog.get_logger().warning("settings.ignored", reason=warning)
    state = _state_directory(settings, pool, name)
    notify = take_address(os.environ, pid=os.getpid())
    options = Options(
        pool=pool,
        name=name,
        work_queues=tuple(dict.fromkeys(arguments.work_queue)),
        prefetch_seconds=_given(arguments.prefetch_seconds, settings.worker.prefetch_seconds),
        limit=arguments.limit,
        run_once=arguments.run_once,
        with_healthcheck=arguments.with_healthcheck,
        create_pool=arguments.create_pool_if_not_found,
        base_job_template=read_template(arguments.base_job_template),
        job_variables=JobVariablesMode(settings.headrace.job_variables),
        python=settings.headrace.python or sys.executable,
        state=state,
        environment=dict(os.environ),
        print_output=output_printer.printer(
            as_json=log.is_json(settings.logging.format, sys.stderr),
            redactor=redactor,
            stream=sys.stdout,
            color=console.wants_color(sys.stdout, os.environ, allowed=settings.logging.colors),
        ),
        hide=redactor.hide,
        redact=redactor.text,
        mask=redactor,
        announce=_announce,
        notify=notify,
    )
    return _serve_alone(options, settings)


def _serve_alone(options: Options, settings: Settings) -> int:
    try:
        with options.state.locked():
            return _serve(options, settings)
    except state_directory.StateDirectoryInUseError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return EXIT_IN_USE
    except state_directory.UnlockableError as error:
        raise ConfigurationError(str(error)) from error


def _serve(options: Options, settings: Settings) -> int:
    exit_code = 0
    # What there is by now stays as long as the process: the collector need never look at it again.
    gc.freeze()
    try:
        anyio.run(daemon.serve, options, settings)
    except* FatalError as fatal:
        error = _first(fatal)
        print(f"headrace: {error}", file=sys.stderr)
        exit_code = error.exit_code
    return exit_code


def _first(group: BaseExceptionGroup[FatalError]) -> FatalError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _identity(arguments: argparse.Namespace) -> tuple[str, str]:
    pool: str | None = arguments.pool
    if not pool:
        msg = "Missing required option '--pool' / '-p'."
        raise ConfigurationError(msg)
    if arguments.type not in {None, "process"}:
        msg = f"--type {arguments.type!r} cannot be served: headrace runs 'process' pools only"
        raise ConfigurationError(msg)
    name: str = arguments.name or state_directory.default_name(pool, hostname=socket.gethostname())
    if "/" in name or "%" in name:
        msg = f"the worker name {name!r} may not contain '/' or '%'; choose another with --name"
        raise ConfigurationError(msg)
    return pool, name


def _given(flag: float | None, setting: float) -> float:
    return setting if flag is None else flag


def _announce(line: str) -> None:
    """Print one of the two lines scripts wait for; a script that has stopped reading has read it."""
    try:
        print(line, flush=True)
    except (OSError, ValueError) as error:
        structlog.get_logger().warning("output.unwritable", reason=str(error))


def read_template(path: str | None) -> Mapping[str, Any] | None:
    """The job template in a file, for a pool that is to be created. Raises ConfigurationError."""
    if path is None:
        return None
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"--base-job-template {path}: cannot be read: {error.strerror}"
        raise ConfigurationError(msg) from error
    except ValueError as error:
        msg = f"--base-job-template {path}: is not JSON: {error}"
        raise ConfigurationError(msg) from error
    if not isinstance(content, dict) or not {"job_configuration", "variables"} <= content.keys():
        msg = f"--base-job-template {path}: must be an object with 'job_configuration' and 'variables'"
        raise ConfigurationError(msg)
    return cast("dict[str, Any]", content)


def _state_directory(settings: Settings, pool: str, name: str) -> StateDirectory:
    root = settings.headrace.state_dir
    try:
        return state_directory.for_worker(root, api_url=settings.api.url or "", pool=pool, name=name)
    except OSError as error:
        msg = (
            f"the state directory {root} cannot be used: {error.strerror};"
            " choose another with --state-dir or HEADRACE_STATE_DIR"
        )
        raise ConfigurationError(msg) from error
