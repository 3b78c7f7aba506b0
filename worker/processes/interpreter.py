"""What the Python that runs the flows is, and whether Prefect is installed for it.

Owns: one short subprocess that asks, and one sentence when the answer is no. Does not own: what is started with it.
Prefect is not imported for this, neither here nor there (that takes seconds): its version is in the package metadata.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from worker.processes.question import ask

# For any Python from 3.8 on. Not run with -I: a Prefect found through PYTHONPATH counts, as it will for the flows.
# The name of the directory of its metadata tells the version; importlib.metadata would take twice as long as all else.
_QUESTION = """\
import os, sys
version = ""
try:
    from importlib.util import find_spec
    spec = find_spec("prefect")
    if spec is not None:
        beside = os.path.dirname(os.path.dirname(spec.origin or ""))
        known = [name for name in os.listdir(beside or "/") if name.startswith("prefect-") and name.endswith(".dist-info")]
        if len(known) == 1:
            version = known[0][len("prefect-"):-len(".dist-info")]
        else:
            import importlib.metadata
            version = importlib.metadata.version("prefect")
except (ImportError, OSError):
    pass
print("\\nheadrace:%d.%d.%d" % sys.version_info[:3], version)
"""
_ANSWER = "headrace:"
_OLDEST_PREFECT = (3, 0)
_LAST_WORDS = 200
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that can run flows. `executable` is absolute, and not resolved: a virtual environment's link is its name."""

    executable: str
    python_version: str
    prefect_version: str


class InterpreterError(Exception):
    """A Python cannot run flows. The message is one sentence that names it and the fix."""


class NoAnswer(InterpreterError):
    """It was asked, and did not answer in time."""


class NotAsked(InterpreterError):
    """The machine has run out of something: nothing is known of the interpreter."""


async def inspect_interpreter(
    python: str,
    *,
    environment: Mapping[str, str] | None = None,
    remedy: str = "give another with --python",
    timeout: float = 30.0,
) -> Interpreter:
    """Ask a Python, given by path or by name in PATH, what it is. Takes about 30 ms. Raises InterpreterError.

    `environment` is what it is asked in (default: our own); `remedy` ends the sentence of an error.
    """
    executable = _locate(python)
    try:
        # From the root directory: `-c` puts the current one on sys.path, and what lies there is not installed.
        status, output, errors = await ask(
            [executable, "-c", _QUESTION], cwd="/", environment=environment, timeout=timeout
        )
    except TimeoutError:
        raise NoAnswer(
            f"the Python interpreter {executable} did not answer within {timeout:g} s: try `{executable} -V`"
        ) from None
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise NotAsked(
                f"the Python interpreter {executable} cannot be asked now: {error.strerror}"
            ) from error
        reason = (
            "is not a program" if error.errno == errno.ENOEXEC else f"cannot be started ({error.strerror})"
        )
        raise InterpreterError(f"the Python interpreter {executable} {reason}: {remedy}") from error
    return _judge(executable, status, output, errors, remedy)


def _locate(python: str) -> str:
    found = shutil.which(python)
    if found is None:
        raise InterpreterError(_explain_missing(python))
    return os.path.abspath(found)  # noqa: PTH100 - Path.resolve() would leave the virtual environment


def _explain_missing(python: str) -> str:
    if os.path.isdir(python):  # noqa: PTH112 - an argument as typed; and Path.is_dir may raise
        return f"the Python interpreter {python} is a directory: give the path of the program with --python"
    if os.path.exists(python):  # noqa: PTH110 - same
        return (
            f"the Python interpreter {python} is not executable: chmod +x it, or give another with --python"
        )
    return (
        f"the Python interpreter {python} does not exist: give the path of one that has Prefect with --python"
    )


def _judge(executable: str, status: int, output: str, errors: str, remedy: str) -> Interpreter:
    """What the answer means. Raises InterpreterError."""
    lines = [line for line in output.splitlines() if line.startswith(_ANSWER)]
    if status != 0 or not lines:
        words = (errors.strip() or output.strip() or "no output")[-_LAST_WORDS:].splitlines()[-1]
        raise InterpreterError(
            f"{executable} did not answer as a Python interpreter does (exit status {status}: {words}): "
            f"{remedy}"
        )
    python, _, version = lines[-1].removeprefix(_ANSWER).strip().partition(" ")
    install = f"{shlex.quote(executable)} -m pip install prefect"
    if not version:
        raise InterpreterError(f"Prefect is not installed for {executable}: run `{install}`, or {remedy}")
    if _release(version) < _OLDEST_PREFECT:
        raise InterpreterError(
            f"Prefect {version} of {executable} is too old, 3.0 is needed: run `{install} -U`"
        )
    return Interpreter(executable=executable, python_version=python, prefect_version=version)


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0, 0) for what has none, such as an unversioned checkout's `0+unknown`."""
    numbers: list[int] = []
    for part in version.split("+", maxsplit=1)[0].split(".")[:2]:
        digits = "".join(character for character in part if character.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)
