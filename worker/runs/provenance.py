"""Where each value of a job configuration comes from.

Owns the record of a build and its summary per key. It deliberately holds names only: no value is
kept here, so a provenance may be logged and printed whatever the values are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_never

from worker.runs.layers import Layer, Origin, Variables
from worker.runs.placeholders import Filling, Kind, Path, is_object, split_path


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who set one value.

    `layer` set the key and what was written there, `overrode` are the layers that had set it too,
    weakest first, and `filled_by` names what replaced the placeholders in it, in the order it
    happened. A key that exists only inside a block document or a Prefect variable has that for its
    layer. For an undeclared variable `on` is the layer it was given on.
    """

    layer: Layer
    overrode: tuple[Layer, ...] = ()
    filled_by: tuple[str, ...] = ()
    on: Layer | None = None

    def as_json(self) -> dict[str, Any]:
        """Give the form that `explain --json` prints."""
        return {
            "layer": self.layer.value,
            **({"on": self.on.value} if self.on is not None else {}),
            "overrode": [layer.value for layer in self.overrode],
            "filled_by": list(self.filled_by),
        }


class Fillings:
    """The placeholders filled during one build, by place. Made by it, added to by its three passes."""

    def __init__(self, values: Variables) -> None:
        self._values = values
        self._records: list[tuple[Path, Filling]] = []

    def record(self, path: Path, filling: Filling) -> None:
        """Note a filling; one that replaces a whole value makes those inside the old value moot."""
        if filling.whole:
            self._records = [
                (place, old) for place, old in self._records if place == path or place[: len(path)] != path
            ]
        self._records.append((path, filling))

    def at(self, path: Path) -> tuple[str, ...]:
        """Name what filled the value at `path`, something around it or something inside it."""
        texts = (
            text
            for place, filling in self._records
            if (place == path[: len(place)] or place[: len(path)] == path)
            and (text := self._text(place, filling)) is not None
        )
        return tuple(dict.fromkeys(texts))

    def replaced_above(self, path: Path) -> Layer | None:
        """Give the kind of reference that put the key at `path` there by replacing what is around it."""
        for place, filling in reversed(self._records):
            if len(place) < len(path) and place == path[: len(place)] and filling.whole:
                match filling.kind:
                    case Kind.BLOCK:
                        return Layer.BLOCK
                    case Kind.VARIABLE:
                        return Layer.VARIABLE
                    case Kind.TEMPLATE_VARIABLE | Kind.ENVIRONMENT | Kind.CONTEXT:
                        return None
                    case _:
                        assert_never(filling.kind)
        return None

    def _text(self, place: Path, filling: Filling) -> str | None:
        if filling.whole and place == (filling.name,) and filling.kind is Kind.TEMPLATE_VARIABLE:
            return None  # "command": "{{ command }}" goes without saying
        if not filling.found:
            return f"{filling.kind} {filling.name} (not set)"
        if filling.kind is not Kind.TEMPLATE_VARIABLE:
            return f"{filling.kind} {filling.name}"
        root, *rest = split_path(filling.name)
        traced = self._values[root]
        origin = (traced.of(rest[0]) if rest else traced.history)[-1]
        return f"{filling.kind} {filling.name} ({origin.layer})"


def summarize(history: tuple[Origin, ...]) -> Provenance:
    """Give the provenance that a history amounts to."""
    *earlier, last = history
    overrode = dict.fromkeys(origin.layer for origin in earlier if origin != last)
    return Provenance(last.layer, tuple(overrode), on=last.on)


def trace(path: Path, origins: Variables, fillings: Fillings) -> Provenance:
    """Give the provenance of the value at `path`: `("command",)` or `("env", name)`."""
    traced = origins.get(path[0])
    history: tuple[Origin, ...] = ()
    if traced is not None:
        history = traced.history if len(path) == 1 else traced.parts.get(path[1], ())
    reference = fillings.replaced_above(path)
    if reference is not None:
        history = (*history, Origin(reference))
    elif not history:
        history = traced.history if traced is not None else (Origin(Layer.WORKER_DEFAULT),)
    summary = summarize(history)
    return Provenance(summary.layer, summary.overrode, fillings.at(path), summary.on)


def keys(configuration: dict[str, Any], fields: tuple[str, ...]) -> Iterator[Path]:
    """Give the places of a configuration that have a provenance of their own."""
    for name in fields:
        value = configuration.get(name)
        if is_object(value):
            yield from ((name, key) for key in value)
        elif name in configuration:
            yield (name,)


def flat(path: Path) -> str:
    """Give the name of a place: `env.X`."""
    return ".".join(str(segment) for segment in path)
