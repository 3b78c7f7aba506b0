"""Asks a program one question: starts it, takes its short answer, and leaves nothing of it behind.

Which program it is may be a user's choice, so nothing is expected of it: not that it ends, not that it stops talking,
not that it does its work itself. Does not own what the answer means (`interpreter`).
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import anyio
from anyio.abc import ByteReceiveStream

LONGEST_ANSWER = 64 * 1024
"""Bytes of each stream that are taken; a program that has more to say is ended."""


async def ask(
    command: Sequence[str], *, cwd: str, environment: Mapping[str, str] | None, timeout: float
) -> tuple[int, str, str]:
    """The exit status, the output and the errors of a program, which is given `timeout` seconds.

    Raises TimeoutError, and OSError when it cannot be started. In every case its process group is gone afterwards.
    """
    process = await anyio.open_process(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    heard = [bytearray(), bytearray()]
    talkative = False

    async def listen(stream: ByteReceiveStream | None, into: bytearray) -> None:
        nonlocal talkative
        if stream is None:
            return
        async for chunk in stream:
            into += chunk[: LONGEST_ANSWER - len(into)]
            if len(into) >= LONGEST_ANSWER:
                talkative = True
                group.cancel_scope.cancel()

    try:
        with anyio.fail_after(timeout):
            async with anyio.create_task_group() as group:
                group.start_soon(listen, process.stdout, heard[0])
                group.start_soon(listen, process.stderr, heard[1])
            if talkative:
                _end(process.pid)
            status = await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            # The group has its number for as long as anybody is in it: it can be nobody else's.
            _end(process.pid)
            await process.wait()
            await process.aclose()
    output, errors = (bytes(one).decode(errors="replace") for one in heard)
    return status, output, errors


def _end(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
