"""The event catalogue of `docs/logs.md`, and what is wrong with a line that a daemon logged.

Owns how the catalogue is written down: table rows of name, levels, fields and meaning.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.log_calls import Event

PAGE = Path(__file__).parents[2] / "docs" / "logs.md"
COMMON = frozenset(
    {"timestamp", "level", "event", "work_pool", "worker", "flow_run_id", "flow_run", "deployment", "flow"}
)
_ROW = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \| ([a-z, ]+) \|([^|]*)\|([^|]*)\|$", re.MULTILINE)


@cache
def catalogue() -> Mapping[str, Event]:
    """The documented events."""
    return read(PAGE.read_text(encoding="utf-8"))


def read(page: str) -> Mapping[str, Event]:
    """The events in the tables of a page. Raises ValueError for one that is listed twice."""
    listed: dict[str, Event] = {}
    for name, levels, fields, _meaning in _ROW.findall(page):
        if name in listed:
            msg = f"{name} is listed twice"
            raise ValueError(msg)
        words = re.findall(r"`([^`]+)`", fields)
        listed[name] = Event(
            levels=frozenset(levels.replace(" ", "").split(",")),
            always=frozenset(word for word in words if not word.endswith("?")),
            sometimes=frozenset(word.removesuffix("?") for word in words if word.endswith("?")),
        )
    return listed


def faults(line: Mapping[str, Any], listed: Mapping[str, Event] | None = None) -> list[str]:
    """In what a logged line is not as documented."""
    name = str(line.get("event"))
    event = (catalogue() if listed is None else listed).get(name)
    if event is None:
        return [f"{name} is not in docs/logs.md"]
    found = [] if line.get("level") in event.levels else [f"{name} at level {line.get('level')}"]
    found += [f"{name} without its field {field}" for field in sorted(event.always - line.keys())]
    unknown = line.keys() - COMMON - event.always - event.sometimes
    return found + [f"{name} with a field {field} that is not documented" for field in sorted(unknown)]
