"""What is to be launched, and one sentence for each way in which it cannot be.

Owns the launch spec and the words of launch errors, warm or cold: each names the thing and the fix, and no secret.
Does not own: launching (`launcher`, `forkserver`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LARGEST_STRING = 128 * 1024
"""Bytes that one argument or variable may have, with its end: MAX_ARG_STRLEN, 32 pages (execve(2))."""

_POINTER = 8


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that is needed to start a run's process. The representation names no value of the environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    stream_output: bool


class LaunchError(Exception):
    """The process could not be started. The message is one sentence that names the thing and the fix, and no secret."""


class Shortage(LaunchError):
    """The machine has run out of something; nothing is wrong with the process that was to be started."""


def launch_error(error: OSError, reason: str) -> LaunchError:
    """What to raise for an error of the system: a Shortage if the machine has run out of something, else for this reason."""
    shortage = _explain_shortage(error)
    return LaunchError(reason) if shortage is None else Shortage(shortage)


def find_problem(spec: LaunchSpec) -> str | None:
    """What makes the spec impossible to start on any machine, as a sentence; None if nothing does."""
    if not spec.argv or not spec.argv[0]:
        return "the command is empty: set `command` to a program, or leave it out to run the Prefect engine"
    for position, argument in enumerate(spec.argv):
        if problem := unusable(argument):
            return f"argument {position} of the command {problem}"
    if problem := unusable(os.fspath(spec.cwd)):
        return f"the working directory's path {problem}"
    for name, value in spec.env.items():
        if not name or "=" in name or unusable(name):
            return f"{name!r} cannot be the name of an environment variable: rename it in `env`"
        if problem := unusable(value):
            return f"the value of the environment variable {name} {problem}"
    return None


def size(spec: LaunchSpec) -> int:
    """How many bytes exec would be given: each string, its end, and a pointer to it (execve(2))."""
    strings = (*spec.argv, *(f"{name}={value}" for name, value in spec.env.items()))
    return sum(len(os.fsencode(text)) + 1 + _POINTER for text in strings)


def unusable(text: str) -> str | None:
    """What keeps a text from being an argument, a path or a variable, as the end of a sentence; None if nothing does."""
    if "\0" in text:
        return "contains a NUL character, which ends a string for the operating system: remove it"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return "contains a character that cannot be encoded: remove the lone surrogate"
    return None


def explain_failure(spec: LaunchSpec, error: OSError) -> str:
    """One sentence for an error of fork, chdir or exec."""
    if error.errno == errno.E2BIG:
        return _explain_too_big(spec)
    if shortage := _explain_shortage(error):
        return shortage
    # `subprocess` sets the file name to the directory if chdir failed, else to argv[0].
    if error.filename == os.fspath(spec.cwd) and error.filename != spec.argv[0]:
        return _explain_directory(spec.cwd, error)
    return f"the command {spec.argv[0]!r} {_command_problem(spec, error)}"


def _explain_shortage(error: OSError) -> str | None:
    """What the machine has run out of, if that is the reason: nothing is wrong with this run then."""
    match error.errno:
        case errno.EAGAIN:
            return "cannot start a process: the limit on processes is reached; raise it (ulimit -u, cgroup pids.max)"
        case errno.ENOMEM:
            return "cannot start a process: out of memory; lower --limit or give the machine more"
        case errno.EMFILE | errno.ENFILE:
            return f"cannot start a process: {reason_of(error)}; raise the limit on open files (ulimit -n)"
        case _:
            return None


def _explain_directory(cwd: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the working directory {cwd} does not exist: create it or change `working_dir`"
        case errno.ENOTDIR:
            return f"the working directory {cwd} is not a directory: change `working_dir`"
        case errno.EACCES:
            return f"the working directory {cwd} may not be entered by user {os.geteuid()}: grant it the x permission"
        case _:
            return f"cannot enter the working directory {cwd}: {reason_of(error)}"


def _command_problem(spec: LaunchSpec, error: OSError) -> str:
    has_slash = "/" in spec.argv[0]
    path = spec.cwd / spec.argv[0]
    match error.errno:
        case errno.ENOENT if has_slash and _exists(path):
            return "cannot run: the interpreter that its first line names does not exist"
        case errno.ENOENT if has_slash:
            return f"does not exist (seen from {spec.cwd}): correct its path"
        case errno.ENOENT:
            where = spec.env.get("PATH", os.defpath)
            return f"is not in PATH ({where}): install it or give its full path"
        case errno.EISDIR | errno.EACCES if has_slash and _is_directory(path):
            return "is a directory: give the path of a program"
        case errno.EACCES:
            return (
                f"may not be executed by user {os.geteuid()}: chmod +x it, and check the directories above it"
            )
        case _:
            hint = ": begin a script with a #! line" if error.errno == errno.ENOEXEC else ""
            return f"cannot be started: {reason_of(error)}{hint}"


def _exists(path: Path) -> bool:
    return os.access(path, os.F_OK)


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a directory above may not be entered


def _explain_too_big(spec: LaunchSpec) -> str:
    sizes = {f"argument {n} of the command": len(os.fsencode(text)) for n, text in enumerate(spec.argv)}
    sizes |= {f"the environment variable {n}": len(os.fsencode(n + v)) + 1 for n, v in spec.env.items()}
    largest = max(sizes, key=lambda what: sizes[what])
    total = sum(sizes.values())
    if sizes[largest] >= LARGEST_STRING:
        return f"{largest} has {sizes[largest]} bytes and the system allows {LARGEST_STRING - 1}: pass it in a file"
    return (
        f"command and environment have {total} bytes, more than the system takes (a quarter of ulimit -s); "
        f"the largest is {largest} with {sizes[largest]}: pass it in a file"
    )


def reason_of(error: OSError) -> str:
    """The system's own words for an error."""
    return os.strerror(error.errno) if error.errno else str(error)
