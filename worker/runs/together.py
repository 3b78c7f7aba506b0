"""Questions to the server that do not wait for each other's answers."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


@overload
async def together(
    first: Callable[[], Awaitable[A]], second: Callable[[], Awaitable[B]], /
) -> tuple[A, B]: ...


@overload
async def together(
    first: Callable[[], Awaitable[A]],
    second: Callable[[], Awaitable[B]],
    third: Callable[[], Awaitable[C]],
    /,
) -> tuple[A, B, C]: ...


async def together(*questions: Callable[[], Awaitable[Any]]) -> tuple[Any, ...]:
    """All results. When some fail, raises the error of the first of them in this order, after all have ended.

    The error is not wrapped in a group: callers handle it as if they had asked one after the other.
    """
    results: dict[int, Any] = {}
    errors: dict[int, Exception] = {}

    async def ask(place: int, question: Callable[[], Awaitable[object]]) -> None:
        try:
            results[place] = await question()
        except Exception as error:  # noqa: BLE001 - raised again below
            errors[place] = error

    async with anyio.create_task_group() as asking:
        for place, question in enumerate(questions):
            asking.start_soon(ask, place, question)
    if errors:
        raise errors[min(errors)]
    return tuple(results[place] for place in range(len(questions)))
