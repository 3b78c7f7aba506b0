"""Job variables that a work pool's template has no use for.

Owns the rule of the `layered` mode for undeclared ones: which become environment variables, and what
is said about the others; `stock` drops them all without a word. Declared ones that the template does not
look at have no effect in either mode. It deliberately merges nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.runs.job_template import JobTemplate
from worker.runs.layers import ENV, Layer, Origin, Traced, Variables, is_dotted
from worker.runs.placeholders import Kind, find_everywhere, is_object, split_path

PYTHON: Final = "python"
"""The one variable of headrace's own: a pool that Prefect has made knows nothing of it."""

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Ignored:
    """A variable that has no effect, the layers that set it, and why it has none."""

    name: str
    layers: tuple[Layer, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Undeclared:
    """The undeclared variables of a run: those promoted to env, by layer, and the others with a line for each."""

    promoted: Mapping[Layer, Variables]
    ignored: tuple[Ignored, ...]
    notes: tuple[str, ...]


def find_undeclared(template: JobTemplate, layers: Mapping[Layer, Variables]) -> Undeclared:
    """Sort out the variables that are neither declared nor used by the template."""
    used = _used(template, layers)
    known = used | set(template.declared)
    promoted: dict[Layer, Variables] = {}
    ignored: dict[str, list[Layer]] = {}
    reasons: dict[str, str] = {}
    for layer, variables in layers.items():
        values: dict[str, Any] = {}
        for name, traced in variables.items():
            if _root(name) in known:
                continue
            reason = _reason_to_ignore(name, traced.value, env_is_used=ENV in used)
            if reason is None:
                values[name] = traced.value
            else:
                ignored.setdefault(name, []).append(layer)
                reasons[name] = reason
        if values:
            promoted[layer] = {ENV: Traced.on(Origin(Layer.UNDECLARED, on=layer), values)}
    lost = tuple(Ignored(name, tuple(on), reasons[name]) for name, on in ignored.items())
    return Undeclared(promoted, lost, tuple(_note(one, template.declared) for one in lost))


def find_unused(template: JobTemplate, layers: Mapping[Layer, Variables]) -> tuple[Ignored, ...]:
    """Give the declared variables that filling the template does not look at; `layers` set some of them in vain."""
    used = _used(template, layers)
    reason = "the template declares it, and its job_configuration does not use it"
    return tuple(
        Ignored(
            name,
            tuple(
                layer
                for layer, variables in layers.items()
                if any(_root(given) == name for given in variables)
            ),
            reason,
        )
        for name in template.declared
        if name not in used
    )


def nearest(name: str, declared: Sequence[str]) -> str | None:
    """Give the declared name that a variable's name is most like, if it is like any."""
    return next(iter(difflib.get_close_matches(_root(name).lower(), declared, n=1)), None)


def _root(name: str) -> str:
    return split_path(name)[0] if is_dotted(name) else name


def _used(template: JobTemplate, layers: Mapping[Layer, Variables]) -> set[str]:
    """Give the variables that filling the template looks at.

    Where env is an object in the template, the layers' env is merged into it before it is filled,
    so what that names is looked at too (PROTOCOL 3.2).
    """
    fields = template.fields or {}
    texts: list[Any] = [traced.value for traced in fields.values()]
    env_is_merged = ENV in fields and is_object(fields[ENV].value)
    if env_is_merged:
        texts.extend(_env_values(layers))
    used = {p.root for text in texts for p in find_everywhere(text) if p.kind is Kind.TEMPLATE_VARIABLE}
    return used | {ENV} if env_is_merged else used


def _env_values(layers: Mapping[Layer, Variables]) -> Iterator[Any]:
    for variables in layers.values():
        for name, traced in variables.items():
            if name == ENV or (is_dotted(name) and split_path(name)[0] == ENV):
                yield traced.value


def _reason_to_ignore(name: str, value: Any, *, env_is_used: bool) -> str | None:
    if name == PYTHON:
        return "it is not declared, as it is in pools that headrace makes: add it to the pool's base job template"
    if _ENVIRONMENT_NAME.fullmatch(name) is None:
        return "it is not declared"
    if isinstance(value, (dict, list)):
        return "it is not declared, and only a single value can become an environment variable"
    if not env_is_used:
        return "it is not declared, and the pool's template takes no environment variables"
    return None


def _note(ignored: Ignored, declared: tuple[str, ...]) -> str:
    on = " and ".join(ignored.layers)
    offer = f"The work pool declares: {', '.join(declared)}." if declared else "The work pool declares none."
    close = nearest(ignored.name, declared)
    hint = f" Did you mean {close!r}?" if close else ""
    return f"Job variable {ignored.name!r} ({on}) is ignored: {ignored.reason}. {offer}{hint}"
