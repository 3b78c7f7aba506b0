"""`headrace completion SHELL`: the script that completes headrace's own command line, from its own parser.

The scripts are shtab's work. Owns only which flags take the name of a file or a directory.
"""

import argparse
from typing import Final, cast

import shtab

SHELLS: Final = ("bash", "zsh", "fish")
_KINDS: Final = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for one of `SHELLS`."""
    _mark_files(parser)
    return shtab.complete(parser, shell=shell)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    # argparse has no other way to list what was added; only commands are kept in a dictionary.
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action.choices, dict):
            return cast("dict[str, argparse.ArgumentParser]", action.choices)
    return {}


def _mark_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:  # noqa: SLF001 - same
        if action.metavar in _KINDS:
            vars(action)["complete"] = _KINDS[str(action.metavar)]
    for command in commands_of(parser).values():
        _mark_files(command)
