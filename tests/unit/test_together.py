"""Questions asked together: all answers, and the first error as it is."""

import anyio
import anyio.lowlevel
import pytest

from worker.runs.together import together

pytestmark = pytest.mark.anyio


async def test_the_questions_wait_for_each_other_only_here() -> None:
    asked = anyio.Event()

    async def waits() -> str:
        await asked.wait()
        return "answer"

    async def asks() -> int:
        asked.set()
        return 1

    async def other() -> None:
        return None

    assert await together(waits, asks, other) == ("answer", 1, None)


async def test_the_first_error_in_order_is_raised_alone_once_all_have_ended() -> None:
    ended: list[str] = []

    async def late() -> None:
        await anyio.lowlevel.checkpoint()
        ended.append("late")
        raise LookupError("first")

    async def early() -> None:
        ended.append("early")
        raise ValueError("second")

    async def fine() -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        ended.append("fine")

    with pytest.raises(LookupError, match="first"):
        await together(late, early, fine)
    assert sorted(ended) == ["early", "fine", "late"]
