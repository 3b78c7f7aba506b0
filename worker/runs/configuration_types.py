"""The types of a job configuration's fields, as lenient as Prefect's.

Owns step 8 of PROTOCOL 3.1: what is accepted for each field and what it becomes, and the one field that Prefect does
not have, `python`. It deliberately
does without pydantic, whose messages quote the offending value, and values may be secret; the
parity tests hold it to pydantic's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final

from worker.runs.job_variables_error import JobVariablesError, build_error, json_type
from worker.runs.placeholders import Path, is_object

FIELDS: Final = ("command", "env", "labels", "name", "python", "stream_output", "working_dir")

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE: Final = frozenset({"0", "off", "f", "false", "n", "no"})


@dataclass(frozen=True, slots=True)
class Fields:
    """The checked fields. `command` and `python` are None when none is configured."""

    command: str | None
    env: dict[str, str | None]
    labels: dict[str, str]
    name: str | None
    python: str | None
    stream_output: bool
    working_dir: str | None


class _Problems:
    """Collects what is wrong with the fields of one configuration, so that all of it is said at once."""

    def __init__(self, blame: Callable[[Path], str]) -> None:
        self._blame = blame
        self._texts: list[str] = []

    def add(self, path: Path, expected: str, value: Any) -> None:
        """Note that the value at `path` is not what is expected there."""
        got = "another string" if isinstance(value, str) and expected.startswith("true") else json_type(value)
        place = ".".join(str(segment) for segment in path)
        self._texts.append(f"{place} must be {expected}, got {got} ({self._blame(path)})")

    def error(self) -> JobVariablesError | None:
        """Give the one error for all that was noted."""
        return build_error("ValidationError", "; ".join(self._texts)) if self._texts else None


def check(configuration: Mapping[str, Any], blame: Callable[[Path], str]) -> Fields:
    """Check and convert a resolved configuration; keys other than FIELDS are ignored.

    `blame` names the origin of the value at a path, for the message. Raises JobVariablesError.
    """
    problems = _Problems(blame)
    env = configuration.get("env", {})
    if not is_object(env):
        raise build_error(
            "AttributeError",
            f"env must be an object of names and values, got {json_type(env)} ({blame(('env',))})",
        )
    fields = Fields(
        command=_text_or_null(configuration.get("command"), ("command",), problems) or None,
        env=_env(env, problems),
        labels=_labels(configuration.get("labels", {}), problems),
        name=_text_or_null(configuration.get("name"), ("name",), problems),
        python=_text_or_null(configuration.get("python"), ("python",), problems) or None,
        stream_output=_boolean(configuration.get("stream_output", True), ("stream_output",), problems),
        working_dir=_directory(configuration.get("working_dir"), problems),
    )
    if (error := problems.error()) is not None:
        raise error
    return fields


def _text_or_null(value: Any, path: Path, problems: _Problems) -> str | None:
    if value is None or isinstance(value, str):
        return value
    problems.add(path, "a string or null", value)
    return None


def _env(values: dict[str, Any], problems: _Problems) -> dict[str, str | None]:
    _check_names(values, ("env",), problems)
    return {name: None if value is None else str(value) for name, value in values.items()}


def _check_names(values: dict[Any, Any], path: Path, problems: _Problems) -> None:
    for name in values:
        if not isinstance(name, str):
            problems.add((*path, str(name)), "named by a string", name)


def _labels(values: Any, problems: _Problems) -> dict[str, str]:
    if not is_object(values):
        problems.add(("labels",), "an object of names and strings", values)
        return {}
    _check_names(values, ("labels",), problems)
    for name, value in values.items():
        if not isinstance(value, str):
            problems.add(("labels", name), "a string", value)
    return dict(values)


def _boolean(value: Any, path: Path, problems: _Problems) -> bool:
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    problems.add(path, "true or false", value)
    return True


def _directory(value: Any, problems: _Problems) -> str | None:
    text = _text_or_null(value, ("working_dir",), problems)
    return None if text is None else str(FilePath(text))
