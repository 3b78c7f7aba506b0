"""Every setting the daemon knows: its name, the shape of its value and its legacy names.

Owns the look-ups by variable, by TOML path and by legacy name. Reads no layer and decides no precedence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.settings_table import TABLE
from worker.settings_values import Shape

__all__ = ["CATALOGUE", "OWN_PREFIX", "OWN_SECTION", "Catalogue", "Definition"]

OWN_SECTION: Final = "headrace"
OWN_PREFIX: Final = "HEADRACE_"


@dataclass(frozen=True, slots=True)
class Definition:
    """One setting: where it stands in TOML, the variable that sets it, and what a value must be."""

    path: str
    name: str
    shape: Shape
    legacy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The settings by each of the ways a layer can name them."""

    by_name: Mapping[str, Definition]
    by_path: Mapping[str, Definition]
    legacy: Mapping[str, str]
    """Legacy variable to the variable that replaced it."""
    sections: frozenset[str]
    """Paths of the TOML tables that hold settings or other tables."""


def _definition(line: str) -> Definition:
    path, kind, *legacy = line.split()
    name = path.upper().replace(".", "_")
    return Definition(
        path=path,
        name=name if name.startswith(OWN_PREFIX) else f"PREFECT_{name}",
        shape=Shape.read(kind),
        legacy=tuple(f"PREFECT_{short}" for short in legacy),
    )


def _catalogue(table: str) -> Catalogue:
    definitions = [_definition(line) for line in table.split("\n") if line]
    parts = [definition.path.split(".") for definition in definitions]
    return Catalogue(
        by_name={definition.name: definition for definition in definitions},
        by_path={definition.path: definition for definition in definitions},
        legacy={old: definition.name for definition in definitions for old in definition.legacy},
        sections=frozenset(".".join(path[:depth]) for path in parts for depth in range(1, len(path))),
    )


CATALOGUE: Final = _catalogue(TABLE)
