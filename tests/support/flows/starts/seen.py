"""Flows that write down all that they can see: when their file is imported, and when their body begins."""

import sys

BEFORE = set(sys.modules)

import look  # noqa: E402 - what it imports itself is not to be seen
import notes  # noqa: E402
from prefect import flow, task  # noqa: E402

IMPORTED = look.everything(BEFORE)


@flow
def seen(out: str) -> str:
    notes.note(out, "imported", **IMPORTED)
    notes.note(out, "body", **look.everything(BEFORE))
    return "seen"


@flow
async def seen_async(out: str) -> str:
    notes.note(out, "imported", **IMPORTED)
    notes.note(out, "body", **look.everything(BEFORE))
    return "seen"


@task
def look_in_a_task() -> dict:
    return look.everything(BEFORE)


@flow(log_prints=True)
def seen_in_a_task(out: str) -> str:
    print("printed to the log")
    notes.note(out, "body", **look_in_a_task())
    return "seen"
