"""The flags of `headrace explain`, and the meaning of its exit codes. Owns nothing else."""

import argparse
from typing import Any

EPILOG = """\
Nothing is changed, on the server or here. Run it as the user and in the environment of the daemon.

exit codes:
  0  the run would start
  1  the run could not start; the last line says why
  2  flags, a settings file or --input that cannot be used
  3  the server refused the credentials
  4  there is no such flow run, deployment or work pool
  5  the server does not answer
"""


def add_to(parser: argparse.ArgumentParser) -> Any:
    """Add the flags; gives the group for those that `start` has, too."""
    what = parser.add_argument_group("what to explain, one of").add_mutually_exclusive_group(required=True)
    what.add_argument("--flow-run", metavar="ID", help="a flow run, as it would be launched now")
    what.add_argument(
        "--deployment", metavar="NAME", help="the next run of a deployment: flow/deployment, or id"
    )
    what.add_argument("-p", "--pool", metavar="NAME", help="what a work pool gives a run that sets nothing")
    what.add_argument("--diff", nargs=2, metavar=("A", "B"), help="where two runs or deployments differ")
    what.add_argument(
        "--input",
        metavar="FILE",
        help="no server: JSON with base_job_template, deployment_job_variables, flow_run_job_variables, blocks,"
        " blocks_by_id, variables and optionally context: one object or a list ('-': standard input)",
    )
    parser.add_argument(
        "-jv",
        "--job-variable",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a job variable of the run, as in `prefect deployment run`; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--show-secrets", action="store_true", help="hide nothing")
    parser.add_argument(
        "--all-env", action="store_true", help="the whole environment, not only what job variables set"
    )
    parser.add_argument(
        "--any-machine",
        action="store_true",
        help="do not ask whether this machine has the directory, the program, the interpreter",
    )
    as_start = parser.add_argument_group("as given to `headrace start`")
    as_start.add_argument("-n", "--name", metavar="NAME", help="the worker's name")
    as_start.add_argument("--python", metavar="FILE", help="interpreter that flows run in")
    as_start.add_argument("--start-method", choices=["warm", "cold"], help="default: warm")
    return as_start
