"""A process is got ready beside the claim, and what is not started is gone."""

from collections.abc import Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from worker.processes.launch_problems import LaunchError
from worker.runs import readying
from worker.runs.readying import Start, beside

pytestmark = pytest.mark.anyio


class Making:
    """A start that waits for `finish`, and tells what became of it."""

    def __init__(self, result: Start | Exception) -> None:
        self.began = anyio.Event()
        self.finish = anyio.Event()
        self.cancelled = False
        self._result = result

    async def __call__(self) -> Start:
        self.began.set()
        try:
            await self.finish.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def a_start() -> Start:
    return Start.__new__(Start)


async def nothing() -> None:
    """There is nothing to be given up."""


async def test_the_claim_does_not_wait_for_the_start_nor_the_start_for_the_claim() -> None:
    start = a_start()
    making = Making(start)

    async def claim() -> bool:
        await making.began.wait()
        making.finish.set()
        return True

    assert await beside(claim, making, nothing, after=False) is start


async def test_what_is_made_for_a_claim_that_is_lost_is_given_up() -> None:
    making = Making(a_start())

    async def claim() -> bool:
        await making.began.wait()
        return False

    assert await beside(claim, making, nothing, after=False) is None
    assert making.cancelled


async def test_where_others_claim_too_nothing_is_made_before_the_claim_is_won() -> None:
    making = Making(a_start())

    async def lost() -> bool:
        await anyio.lowlevel.checkpoint()
        return False

    assert await beside(lost, making, nothing, after=True) is None
    assert not making.began.is_set()

    async def won() -> bool:
        assert not making.began.is_set()
        making.finish.set()
        return True

    assert await beside(won, making, nothing, after=True) is not None


@pytest.mark.parametrize(
    "failing",
    [lambda: LaunchError("no such program"), lambda: ValueError("a surprise")],
)
async def test_what_keeps_the_start_from_being_made_is_told_only_once_the_claim_is_won(
    failing: Callable[[], Exception],
) -> None:
    error = failing()
    making = Making(error)
    making.finish.set()
    decided = anyio.Event()

    async def won() -> bool:
        await making.began.wait()
        await anyio.lowlevel.checkpoint()
        decided.set()
        return True

    assert await beside(won, making, nothing, after=False) is error
    assert decided.is_set()

    async def lost() -> bool:
        return False

    assert await beside(lost, making, nothing, after=False) is None


@pytest.mark.parametrize(
    "stale", [a_start, lambda: LaunchError("no such program"), lambda: ValueError("deleted")]
)
async def test_what_was_made_long_before_the_claim_was_won_is_made_anew(
    stale: Callable[[], Start | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readying, "LONGEST_BEFORE_CLAIM", -1.0)
    story: list[str] = []
    fresh = a_start()
    made = iter((stale(), fresh))

    async def make() -> Start:
        story.append("made")
        it = next(made)
        if isinstance(it, Exception):
            raise it
        return it

    async def discard() -> None:
        story.append("discarded")

    async def won() -> bool:
        return True

    assert await beside(won, make, discard, after=False) is fresh
    assert story == ["made", "discarded", "made"]


async def test_how_long_the_start_takes_that_follows_its_claim_does_not_matter() -> None:
    making = Making(a_start())
    making.finish.set()

    async def won() -> bool:
        return True

    async def discard() -> None:
        raise AssertionError("it was made from what is")

    assert await beside(won, making, discard, after=True) is not None


async def test_an_error_of_the_claim_is_raised_alone_and_the_start_given_up() -> None:
    making = Making(a_start())

    async def claim() -> bool:
        await making.began.wait()
        raise RuntimeError("the journal is gone")

    with pytest.raises(RuntimeError, match="the journal is gone"):
        await beside(claim, making, nothing, after=False)
    assert making.cancelled


async def test_whoever_is_cancelled_leaves_neither_behind() -> None:
    making = Making(a_start())
    left = anyio.Event()

    async def claim() -> bool:
        try:
            await anyio.sleep_forever()
        finally:
            left.set()
        return True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(beside, claim, making, nothing, after=False))
        await making.began.wait()
        tasks.cancel_scope.cancel()
    assert making.cancelled
    assert left.is_set()
