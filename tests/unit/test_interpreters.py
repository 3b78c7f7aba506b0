"""The job variable `python`: which program a value means, what it cannot be, and that each is asked once."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from tests.support.wait import wait_until
from worker.processes import interpreters
from worker.processes.interpreter import Interpreter, InterpreterError, NoAnswer, NotAsked
from worker.processes.interpreters import ANSWER_LIMIT, SILENCE, Interpreters, locate

pytestmark = pytest.mark.anyio

HOME = "/home/flows"
PATH = "/usr/bin"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a virtual environment `venv`, whose interpreter is a link, and a home of our own."""
    program = tmp_path / "base" / "python3"
    make_program(program)
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    return tmp_path


def make_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("{here}/venv", "{here}/venv/bin/python"),
        ("{here}/venv/", "{here}/venv/bin/python"),
        ("{here}/venv/bin/python", "{here}/venv/bin/python"),
        ("{here}/base/../venv", "{here}/venv/bin/python"),
        ("{here}/base/python3", "{here}/base/python3"),
        ("~/venv", "{here}/venv/bin/python"),
        ("~", "{here}/bin/python"),
        ("~nobody-of-this-name/venv", "{here}/~nobody-of-this-name/venv"),
        ("venv/bin/python", "{here}/venv/bin/python"),
        ("./venv", "{here}/venv/bin/python"),
        ("venv/", "{here}/venv/bin/python"),
        (".", "{here}/bin/python"),
        (".venv", "{here}/.venv"),
        ("../elsewhere/python", "{above}/elsewhere/python"),
        ("python3", "{here}/base/python3"),
        ("no-such-python", "no-such-python"),
        ("venv", "venv"),  # a name is a program's, as in a shell
        ("{here}/nowhere", "{here}/nowhere"),
        ("/with space/ü", "/with space/ü"),
    ],
)
def test_what_a_value_means(here: Path, value: str, found: str) -> None:
    place = value.format(here=here)
    expected = found.format(here=here, above=here.parent)
    assert locate(place, working_dir=here, path=f"{here}/base:{PATH}") == expected


@pytest.mark.parametrize("path", ["base", "./base:/usr/bin", "", ":"])
def test_a_relative_entry_of_path_is_seen_from_the_jobs_directory(here: Path, path: str) -> None:
    found = locate("python3", working_dir=here if path else here / "base", path=path or ":")
    expected = "python3" if path == ":" else f"{here}/base/python3"
    assert found == expected
    assert locate("python3", working_dir=None, path=path or ":") in {"python3", "/usr/bin/python3"}


@pytest.mark.parametrize("value", ["venv/bin/python", "./venv", ".venv", "..", "~nobody-of-this-name"])
def test_a_relative_path_needs_a_directory_to_be_relative_to(here: Path, value: str) -> None:
    with pytest.raises(InterpreterError) as raised:
        locate(value, working_dir=None, path=PATH)
    assert repr(value) in str(raised.value)
    assert "`working_dir`" in str(raised.value)


@pytest.mark.parametrize(("value", "word"), [("/a\0b", "NUL"), ("\0", "NUL"), ("/\ud800", "surrogate")])
def test_what_can_be_the_path_of_nothing(value: str, word: str) -> None:
    with pytest.raises(InterpreterError, match=word):
        locate(value, working_dir=None, path=PATH)


class Asked:
    """Interpreters that remember who was asked, and answer when they are let."""

    def __init__(self, *, error: str | None = None, kind: type[InterpreterError] = InterpreterError) -> None:
        self.error = error
        self.kind = kind
        self.clock = 0.0
        self.asked: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.interpreters = Interpreters(inspect=self._inspect, monotonic=lambda: self.clock)

    async def _inspect(
        self, python: str, *, environment: Mapping[str, str], remedy: str, timeout: float
    ) -> Interpreter:
        assert timeout == ANSWER_LIMIT
        self.asked.append(python)
        self.environments.append(environment)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.kind(f"{self.error}, or {remedy}")
        return Interpreter(executable=python, python_version="3.11.0", prefect_version="3.8.8")

    async def check(self, python: Path | str, **environment: str) -> str | None:
        """Why it cannot run flows."""
        try:
            await self.interpreters.check(str(python), environment={"PATH": PATH, **environment})
        except InterpreterError as error:
            return str(error)
        return None


FAULTS = {
    "{here}/nowhere/python": "which does not exist",
    "{here}/empty": "which is a directory",
    "{here}/empty/bin/python": "the directory {here}/empty has no bin/python",
    "{here}/plain": "may not be executed by user",
    "{here}/broken/bin/python": "a link to /nowhere/python3.10, which does not exist: make the virtual environment {here}/broken again",
    "no-such-python": "which is not in PATH (/usr/bin)",
}


@pytest.mark.parametrize(("python", "words"), FAULTS.items())
async def test_what_is_no_interpreter_is_not_asked(here: Path, python: str, words: str) -> None:
    (here / "plain").write_text("")
    broken = here / "broken" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("/nowhere/python3.10")
    asked = Asked()
    said = await asked.check(python.format(here=here))
    assert said is not None
    assert "the job variable `python`" in said
    assert python.format(here=here) in said
    assert words.format(here=here) in said
    assert asked.asked == []


async def test_one_that_can_run_flows_is_asked_once(here: Path) -> None:
    asked = Asked()
    for _ in range(3):
        assert await asked.check(here / "venv/bin/python", FOO="bar", PYTHONPATH="/lib") is None
    assert asked.asked == [f"{here}/venv/bin/python"]
    assert asked.environments == [{"PATH": PATH, "PYTHONPATH": "/lib"}]


@pytest.mark.parametrize("error", [None, "Prefect is not installed"])
async def test_runs_at_once_ask_once(here: Path, error: str | None) -> None:
    asked = Asked(error=error)
    asked.may_answer = anyio.Event()
    answers: list[str | None] = []

    async def run() -> None:
        answers.append(await asked.check(here / "venv/bin/python"))

    async with anyio.create_task_group() as runs:
        for _ in range(5):
            runs.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        asked.may_answer.set()
    assert len(asked.asked) == 1
    assert answers == [None if error is None else f"{error}, or correct the job variable `python`"] * 5


async def test_when_the_run_that_asks_is_cancelled_another_one_asks(here: Path) -> None:
    asked = Asked()
    asked.may_answer = anyio.Event()
    answers: list[str | None] = []

    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            answers.append(await asked.check(here / "venv/bin/python"))

    scopes = [anyio.CancelScope() for _ in range(3)]
    async with anyio.create_task_group() as runs:
        runs.start_soon(run, scopes[0])
        await wait_until(lambda: asked.asked, description="the question")
        for scope in scopes[1:]:
            runs.start_soon(run, scope)
        scopes[0].cancel()
        await wait_until(lambda: len(asked.asked) == 2, description="another one's question")
        asked.may_answer.set()
    assert len(asked.asked) == 2
    assert answers == [None, None]


async def test_one_that_cannot_run_flows_is_asked_by_the_next_run(here: Path) -> None:
    """Installing Prefect leaves the interpreter as it is."""
    asked = Asked(error="Prefect is not installed")
    assert await asked.check(here / "venv/bin/python") is not None
    asked.error = None
    assert await asked.check(here / "venv/bin/python") is None
    assert len(asked.asked) == 2


@pytest.mark.parametrize("change", ["link", "program", "cfg", "PYTHONPATH", "LD_LIBRARY_PATH"])
async def test_one_that_has_changed_is_asked_again(here: Path, change: str) -> None:
    python = here / "venv" / "bin" / "python"
    asked = Asked()
    assert await asked.check(python) is None
    environment: dict[str, str] = {}
    match change:
        case "link":
            os.utime(python, ns=(1, 1), follow_symlinks=False)
        case "program":
            os.utime(python, ns=(1, 1))
        case "cfg":
            (here / "venv" / "pyvenv.cfg").write_text("home = /usr\n")
        case name:
            environment[name] = "/lib"
    assert await asked.check(python, **environment) is None
    assert len(asked.asked) == 2


async def test_not_all_that_was_ever_named_is_remembered(here: Path) -> None:
    asked = Asked()
    for number in range(200):
        assert await asked.check(here / "venv/bin/python", PYTHONPATH=str(number)) is None
    assert await asked.check(here / "venv/bin/python", PYTHONPATH="199") is None
    assert len(asked.asked) == 200
    assert await asked.check(here / "venv/bin/python", PYTHONPATH="0") is None
    assert len(asked.asked) == 201


async def test_one_that_does_not_answer_is_left_alone_for_a_while(here: Path) -> None:
    """Each run that waits for an answer keeps another one from being started."""
    asked = Asked(error="it is silent", kind=NoAnswer)
    program = here / "venv/bin/python"
    for _ in range(3):
        assert "it is silent" in str(await asked.check(program))
    assert len(asked.asked) == 1
    asked.clock = SILENCE
    asked.error = None
    assert await asked.check(program) is None
    assert len(asked.asked) == 2


async def test_a_shortage_is_no_fault_of_the_interpreters(here: Path) -> None:
    asked = Asked(error="no more processes", kind=NotAsked)
    program = here / "venv/bin/python"
    assert await asked.check(program) is None
    assert await asked.check(program) is None
    assert len(asked.asked) == 2, "nothing was learnt"


async def test_a_file_system_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()

    def isdir(_path: str) -> bool:
        return gone.wait(60)

    monkeypatch.setattr(interpreters, "LOOK_LIMIT", 0.01)
    monkeypatch.setattr(os.path, "isdir", isdir)
    try:
        with pytest.raises(InterpreterError, match=r"/net/venv, and the file system did not answer"):
            await Interpreters().locate("/net/venv", working_dir=None, path=PATH)
    finally:
        gone.set()
