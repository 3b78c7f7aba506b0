"""The interpreters that runs name: which program a name means, and whether it can run flows.

Owns the rules for the job variable `python`, the sentences for what it cannot be, and the memory of what has been
looked at. Does not own the question that an interpreter is asked (`interpreter`), and what is started with it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio

from worker.processes.interpreter import (
    Interpreter,
    InterpreterError,
    NoAnswer,
    NotAsked,
    inspect_interpreter,
)
from worker.processes.launch_problems import unusable

REMEDY = "correct the job variable `python`"
# What decides which modules an interpreter finds, and whether it starts at all.
_OF_THE_INTERPRETER = re.compile(r"PYTHON\w*|LD_\w+|DYLD_\w+")
_MOST_KNOWN = 64
# How long a named interpreter is given to answer, and how long one that did not is not asked again, in seconds: each
# run that waits for an answer keeps another one from being started.
ANSWER_LIMIT = 10.0
SILENCE = 60.0
# The file system is asked beside the event loop: a path may lead to a server that is gone.
LOOK_LIMIT = 10.0
_LOOKS = 4

Inspect = Callable[..., Awaitable[Interpreter]]
Key = tuple[object, ...]
Found = TypeVar("Found")


def locate(value: str, *, working_dir: Path | None, path: str) -> str:
    """The program that a job variable `python` means, as an argument for exec; a virtual environment's is its bin/python.

    A value with a slash, or that begins with a dot or `~`, is a path: relative to `working_dir`, the job's own. Any other
    is the name of a program in `path`, given back as it is when it is not there. Links are not followed: a virtual
    environment's interpreter is one, and its name is all that tells it from others. Raises InterpreterError for what can
    be no program on any machine.
    """
    if problem := unusable(value):
        raise InterpreterError(f"the job variable `python` {problem}")
    if "/" not in value and not value.startswith((".", "~")):
        return _in_path(value, working_dir, path)
    place = os.path.expanduser(value)  # noqa: PTH111 - Path.expanduser raises for a user that does not exist
    if not os.path.isabs(place):  # noqa: PTH117 - text in, text out
        if working_dir is None:
            raise InterpreterError(
                f"the job variable `python` is {value!r}, which is relative to nothing, as the job has no `working_dir`:"
                " give the whole path, or set `working_dir`"
            )
        place = os.path.join(working_dir, place)  # noqa: PTH118 - same
    place = os.path.abspath(place)  # noqa: PTH100 - Path.resolve() would leave the virtual environment
    return os.path.join(place, "bin", "python") if os.path.isdir(place) else place  # noqa: PTH112, PTH118 - Path.is_dir may raise


def _in_path(name: str, working_dir: Path | None, path: str) -> str:
    """As a shell in the job's directory would find it."""
    entries = [entry for entry in path.split(os.pathsep) if working_dir is not None or os.path.isabs(entry)]  # noqa: PTH117 - text
    below = working_dir or Path("/")
    found = shutil.which(name, path=os.pathsep.join(str(below / entry) for entry in entries))
    return name if found is None else os.path.abspath(found)  # noqa: PTH100 - as above


@dataclass(slots=True, eq=False)
class _Asked:
    """An interpreter that is being asked, or has been; `error` is why it cannot run flows."""

    answered: anyio.Event = field(default_factory=anyio.Event)
    decided: bool = False
    error: str | None = None
    silent_until: float | None = None


class Interpreters:
    """What is known of the interpreters that runs have named; one for the daemon's life.

    Each is asked once, however many runs name it at a time, and again when its file or its virtual environment has
    changed. One that could not run flows is asked again by the next run: mending it changes nothing that could be seen;
    one that did not answer, after a minute. `monotonic` is a clock in seconds.
    """

    def __init__(
        self,
        *,
        inspect: Inspect = inspect_interpreter,
        monotonic: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._inspect = inspect
        self._monotonic = monotonic
        self._asked: dict[Key, _Asked] = {}
        self._looks = anyio.CapacityLimiter(_LOOKS)

    async def locate(self, value: str, /, *, working_dir: Path | None, path: str) -> str:
        """The program that a job variable means: `locate`."""
        return await self._look(partial(locate, value, working_dir=working_dir, path=path), value)

    async def check(self, python: str, /, *, environment: Mapping[str, str]) -> None:
        """Make sure that `python`, as `locate` gave it, can run flows in this environment. Raises InterpreterError.

        Nothing is raised where the machine has run out of something: launching will tell, and it is no fault of the
        interpreter's.
        """
        search = environment.get("PATH", os.defpath)
        fault, key = await self._look(lambda: (_fault(python, search), _key(python, environment)), python)
        if fault is not None:
            raise InterpreterError(fault)
        while (asked := self._known(key)) is not None:
            await asked.answered.wait()
            if asked.decided:
                break
        else:
            asked = await self._ask(key, python, environment)
        if asked.error is not None:
            raise InterpreterError(asked.error)

    async def _look(self, look: Callable[[], Found], value: str) -> Found:
        """Have something looked up in the file system."""
        try:
            with anyio.fail_after(LOOK_LIMIT):
                return await anyio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looks)
        except TimeoutError:
            raise InterpreterError(
                f"the job variable `python` names {value}, and the file system did not answer within {LOOK_LIMIT:g} s:"
                f" look whether it is mounted, or {REMEDY}"
            ) from None

    def _known(self, key: Key) -> _Asked | None:
        asked = self._asked.get(key)
        if asked is not None and asked.silent_until is not None and self._monotonic() >= asked.silent_until:
            del self._asked[key]
            return None
        return asked

    async def _ask(self, key: Key, python: str, environment: Mapping[str, str]) -> _Asked:
        asked = self._asked[key] = _Asked()
        try:
            await self._inspect(
                python,
                environment=_heeded(environment, "PATH", "HOME"),
                remedy=REMEDY,
                timeout=ANSWER_LIMIT,
            )
            asked.decided = True
        except NotAsked:
            return asked
        except InterpreterError as error:
            asked.decided, asked.error = True, str(error)
            if isinstance(error, NoAnswer):
                asked.silent_until = self._monotonic() + SILENCE
        finally:
            # Whoever waits has the answer, or asks for itself if this run was cancelled.
            if not asked.decided or (asked.error is not None and asked.silent_until is None):
                del self._asked[key]
            asked.answered.set()
        if len(self._asked) > _MOST_KNOWN:
            oldest = next(known for known, one in self._asked.items() if one.decided)
            del self._asked[oldest]
        return asked


def _key(python: str, environment: Mapping[str, str]) -> Key:
    """What an answer holds for: the program, its link, its virtual environment, and the variables that it heeds."""
    cfg = os.path.join(os.path.dirname(os.path.dirname(python)), "pyvenv.cfg")  # noqa: PTH118, PTH120 - text
    heeded = sorted(_heeded(environment).items())
    return (python, _stamp(python, follow=False), _stamp(python), _stamp(cfg), *heeded)


def _heeded(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in names or _OF_THE_INTERPRETER.fullmatch(name)
    }


def _stamp(path: str, *, follow: bool = True) -> tuple[int, int] | None:
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - text
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _fault(python: str, path: str) -> str | None:
    """Why there is no such program, as a sentence that names the fix; None if it is there."""
    if "/" not in python:
        return (
            f"the job variable `python` names {python}, which is not in PATH ({path}): install it, or give its whole path"
            " (a directory is written with a slash)"
        )
    named = f"the job variable `python` names {python}"
    if os.path.isdir(python):  # noqa: PTH112 - Path.is_dir may raise
        return f"{named}, which is a directory: name the program"
    if os.path.exists(python):  # noqa: PTH110 - same
        if os.access(python, os.X_OK):
            return None
        return f"{named}, which may not be executed by user {os.geteuid()}: chmod +x it, or {REMEDY}"
    above = os.path.dirname(os.path.dirname(python))  # noqa: PTH120 - text
    if os.path.islink(python):  # noqa: PTH114 - Path.is_symlink may raise
        return (
            f"{named}, a link to {os.readlink(python)}, which does not exist: make the virtual environment {above} again,"  # noqa: PTH115 - text
            f" or {REMEDY}"
        )
    if python.endswith("/bin/python") and os.path.isdir(above):  # noqa: PTH112 - same
        return f"{named}, but the directory {above} has no bin/python: make it a virtual environment, or {REMEDY}"
    return f"{named}, which does not exist: make it, or {REMEDY}"
