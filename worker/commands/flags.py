"""The flags of the operators' commands. Imports nothing heavy: `headrace start` passes by here, too."""

import argparse
from collections.abc import Callable
from typing import Any, Final

COMMANDS: Final = ("ps", "logs", "stop", "doctor")

_RUN_HELP = "the flow run: its id, the first characters of it (four or more), or its name"
_PS_CODES = """\
exit codes:
  0  done, also when nothing runs, and when --watch is ended with Ctrl-C
  1  the state directory cannot be read, or none of its daemons is the one asked for
  2  an option or value that does not exist
"""
_LOGS_CODES = """\
exit codes:
  0  done, also when --follow is ended with Ctrl-C
  1  no run in flight here is called so, or several are; or its output cannot be read
  2  an option or value that does not exist
"""
_STOP_CODES = """\
exit codes:
  0  the run is being cancelled, or is Cancelled
  1  it had ended already, ended in another state, was not found, or the server was not reached
  2  an option or value that does not exist
  3  the server refused the credentials
"""
_DOCTOR_CODES = """\
exit codes:
  0  nothing failed; there may be warnings
  1  at least one check failed
  2  an option or value that does not exist
"""


def add_commands(commands: Any, session_flags: Callable[..., None]) -> None:
    """Add the commands' parsers; `session_flags` adds the flags that every command has."""

    def command(name: str, *, text: str, codes: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=codes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        session_flags(parser, default=argparse.SUPPRESS)
        parser.add_argument(
            "--state-dir", metavar="DIR", help="the state directory that the daemon was given, if any"
        )
        return parser

    ps = command("ps", text="show the runs in flight on this machine", codes=_PS_CODES)
    _which_daemon(ps)
    ps.add_argument("--json", action="store_true", help="print JSON instead of a table")
    ps.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")

    logs = command("logs", text="print the output of a run in flight on this machine", codes=_LOGS_CODES)
    logs.add_argument("run", metavar="RUN", help=_RUN_HELP)
    _which_daemon(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing until the run has ended")

    stop = command(
        "stop", text="cancel a run, on this machine or elsewhere, through the server", codes=_STOP_CODES
    )
    stop.add_argument("run", metavar="RUN", help=_RUN_HELP)
    stop.add_argument("--wait", action="store_true", help="wait until the run has ended")
    stop.add_argument("--json", action="store_true", help="print JSON instead of a sentence")

    doctor = command(
        "doctor", text="check everything a daemon needs, and change nothing", codes=_DOCTOR_CODES
    )
    _which_daemon(doctor)
    doctor.add_argument("--python", metavar="FILE", help="the interpreter that flows are to run in")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of lines")


def _which_daemon(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--pool", metavar="NAME", help="the work pool of the daemon")
    parser.add_argument("-n", "--name", metavar="NAME", help="the name of the daemon")
