"""What `--help` says beyond the flags: for each command what it does, examples, and the environment it heeds.

Owns these texts, and the exit codes of commands whose parsers do not end with their own. The flags and their one-line help
are where the commands are made; a test holds the examples to the flags that exist. Imported when somebody asks for help.
"""

import argparse
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Page:
    """One command's texts: `description` in lines of its own width, examples as (command line, what for)."""

    description: str
    examples: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...] = ()
    exit_codes: tuple[tuple[int, str], ...] = ()
    """Of a command whose parser does not end with them."""


_SERVER: Final = (
    ("PREFECT_API_URL", "the server's API; or a Prefect profile, .env or prefect.toml says so"),
    ("PREFECT_API_KEY, PREFECT_API_AUTH_STRING", "credentials: Prefect Cloud's, a self-hosted server's"),
    ("PREFECT_PROFILE", "the profile to use, as --profile"),
)
_STATE: Final = ("HEADRACE_STATE_DIR", "where daemons keep their state, as --state-dir")

PAGES: Final = {
    "": Page(
        description="""\
headrace runs Prefect flow runs in local processes. It takes the place of
`prefect worker start --type process`, flag for flag, against an unchanged
Prefect 3 server or Prefect Cloud. `headrace COMMAND --help` tells of a command.""",
        examples=(("headrace start --pool my-pool", "serve a work pool, which is made if need be"),),
        environment=_SERVER,
        exit_codes=(
            (0, "done"),
            (2, "a command, option or value that does not exist; each command has more"),
        ),
    ),
    "start": Page(
        description="""\
Serve a work pool until told to stop: find its runs, claim those that can
start now, run each in a process of its own, and report what became of it.

The first SIGTERM or SIGINT drains: nothing more is claimed, running flows
finish and are reported. A second one ends them, and reports them, too.
Whatever happens to the daemon, start it again with the same pool, name and
state directory: it takes over what still runs and reports what has ended.""",
        examples=(
            ("headrace start --pool my-pool --limit 4", "at most four runs at a time"),
            ("headrace start --pool my-pool --work-queue high --work-queue low", "two of its queues only"),
            (
                "headrace start --pool my-pool --with-healthcheck",
                "with /health, /livez, /readyz and /metrics",
            ),
            (
                "headrace start --pool my-pool --drain-timeout 15m",
                "a stop takes a quarter of an hour at most",
            ),
            ("headrace start --pool my-pool --python /srv/flows/bin/python", "flows run in that interpreter"),
            ("headrace start --pool my-pool --run-once", "run what is due now, and end"),
        ),
        environment=(
            *_SERVER,
            ("PREFECT_WORKER_QUERY_SECONDS", "how often to poll (10), beside the events that wake it"),
            ("PREFECT_WORKER_WEBSERVER_HOST, _PORT", "where health is served (127.0.0.1, 8080)"),
            ("HEADRACE_...", "each flag of headrace's own has one, as HEADRACE_DRAIN_TIMEOUT; flags win"),
            (
                "NOTIFY_SOCKET, WATCHDOG_USEC",
                "set by systemd for units of Type=notify; flows do not get them",
            ),
            ("XDG_STATE_HOME", "its directory headrace is the default of --state-dir"),
        ),
        exit_codes=(
            (0, "stopped as asked (or, with --run-once, done)"),
            (1, "configuration: no API URL, a bad settings file, a missing --pool or template file"),
            (2, "an option or value that does not exist"),
            (3, "the server refused the credentials"),
            (4, "the work pool was refused, or is not of type 'process'"),
            (5, "flows cannot run in the interpreter given by --python"),
            (6, "the health endpoint's address is taken"),
            (7, "another headrace serves the pool under this name, with this state directory"),
        ),
    ),
    "explain": Page(
        description="""\
Show what job variables resolve to: each value, the layer it came from, and
what it overrode; and the command, environment and directory that follow.""",
        examples=(
            (
                "headrace explain --flow-run 3f2a6c1e-6f0b-4d55-9a77-0c8f8d1b2e44",
                "a run, as it would start now",
            ),
            (
                "headrace explain --deployment my-flow/nightly -jv env.DEBUG=1",
                "its next run, with a variable set",
            ),
            ("headrace explain --diff my-flow/nightly my-flow/test", "where two deployments differ"),
            ("headrace explain --input case.json --json", "without a server, and for programs"),
        ),
        environment=(*_SERVER, ("HEADRACE_JOB_VARIABLES", "layered or stock, as --job-variables")),
    ),
    "ps": Page(
        description="Show the runs in flight of the daemons on this machine, from their state directories.",
        examples=(
            ("headrace ps", "a table"),
            ("headrace ps --watch", "again every two seconds"),
            ("headrace ps --json", "for programs"),
        ),
        environment=(_STATE,),
    ),
    "logs": Page(
        description="Print what a run in flight on this machine has written so far.",
        examples=(("headrace logs 3f2a --follow", "a run by the first characters of its id, until it ends"),),
        environment=(_STATE,),
    ),
    "stop": Page(
        description="Cancel a run, wherever it runs: the server is told, and its worker ends it.",
        examples=(("headrace stop 3f2a --wait", "and wait until it has ended"),),
        environment=(*_SERVER, _STATE),
    ),
    "doctor": Page(
        description="Check everything a daemon needs: settings, server, state directory, interpreter. Changes nothing.",
        examples=(("headrace doctor --pool my-pool", "before the first start, or when something is wrong"),),
        environment=(*_SERVER, _STATE),
    ),
    "completion": Page(
        description="""\
Print a script that completes commands, flags and values in your shell. It has
to be loaded by the shell; the examples do that for good.""",
        examples=(
            ("headrace completion bash > ~/.local/share/bash-completion/completions/headrace", "bash"),
            ("headrace completion zsh > ~/.zfunc/_headrace", "zsh, with ~/.zfunc in $fpath"),
            ("headrace completion fish > ~/.config/fish/completions/headrace.fish", "fish"),
        ),
        exit_codes=((0, "done"), (2, "a shell that is not known")),
    ),
}


def add_to(parser: argparse.ArgumentParser) -> None:
    """Give a parser the texts of its command; what it says itself at its end, its exit codes, stays there."""
    page = PAGES.get(command_of(parser))
    if page is None:
        return
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = page.description
    parts = [_section("examples", page.examples, prefix="$ ")]
    if page.environment:
        parts.append(_section("environment", page.environment))
    codes = "".join(f"  {code}  {meaning}\n" for code, meaning in page.exit_codes)
    parser.epilog = "\n".join([*parts, parser.epilog or f"exit codes:\n{codes}"])


def command_of(parser: argparse.ArgumentParser) -> str:
    """The command that a parser is for; empty for the one that holds them all."""
    return parser.prog.partition(" ")[2]


def _section(title: str, lines: tuple[tuple[str, str], ...], *, prefix: str = "") -> str:
    text = "".join(f"  {prefix}{name}\n      {meaning}\n" for name, meaning in lines)
    return f"{title}:\n{text}"
