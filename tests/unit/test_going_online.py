"""The way online: begun once, waited for, given up; and its errors are those of the tasks it is begun in."""

import sys
from collections.abc import Callable
from unittest.mock import Mock

import anyio
import pytest

from worker.fatal import EXIT_INTERPRETER, EXIT_POOL, FatalError
from worker.going_online import GoingOnline
from worker.options import Options
from worker.processes import interpreter
from worker.processes.interpreter import Interpreter
from worker.runs.work_pool import PoolRefused, WorkPoolKeeper

pytestmark = pytest.mark.anyio


class Pool:
    """A pool that is found when `found` is set; counts what it was asked."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.found = anyio.Event()
        self.calls: list[str] = []
        self._refusal = refusal

    async def ensure(self) -> None:
        self.calls.append("ensure")
        if self._refusal is not None:
            raise self._refusal
        await self.found.wait()

    async def beat_once(self) -> float:
        self.calls.append("beat")
        return 30.0


@pytest.fixture
def going(monkeypatch: pytest.MonkeyPatch) -> Callable[..., GoingOnline]:
    async def inspect(python: str) -> Interpreter:
        if python != sys.executable:
            raise interpreter.InterpreterError(f"{python} does not exist")
        return Interpreter(executable=python, python_version="3.11.7", prefect_version="3.8.8")

    monkeypatch.setattr("worker.going_online.inspect_interpreter", inspect)

    def make(pool: Pool, python: str = sys.executable) -> GoingOnline:
        return GoingOnline(Mock(Options, python=python), Mock(WorkPoolKeeper, wraps=pool))

    return make


async def test_it_is_walked_once_and_waited_for(going: Callable[..., GoingOnline]) -> None:
    pool = Pool()
    online = going(pool)
    async with anyio.create_task_group() as tasks:
        online.begin(tasks)
        await online.arrived(within=0)
        await anyio.wait_all_tasks_blocked()
        assert pool.calls == ["ensure"], "the server has not answered"
        online.begin(tasks)
        pool.found.set()
        await online.arrived()
    assert pool.calls == ["ensure", "beat"]


async def test_given_up_it_is_not_walked_to_the_end(going: Callable[..., GoingOnline]) -> None:
    pool = Pool()
    online = going(pool)
    async with anyio.create_task_group() as tasks:
        online.begin(tasks)
        await anyio.wait_all_tasks_blocked()
        online.give_up()
    assert pool.calls == ["ensure"]


async def test_begun_after_it_was_given_up_it_sends_nothing(going: Callable[..., GoingOnline]) -> None:
    pool = Pool()
    pool.found.set()
    online = going(pool)
    online.give_up()
    async with anyio.create_task_group() as tasks:
        online.begin(tasks)
    assert "beat" not in pool.calls


@pytest.mark.parametrize(
    ("refusal", "python", "exit_code"),
    [
        (PoolRefused("of another type"), sys.executable, EXIT_POOL),
        (None, "/missing/python", EXIT_INTERPRETER),
    ],
)
async def test_what_forbids_it_ends_the_daemon(
    going: Callable[..., GoingOnline], refusal: Exception | None, python: str, exit_code: int
) -> None:
    online = going(Pool(refusal), python)

    async def begin_and_wait() -> None:
        async with anyio.create_task_group() as tasks:
            online.begin(tasks)
            await online.arrived()

    with pytest.RaisesGroup(FatalError, flatten_subgroups=True) as raised:
        await begin_and_wait()
    error = raised.value.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FatalError)
    assert error.exit_code == exit_code
