"""The command line: `headrace start`, with the flags of `prefect worker start`, `headrace explain`, and the operators' commands.

Owns flags, their checking, and exit codes. What is heavy is imported when a command needs it.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from worker import __version__
from worker.commands.flags import COMMANDS, add_commands
from worker.explain import flags as explain_flags
from worker.lean_imports import lean_imports

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
  7  another headrace serves the pool under this name, with this state directory
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `headrace` command."""
    arguments = _parser().parse_args(argv)
    sys.exit(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "start":
            return _start(arguments)
        case "explain":
            return _explain(arguments)
        case command if command in COMMANDS:
            from worker.commands.session import run  # noqa: PLC0415 - not needed to start

            return run(arguments)
        case _:
            _parser().print_help()
            return EXIT_USAGE


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
    explain = commands.add_parser(
        "explain",
        help="show what job variables resolve to, and why",
        epilog=explain_flags.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _session_flags(explain, default=argparse.SUPPRESS)
    _mode_flag(explain_flags.add_to(explain))
    add_commands(commands, _session_flags)
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
    ours.add_argument(
        "--state-dir", metavar="DIR", help="where the journal and the runs' directories are kept"
    )
    _stop_flags(ours)
    ours.add_argument(
        "--max-late",
        metavar="DURATION",
        help="cancel runs made by a schedule that are more than this late, such as 15m or 2h (default: run them)",
    )
    ours.add_argument(
        "--only-latest",
        action=argparse.BooleanOptionalAction,
        help="of the overdue runs of a schedule, run the latest and cancel the others (default: run all)",
    )
    ours.add_argument(
        "--output-limit",
        metavar="SIZE",
        help="how much of one run's output is kept on disk, such as 64MiB (default: 100MiB)",
    )
    ours.add_argument(
        "--start-method",
        choices=["warm", "cold"],
        help="warm: fork flows from a process that has imported Prefect; cold: a fresh interpreter for each (default: warm)",
    )
    ours.add_argument(
        "--preload",
        action="append",
        metavar="MODULE",
        help="a module that is imported once, for all warm starts; can be given several times",
    )
    ours.add_argument(
        "--max-starting",
        metavar="N",
        help="how many runs may be starting at once (default: the number of processors)",
    )
    ours.add_argument(
        "--min-free-memory",
        metavar="SIZE",
        help="claim no run while less memory is free, such as 1GiB (default: 256MiB; 0: never mind)",
    )
    ours.add_argument("--log-format", choices=("auto", "console", "json"), help="default: auto")
    ours.add_argument("--log-level", choices=("debug", "info", "warning", "error"), type=str.lower)


def _stop_flags(parser: Any) -> None:
    parser.add_argument(
        "--drain-timeout",
        metavar="DURATION",
        help="end the runs that have not finished this long after the first SIGTERM (default: wait for them)",
    )
    parser.add_argument(
        "--on-timeout",
        choices=("crash", "reschedule"),
        help="what a run becomes that a stop cuts short: Crashed (default), or scheduled again",
    )
    parser.add_argument(
        "--detach-on-stop",
        action=argparse.BooleanOptionalAction,
        help="on SIGTERM leave running flows to the next daemon, which adopts them (default: wait for them)",
    )


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
    if arguments.input is None:
        with lean_imports():
            from worker.explain.command import explain_objects  # noqa: PLC0415 - not needed to start

        return explain_objects(arguments, stdout=sys.stdout, stderr=sys.stderr)
    from worker.explain.offline import explain_file  # noqa: PLC0415 - not needed to start
    from worker.runs.job_variables import JobVariablesMode  # noqa: PLC0415 - same

    chosen = arguments.job_variables or os.environ.get("HEADRACE_JOB_VARIABLES") or "layered"
    try:
        mode = JobVariablesMode(chosen)
    except ValueError:
        print(f"headrace: HEADRACE_JOB_VARIABLES is {chosen!r}, not 'layered' or 'stock'", file=sys.stderr)
        return EXIT_USAGE
    return explain_file(
        path=arguments.input,
        as_json=arguments.json,
        mode=mode,
        stdout=sys.stdout,
        environ=os.environ,
        show_secrets=arguments.show_secrets,
    )


def _leave(_signum: int, _frame: object) -> NoReturn:
    """Obey a signal before the daemon has begun; a process that is PID 1 would else not hear it."""
    sys.exit(0)


def _start(arguments: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with lean_imports():
        from worker.start import ConfigurationError, start  # noqa: PLC0415 - `headrace --help` answers at once

    try:
        return start(arguments)
    except ConfigurationError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION


if __name__ == "__main__":
    main()
