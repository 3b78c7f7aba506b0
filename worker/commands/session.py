"""What the operators' commands share: settings, one way to fail, and how text reaches the terminal."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.settings import Settings, SettingsError, load_settings

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_CREDENTIALS = 3
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """The command cannot do what was asked; the message names the thing and the fix."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def settings_for(arguments: argparse.Namespace) -> Settings:
    """The settings as a daemon started here would have them. Raises SettingsError."""
    flags: Mapping[str, str | None] = {
        "HEADRACE_STATE_DIR": arguments.state_dir,
        "HEADRACE_PYTHON": getattr(arguments, "python", None),
    }
    return load_settings(environ=os.environ, cwd=Path.cwd(), profile=arguments.profile, flags=flags)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        exit_code = _command(arguments)
        sys.stdout.flush()
    except (CommandError, SettingsError) as error:
        print(f"headrace: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CommandError) else EXIT_FAILED
    except BrokenPipeError:
        # Whoever read it (`head`) has had enough; nothing may be written at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return exit_code


def _command(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "ps":
            from worker.commands.ps import ps  # noqa: PLC0415 - each command imports what it needs

            return ps(arguments, settings_for(arguments), stdout=sys.stdout)
        case "logs":
            from worker.commands.logs import logs  # noqa: PLC0415 - same

            return logs(arguments, settings_for(arguments), stdout=sys.stdout)
        case "stop":
            from worker.commands.stop import stop  # noqa: PLC0415 - same

            return stop(arguments, settings_for(arguments), stdout=sys.stdout)
        case "doctor":
            from worker.commands.doctor import doctor  # noqa: PLC0415 - same

            return doctor(arguments, stdout=sys.stdout)
        case _:
            raise ValueError(arguments.command)
