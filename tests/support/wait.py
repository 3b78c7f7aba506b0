"""Waiting for a condition instead of for a time.

Owns the two polling helpers that every tier uses. Knows nothing of what is waited for; the predicate does.
"""

import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar, cast

import anyio

Found = TypeVar("Found")

# A test may wait long on a busy machine; it must never wait for ever.
DEFAULT_TIMEOUT = 60.0
POLL_INTERVAL = 0.05


async def wait_until(
    predicate: Callable[[], Found | Awaitable[Found | None] | None],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    description: str,
) -> Found:
    """Poll `predicate` (sync or async) until its answer is truthy, and return that answer.

    `timeout` is in seconds. Raises `AssertionError` saying what never happened.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = predicate()
        found = cast("Found | None", await answer if isawaitable(answer) else answer)
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(_never(description, timeout))
        await anyio.sleep(POLL_INTERVAL)


def wait_for(
    predicate: Callable[[], Found | None],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    interval: float = POLL_INTERVAL,
    description: str | Callable[[], str],
) -> Found:
    """Poll `predicate` until its answer is truthy, and return it; the sync twin of `wait_until`.

    `description` may be a function: it is then asked only on failure, and can tell the last state seen.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = predicate()
        if found:
            return found
        if time.monotonic() >= deadline:
            text = description if isinstance(description, str) else description()
            raise AssertionError(_never(text, timeout))
        time.sleep(interval)


def _never(description: str, timeout: float) -> str:
    return f"never happened within {timeout:g} s: {description}"
