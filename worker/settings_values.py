"""What the value of a setting may be: from any layer's form to one typed value, and back to text.

Follows the validation of Prefect 3.8.8's settings models, so that a value Prefect refuses is refused here
and a value is exported to flow processes in the text Prefect would export (PROTOCOL 1.7). Knows no names,
no files and no precedence. Errors never repeat the value: it may be a secret.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import Field, SecretStr, TypeAdapter

__all__ = ["Bound", "Kind", "Shape"]


class Kind(StrEnum):
    """The shapes of Prefect's settings."""

    ANY = "any"
    BOOL = "bool"
    CHOICE = "choice"
    CODES = "codes"
    DELAY = "delay"
    DELAYS = "delays"
    DURATION = "duration"
    DURATIONS = "durations"
    FILE = "file"
    FLOAT = "float"
    HEADERS = "headers"
    INT = "int"
    LEVEL = "level"
    PATH = "path"
    SECONDS = "seconds"
    SIZE = "size"
    SPAN = "span"
    SECRET = "secret"  # noqa: S105 - the name of a kind
    TEXT = "text"
    VACUUM = "vacuum"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Bound:
    """The smallest value allowed, or the one it must exceed."""

    limit: float
    inclusive: bool

    def allows(self, value: float) -> bool:
        """False for NaN too."""
        return value >= self.limit if self.inclusive else value > self.limit


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind and its limits."""

    kind: Kind
    bound: Bound | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """The shape written as `kind`, `kind>=limit`, `kind>limit` or `choice=a|b`."""
        for operator in (">=", ">"):
            kind, found, limit = text.partition(operator)
            if found:
                return cls(Kind(kind), bound=Bound(float(limit), inclusive=operator == ">="))
        kind, _, choices = text.partition("=")
        return cls(Kind(kind), choices=tuple(choices.split("|")) if choices else ())

    def parse(self, raw: object) -> object:
        """The typed value of `raw`, which is text of the environment or a value of TOML.

        None means that the value sets nothing, as an empty list of delays does for Prefect.
        Raises ValueError, whose text may hold the value: never show it, show `accepts`.
        """
        value = _adapter(self.kind).validate_python(_RULES[self.kind].prepare(raw))
        if self.choices and value not in self.choices:
            raise ValueError
        if self.bound is not None and not self.bound.allows(value):
            raise ValueError
        return value

    def to_text(self, value: object) -> str | None:
        """The text that Prefect's worker exports to its child for a parsed value; None: nothing."""
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        plain: object = _adapter(self.kind).dump_python(value, mode="json")
        match plain:
            case None:
                return None
            case list():
                return ",".join(sorted(str(item) for item in cast("list[object]", plain)))
            case dict():
                return json.dumps(plain)
            case _:
                return str(plain)

    @property
    def accepts(self) -> str:
        """What a user may write, to follow "must be"."""
        text = " or ".join(repr(choice) for choice in self.choices) or _RULES[self.kind].accepts
        if self.bound is None:
            return text
        return f"{text} {'of at least' if self.bound.inclusive else 'above'} {self.bound.limit:g}"


def _same(raw: object) -> object:
    return raw


def _json(raw: object) -> object:
    return json.loads(raw) if isinstance(raw, str) else raw


def _json_or_same(raw: object) -> object:
    try:
        return _json(raw)
    except ValueError:
        return raw


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _members(raw: object) -> object:
    match value := _json_or_same(raw):
        case None | "":
            return []
        case str():
            return _words(value)
        case list():
            return cast("list[object]", value)
        case _:
            return [value]


def _delays(raw: object) -> object:
    value = _json_or_same(raw)
    if not isinstance(value, str):
        return value
    parts = [word for word in _words(value) if word]
    if len(parts) > 1:
        return parts
    return float(parts[0]) if parts else None


def _level(raw: object) -> object:
    return raw.upper() if isinstance(raw, str) else raw


def _seconds(raw: object) -> object:
    try:
        return float(raw) if isinstance(raw, str) else raw
    except ValueError:
        return raw  # an ISO 8601 duration, which pydantic reads


def _durations(raw: object) -> object:
    value = _json(raw)
    if not isinstance(value, dict):
        return value
    return {key: _seconds(item) for key, item in cast("dict[object, object]", value).items()}


def _not_empty(raw: object) -> object:
    if raw == "":
        raise ValueError
    return raw


def _vacuum(raw: object) -> object:
    value = _json_or_same(raw)
    if not isinstance(value, str):
        return value
    match value.strip().lower():
        case "true" | "1":
            return True
        case "false" | "0" | "":
            return False
        case _:
            return [word for word in _words(value) if word]


def _with_unit(raw: object, pattern: re.Pattern[str], units: Mapping[str, int]) -> object:
    if not isinstance(raw, str):
        return raw
    found = pattern.fullmatch(raw.strip().lower())
    if found is None:
        raise ValueError
    return float(found[1]) * units[found[2]]


def _size(raw: object) -> object:
    return _with_unit(raw, _NUMBER_AND_SIZE, _SIZES)


def _span(raw: object) -> object:
    return _with_unit(raw, _NUMBER_AND_SPAN, _SPANS)


_SPANS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZES: Final = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib"), 1)},
}
_NUMBER_AND_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_NUMBER_AND_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[kmg]i?b)?)")


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one kind is read: the textual forms pydantic does not know are undone first."""

    accepts: str
    type: Any
    prepare: Callable[[object], object] = _same


_RULES: Final[Mapping[Kind, _Rule]] = {
    Kind.ANY: _Rule("a value", Any),
    Kind.BOOL: _Rule("true or false", bool),
    Kind.CHOICE: _Rule("one of its choices", str),
    Kind.CODES: _Rule(
        "HTTP status codes (100 to 599) separated by commas, such as 404,500",
        set[Annotated[int, Field(ge=100, le=599)]],
        _members,
    ),
    Kind.DELAY: _Rule("a number of seconds or a JSON list of them", int | float | list[float], _json_or_same),
    Kind.DELAYS: _Rule(
        "a number of seconds, or several separated by commas", int | float | list[float] | None, _delays
    ),
    Kind.DURATION: _Rule("a duration in ISO 8601, such as PT1H", timedelta),
    Kind.DURATIONS: _Rule("a JSON object of durations in seconds", dict[str, timedelta], _durations),
    Kind.FILE: _Rule("the path of a file", Path, _not_empty),
    Kind.FLOAT: _Rule("a number", float),
    Kind.HEADERS: _Rule('a JSON object of strings, such as {"X-Team": "data"}', dict[str, str], _json),
    Kind.INT: _Rule("a whole number", int),
    Kind.LEVEL: _Rule(
        "DEBUG, INFO, WARNING, ERROR or CRITICAL",
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        _level,
    ),
    Kind.PATH: _Rule("a path", Path),
    Kind.SECONDS: _Rule("a number of seconds or an ISO 8601 duration such as PT1H", timedelta, _seconds),
    Kind.SECRET: _Rule("text", SecretStr),
    Kind.SIZE: _Rule("a number of bytes, or one with a unit, such as 100MB or 64MiB", float, _size),
    Kind.SPAN: _Rule("a number of seconds, or one with a unit, such as 90s, 15m, 2h or 1d", float, _span),
    Kind.TEXT: _Rule("text", str),
    Kind.VACUUM: _Rule("true, false or names separated by commas", bool | set[str], _vacuum),
    Kind.WORDS: _Rule("names separated by commas", set[str], _members),
}


@cache
def _adapter(kind: Kind) -> TypeAdapter[Any]:
    """Prefect validates with pydantic; using it keeps its idea of a number or a boolean written as text."""
    return TypeAdapter(_RULES[kind].type)
