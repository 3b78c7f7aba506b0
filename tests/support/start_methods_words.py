"""Texts and facts of one flow process made comparable with those of another.

Owns: what is replaced in them. Does not own: which words name a run, its daemon and its directories (`start_methods`).
"""

import re
from collections.abc import Mapping
from typing import Any, cast

# What a line for people says that is of that one process: when, how long, how large, and names made up for what it starts.
_OF_ONE_PROCESS = (
    (re.compile(r"\d\d:\d\d:\d\d\.\d+|\b\d+\.\d+ ?(?:s|seconds?|ms)\b"), "TIME"),
    (re.compile(r"Peak memory \d+ MiB"), "Peak memory"),
    (re.compile(r"(?<=Task run ')([^']+)-[0-9a-f]{3}(?=')"), r"\1-XYZ"),
    (re.compile(r"(?<=run ')[a-z]+-[a-z]+(?=')"), "CHILD"),
    (re.compile(r"__prefect_loader_[0-9a-f]+__"), "LOADER"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
)
# Prefect says so at its end when the server is slow to take the last events.
OF_A_SLOW_SERVER = "Still processing items"
# The daemon's state and each run's directory in it: their names end in something random.
_OWN_DIRECTORY = re.compile(r"((?<=/)<WORKER>|(?<=/)<RUN>)-[0-9a-z_]{6,}(?=/|$)")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def replaced(value: Any, words: Mapping[str, str]) -> Any:
    """`value` (JSON) with these words for these texts, the first ones first, and without addresses in memory."""
    match value:
        case str():
            for own, word in words.items():
                value = value.replace(own, word)
            return _OWN_DIRECTORY.sub(r"\1", _ADDRESS.sub("ADDRESS", value))
        case list():
            return [replaced(one, words) for one in cast("list[Any]", value)]
        case dict():
            return {
                replaced(key, words): replaced(one, words)
                for key, one in cast("dict[str, Any]", value).items()
            }
        case _:
            return value


def of_any_process(text: str) -> str:
    """A line for people without what is of one process only."""
    for pattern, word in _OF_ONE_PROCESS:
        text = pattern.sub(word, text)
    return text
