"""Placeholders in job templates: what they look like, what they name, how text is filled.

Owns the grammar, the path lookup and the filling from template variables and the worker's
environment. It deliberately does not know layers, nor how blocks and Prefect variables are read:
their placeholders are recognised here and left in place.

Source of every rule: PROTOCOL 3.2, checked against Prefect 3.8.8 by the parity tests. One thing is
settled here that Prefect leaves open: it walks the placeholders of one text in the arbitrary order
of a hash set, we walk them as they appear.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Final, TypeGuard, assert_never

BLOCK_PREFIX: Final = "prefect.blocks."
VARIABLE_PREFIX: Final = "prefect.variables."
ENVIRONMENT_PREFIX: Final = "$"

_PLACEHOLDER: Final = re.compile(r"{{\s*([\w.\-\[\]$]+)\s*}}")

Path = tuple[str, ...]
"""Where in the configuration a value stands: `("env", "A")`."""


class Missing(Enum):
    """The answer "there is no such value", which null is not."""

    MISSING = auto()


MISSING: Final = Missing.MISSING


class Kind(StrEnum):
    """What a placeholder names."""

    TEMPLATE_VARIABLE = "job variable"
    BLOCK = "block"
    VARIABLE = "variable"
    ENVIRONMENT = "worker environment"
    CONTEXT = "run context"
    """A variable again, but looked up in the run itself, which only names are (PROTOCOL 3.4)."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One `{{ name }}` of a text; `text` is all of it, braces and spaces included."""

    text: str
    name: str

    @property
    def kind(self) -> Kind:
        """Tell by its prefix what the placeholder names."""
        if self.name.startswith(BLOCK_PREFIX):
            return Kind.BLOCK
        if self.name.startswith(VARIABLE_PREFIX):
            return Kind.VARIABLE
        if self.name.startswith(ENVIRONMENT_PREFIX):
            return Kind.ENVIRONMENT
        return Kind.TEMPLATE_VARIABLE

    @property
    def root(self) -> str:
        """Give the first segment of the name: the variable that a path starts from."""
        return split_path(self.name)[0]


@dataclass(frozen=True, slots=True)
class Filling:
    """What took the place of a placeholder: names only, never the value."""

    kind: Kind
    name: str
    found: bool
    whole: bool
    """The whole value was replaced, keeping its type, rather than a part of a text."""


Record = Callable[[Path, Filling], None]
"""Told of every filling, with the place in the configuration where it happened."""


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether `value` is a JSON object."""
    return isinstance(value, dict)


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Tell whether `value` is a JSON list."""
    return isinstance(value, list)


def find(text: str) -> tuple[Placeholder, ...]:
    """Give the distinct placeholders of `text` in the order of their first appearance."""
    return tuple(dict.fromkeys(Placeholder(m.group(0), m.group(1)) for m in _PLACEHOLDER.finditer(text)))


def find_everywhere(template: Any) -> tuple[Placeholder, ...]:
    """Give the placeholders of every text in a nested template; keys are never templated."""
    if isinstance(template, str):
        return find(template)
    if is_object(template):
        return tuple(p for value in template.values() for p in find_everywhere(value))
    if is_list(template):
        return tuple(p for value in template for p in find_everywhere(value))
    return ()


def whole(text: str, found: tuple[Placeholder, ...], kind: Kind) -> Placeholder | None:
    """Give the placeholder that is all of `text` and of this kind, so that its value keeps its type."""
    if len(found) == 1 and found[0].text == text and found[0].kind is kind:
        return found[0]
    return None


def split_path(path: str) -> list[str]:
    """Cut `a.b[0].c` into its segments; stray brackets cut like dots, as Prefect's do."""
    return path.replace("[", ".").replace("]", "").split(".")


def lookup(value: Any, path: str) -> Any:
    """Follow `path` into nested values; MISSING when it leads nowhere.

    A segment that reads as an integer is an index, so the key `"1"` of an object is out of reach
    and the characters of a text are within it.
    """
    for segment in split_path(path):
        try:
            value = value[_index(segment)]
        except (TypeError, KeyError, IndexError):
            return MISSING
    return value


def _index(segment: str) -> str | int:
    try:
        return int(segment)
    except ValueError:
        return segment


def fill(
    template: Any,
    *,
    values: Mapping[str, Any],
    process_env: Mapping[str, str],
    record: Record,
    path: Path = (),
) -> Any:
    """Fill the placeholders of template variables and of the worker's environment, once.

    A value is not filled again. MISSING when the whole template is one unknown variable: the key
    or element that holds it is left out. `template` is not changed; parts of `values` are shared
    with the result.
    """
    if isinstance(template, str):
        return _fill_text(template, values, process_env, record, path)
    if is_object(template):
        filled = {
            key: fill(value, values=values, process_env=process_env, record=record, path=(*path, key))
            for key, value in template.items()
        }
        return {key: value for key, value in filled.items() if value is not MISSING}
    if is_list(template):
        elements = [
            fill(value, values=values, process_env=process_env, record=record, path=(*path, str(index)))
            for index, value in enumerate(template)
        ]
        return [value for value in elements if value is not MISSING]
    return template


def _fill_text(
    text: str, values: Mapping[str, Any], process_env: Mapping[str, str], record: Record, path: Path
) -> Any:
    found = find(text)
    if (only := whole(text, found, Kind.TEMPLATE_VARIABLE)) is not None:
        value = lookup(values, only.name)
        record(path, Filling(only.kind, only.name, found=value is not MISSING, whole=True))
        return value
    for placeholder in found:
        name = placeholder.name
        kind = placeholder.kind
        match kind:
            case Kind.TEMPLATE_VARIABLE:
                value = lookup(values, name)
            case Kind.ENVIRONMENT:
                name = name.lstrip(ENVIRONMENT_PREFIX)
                value = process_env.get(name, MISSING)
            case Kind.BLOCK | Kind.VARIABLE | Kind.CONTEXT:
                continue
            case _:
                assert_never(kind)
        record(path, Filling(kind, name, found=value is not MISSING, whole=False))
        text = text.replace(placeholder.text, "" if value is MISSING else str(value))
    return text
