"""The command line: `headrace start`, with the flags of `prefect worker start`, and `headrace explain`.

Owns flags, their checking, and exit codes. What is heavy is imported when a command needs it.
"""

import argparse
import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from worker import __version__

EXIT_OK = 0
EXIT_CONFIGURATION = 1
EXIT_USAGE = 2

_EXIT_CODES = """\
exit codes:
  0  stopped as asked (or, with --run-once, done)
  1  configuration: no API URL, a bad settings file, a missing --pool or template file
  2  an option or value that does not exist
  3  the server refused the credentials
  4  the work pool was refused, or is not of type 'process'
  5  flows cannot run in the interpreter given by --python
  6  the health endpoint's address is taken
"""


class ConfigurationError(Exception):
    """What the user gave cannot be used; the message names it and the fix."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `headrace` command."""
    arguments = _parser().parse_args(argv)
    sys.exit(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    try:
        match arguments.command:
            case "start":
                return _start(arguments)
            case "explain":
                return _explain(arguments)
            case _:
                _parser().print_help()
                return EXIT_USAGE
    except ConfigurationError as error:
        return _fail(str(error), EXIT_CONFIGURATION)


def _fail(message: str, exit_code: int) -> int:
    print(f"headrace: {message}", file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace", description="Runs Prefect flow runs in local processes.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"headrace {__version__}")
    _session_flags(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _start_flags(
        commands.add_parser(
            "start",
            help="serve a work pool, as `prefect worker start --type process` does",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    _explain_flags(
        commands.add_parser("explain", help="show what job variables resolve to, and why", allow_abbrev=False)
    )
    return parser


def _session_flags(parser: argparse.ArgumentParser, **overrides: Any) -> None:
    """Flags that Prefect takes before or after the command; `SUPPRESS` keeps the one given first."""
    parser.add_argument("--profile", metavar="NAME", help="Prefect profile to use", **overrides)
    parser.add_argument(
        "--prompt",
        action=argparse.BooleanOptionalAction,
        help="accepted for compatibility; headrace never asks",
        **overrides,
    )


def _start_flags(parser: argparse.ArgumentParser) -> None:
    _session_flags(parser, default=argparse.SUPPRESS)
    stock = parser.add_argument_group("as in `prefect worker start`")
    stock.add_argument("-p", "--pool", metavar="NAME", help="the work pool to serve (required)")
    stock.add_argument("-n", "--name", metavar="NAME", help="the worker's name (default: from host and pool)")
    stock.add_argument(
        "-q",
        "--work-queue",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="serve this queue only; may be repeated (default: every queue of the pool)",
    )
    stock.add_argument("-t", "--type", metavar="TYPE", help="the pool's type; only 'process' can be served")
    stock.add_argument(
        "-l",
        "--limit",
        type=_positive,
        metavar="N",
        help="run at most N flow runs at a time (default: no limit)",
    )
    stock.add_argument(
        "--prefetch-seconds",
        type=_seconds,
        metavar="S",
        help="start runs up to S seconds before they are due (default: PREFECT_WORKER_PREFETCH_SECONDS, 10)",
    )
    stock.add_argument(
        "--run-once",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="poll once, wait for the runs found, and end",
    )
    stock.add_argument(
        "--with-healthcheck",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve GET /health on PREFECT_WORKER_WEBSERVER_HOST and _PORT",
    )
    stock.add_argument(
        "--install-policy",
        choices=("always", "if-not-present", "never", "prompt"),
        default="prompt",
        help="accepted for compatibility; process workers need nothing installed",
    )
    stock.add_argument(
        "--base-job-template", metavar="FILE", help="JSON template for the pool, used only when it is created"
    )
    stock.add_argument(
        "--create-pool-if-not-found",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="create the pool when it does not exist",
    )
    ours = parser.add_argument_group("of headrace's own")
    ours.add_argument(
        "--python", metavar="FILE", help="interpreter that flows run in (default: the one headrace runs in)"
    )
    _mode_flag(ours)
    ours.add_argument("--state-dir", metavar="DIR", help="where runs keep their directories while they run")
    ours.add_argument("--log-format", choices=("auto", "console", "json"), help="default: auto")
    ours.add_argument("--log-level", choices=("debug", "info", "warning", "error"), type=str.lower)


def _explain_flags(parser: argparse.ArgumentParser) -> None:
    _session_flags(parser, default=argparse.SUPPRESS)
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="JSON with base_job_template, deployment_job_variables, flow_run_job_variables, blocks,"
        " blocks_by_id, variables and optionally context: one object or a list ('-': standard input)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _mode_flag(parser)


def _mode_flag(parser: Any) -> None:
    parser.add_argument(
        "--job-variables",
        choices=("layered", "stock"),
        help="layered (default): the later layer always wins; stock: Prefect 3.8.8 to the letter",
    )


def _positive(text: str) -> int:
    value = _seconds(text)
    if value < 1:
        msg = f"{text!r} is not a number of flow runs; give 1 or more, or leave the option out for no limit"
        raise argparse.ArgumentTypeError(msg)
    return value


def _seconds(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        msg = f"{text!r} is not a whole number of 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _explain(arguments: argparse.Namespace) -> int:
    from worker.explain import explain_file  # noqa: PLC0415 - not needed to start
    from worker.runs.job_variables import JobVariablesMode  # noqa: PLC0415 - same

    mode = arguments.job_variables or os.environ.get("HEADRACE_JOB_VARIABLES") or "layered"
    return explain_file(
        path=arguments.input,
        as_json=arguments.json,
        mode=JobVariablesMode(mode),
        stdout=sys.stdout,
        environ=os.environ,
    )


def _start(arguments: argparse.Namespace) -> int:
    pool = arguments.pool
    if not pool:
        return _fail("Missing required option '--pool' / '-p'.", EXIT_CONFIGURATION)
    if arguments.type not in (None, "process"):
        msg = f"--type {arguments.type!r} cannot be served: headrace runs 'process' pools only"
        raise ConfigurationError(msg)
    name = arguments.name or default_name(pool, hostname=socket.gethostname())
    if "/" in name or "%" in name:
        msg = f"the worker name {name!r} may not contain '/' or '%'; choose another with --name"
        raise ConfigurationError(msg)

    import anyio  # noqa: PLC0415 - `headrace --help` answers without it

    from worker import daemon, log, output_printer  # noqa: PLC0415 - same
    from worker.runs.job_variables import JobVariablesMode  # noqa: PLC0415 - same
    from worker.settings import SettingsError, load_settings  # noqa: PLC0415 - same

    try:
        settings = load_settings(
            environ=os.environ, cwd=Path.cwd(), profile=arguments.profile, flags=_flags(arguments)
        )
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error
    if not settings.api.url:
        msg = (
            "PREFECT_API_URL must be set to start a worker: the address of the server's API, such as"
            " http://127.0.0.1:4200/api, in the environment or the active profile"
        )
        raise ConfigurationError(msg)
    redactor = log.Redactor(_secrets(settings))
    log.configure(chosen_format=settings.logging.format, level=settings.logging.level, redactor=redactor)
    options = daemon.Options(
        pool=pool,
        name=name,
        work_queues=tuple(dict.fromkeys(arguments.work_queue)),
        prefetch_seconds=_first(arguments.prefetch_seconds, settings.worker.prefetch_seconds),
        limit=arguments.limit,
        run_once=arguments.run_once,
        with_healthcheck=arguments.with_healthcheck,
        create_pool=arguments.create_pool_if_not_found,
        base_job_template=_read_template(arguments.base_job_template),
        job_variables=JobVariablesMode(settings.headrace.job_variables),
        python=settings.headrace.python or sys.executable,
        runs_directory=_runs_directory(settings.headrace.state_dir, settings.api.url, pool, name),
        environment=dict(os.environ),
        print_output=output_printer.printer(
            as_json=log.is_json(settings.logging.format, sys.stderr), redactor=redactor, stream=sys.stdout
        ),
        announce=lambda line: print(line, flush=True),
    )
    try:
        anyio.run(daemon.serve, options, settings)
    except BaseExceptionGroup as group:
        fatal, rest = group.split(daemon.FatalError)
        if fatal is None or rest is not None:
            raise
        error = _leaf(fatal)
        return _fail(str(error), error.exit_code)
    except daemon.FatalError as error:
        return _fail(str(error), error.exit_code)
    return EXIT_OK


def _leaf(group: BaseExceptionGroup[Any]) -> Any:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that override settings, by the setting's name."""
    flags = {
        "HEADRACE_JOB_VARIABLES": arguments.job_variables,
        "HEADRACE_PYTHON": arguments.python,
        "HEADRACE_STATE_DIR": arguments.state_dir,
        "HEADRACE_LOG_FORMAT": arguments.log_format,
        "HEADRACE_LOG_LEVEL": arguments.log_level,
    }
    return {name: value for name, value in flags.items() if value is not None}


def _first(flag: float | None, setting: float) -> float:
    return setting if flag is None else flag


def _secrets(settings: Any) -> list[str]:
    secrets = [settings.api.key, settings.api.auth_string]
    return [secret.get_secret_value() for secret in secrets if secret is not None]


def default_name(pool: str, *, hostname: str) -> str:
    """A name that stays the same over restarts: host and pool, without what names may not contain."""
    return re.sub(r"[/%]", "-", f"{hostname}-{pool}")


def _read_template(path: str | None) -> Mapping[str, Any] | None:
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


def _runs_directory(state_dir: Path, api_url: str, pool: str, name: str) -> Path:
    from worker.state_directory import for_worker  # noqa: PLC0415 - not needed for other commands

    try:
        return for_worker(state_dir, api_url=api_url, pool=pool, name=name)
    except OSError as error:
        msg = (
            f"the state directory {state_dir} cannot be used: {error.strerror};"
            " choose another with --state-dir or HEADRACE_STATE_DIR"
        )
        raise ConfigurationError(msg) from error


if __name__ == "__main__":
    main()
