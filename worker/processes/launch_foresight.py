"""What would keep a process from being started on this machine, found out without starting it.

Owns the looking; the words are those of a launch that failed (`launch_problems`). It can only say no: a disk, a
limit or a program's own first line can still fail the launch itself.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from worker.processes.launch_problems import LARGEST_STRING, LaunchSpec, explain_failure


def foresee(spec: LaunchSpec, *, fresh_directory: bool) -> str | None:
    """One sentence for the first thing in the way; None if nothing is.

    With `fresh_directory` the directory is made for the run, so it need not be there yet, and nothing is in it.
    """
    error = None if fresh_directory else _directory_error(spec.cwd)
    error = error or _size_error(spec) or _program_error(spec)
    return None if error is None else explain_failure(spec, error)


def _directory_error(directory: Path) -> OSError | None:
    name = os.fspath(directory)
    try:
        found = os.stat(directory)  # noqa: PTH116 - the error is what is wanted
    except OSError as error:
        return OSError(error.errno, error.strerror, name)
    if not stat.S_ISDIR(found.st_mode):
        return _error(errno.ENOTDIR, name)
    return None if os.access(directory, os.X_OK) else _error(errno.EACCES, name)


def _size_error(spec: LaunchSpec) -> OSError | None:
    strings = (*spec.argv, *(f"{name}={value}" for name, value in spec.env.items()))
    too_big = any(len(os.fsencode(text)) >= LARGEST_STRING for text in strings)
    return _error(errno.E2BIG, spec.argv[0]) if too_big else None


def _program_error(spec: LaunchSpec) -> OSError | None:
    """Look where exec(3) looks: with a slash relative to the directory, else along the new environment's PATH."""
    program = spec.argv[0]
    places = [""] if "/" in program else os.get_exec_path(dict(spec.env))
    number = errno.ENOENT
    for place in places:
        path = spec.cwd / place / program
        if os.access(path, os.X_OK) and not _is_directory(path):
            return None
        if os.access(path, os.F_OK):
            number = errno.EACCES
    return _error(number, program)


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a directory above may not be entered


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
