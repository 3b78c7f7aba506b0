"""Layers of job variables and how they are laid over each other, with a memory of who set what.

Owns the operations (expand dotted keys, overlay, update) and the order in which the two modes
apply them. It deliberately knows no template, no placeholder and no final type. Source of the stock
order: PROTOCOL 3.1, steps 1, 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Any, Final

from worker.runs.job_variables_error import build_error, json_type
from worker.runs.placeholders import MISSING, is_object, split_path

ENV: Final = "env"


class Layer(StrEnum):
    """Where a value can come from, weakest layer first; the last ones only fill what a layer asks for."""

    WORKER_DEFAULT = "worker default"
    POOL_TEMPLATE = "pool template"
    POOL_DEFAULT = "pool default"
    DEPLOYMENT = "deployment"
    FLOW_RUN = "flow run"
    UNDECLARED = "undeclared"
    BLOCK = "block"
    VARIABLE = "variable"
    WORKER_ENVIRONMENT = "worker environment"


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer a value was set on; an undeclared variable also remembers whose it was."""

    layer: Layer
    on: Layer | None = None


@dataclass(frozen=True, slots=True)
class Traced:
    """One top-level value and who set it: the last origin of a history is in force.

    `value` is MISSING when only the history is left of it. `parts` has a history for each key of an
    object, and may keep those of keys the object no longer has.
    """

    value: Any
    history: tuple[Origin, ...]
    parts: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict[str, tuple[Origin, ...]])

    @classmethod
    def on(cls, origin: Origin, value: Any) -> Traced:
        """Trace a value as one layer states it."""
        parts = dict.fromkeys(value, (origin,)) if is_object(value) else {}
        return cls(value, (origin,), parts)

    def of(self, key: str) -> tuple[Origin, ...]:
        """Give the history of one key; a key nobody set by itself has that of the whole."""
        return self.parts.get(key) or self.history

    def with_value(self, value: Any) -> Traced:
        """Give the same history over another value."""
        return Traced(value, self.history, self.parts)


Variables = dict[str, Traced]
"""Job variables by top-level name."""


def replace(low: Traced | None, high: Traced) -> Traced:
    """Let `high` take the place of `low`, which is remembered as overridden."""
    if low is None:
        return high
    parts = {key: (*low.parts.get(key, ()), *high.parts.get(key, ())) for key in {**low.parts, **high.parts}}
    return Traced(high.value, (*low.history, *high.history), parts)


def update(low: Traced, high: Traced) -> Traced:
    """Lay one object over another key by key, whatever the keys hold."""
    return replace(low, high.with_value({**low.value, **high.value}))


def overlay(low: Traced | None, high: Traced) -> Traced:
    """Lay `high` over `low`: objects are merged at every depth, anything else is replaced."""
    if low is None or low.value is MISSING:
        return replace(low, high)
    if high.value is MISSING:
        return replace(low, high.with_value(low.value))
    if is_object(low.value) and is_object(high.value):
        return replace(low, high.with_value(deep_merge(low.value, high.value)))
    return replace(low, high)


def deep_merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Merge two objects at every depth, `high` winning; neither is changed."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = deep_merge(below, value) if is_object(below) and is_object(value) else value
    return merged


def overlay_all(low: Variables, high: Variables) -> Variables:
    """Overlay name by name; the names of `low` come first."""
    return {**low, **{name: overlay(low.get(name), traced) for name, traced in high.items()}}


def on_layer(layer: Layer, values: Mapping[str, Any]) -> Variables:
    """Trace the variables of one layer."""
    return {name: Traced.on(Origin(layer), value) for name, value in values.items()}


def is_dotted(name: str) -> bool:
    """Tell whether a variable's name is a path; brackets alone do not make one."""
    return "." in name


def expand(dotted: Variables) -> Variables:
    """Expand dotted names into objects, in order; later ones write into what earlier ones made."""
    tree: dict[str, Any] = {}
    histories: dict[str, dict[str, tuple[Origin, ...]]] = {}
    for name, traced in dotted.items():
        path = split_path(name)
        _assign(tree, path, name, deepcopy(traced.value))
        parts = histories.setdefault(path[0], {})
        parts[path[1]] = (*parts.get(path[1], ()), *traced.history)
    return {
        root: Traced(tree[root], tuple(origin for history in parts.values() for origin in history), parts)
        for root, parts in histories.items()
    }


def _assign(tree: dict[str, Any], path: list[str], name: str, value: Any) -> None:
    for depth, segment in enumerate(path[:-1], start=1):
        below = tree.setdefault(segment, {})
        if not is_object(below):
            raise build_error(
                "TypeError",
                f"the dotted job variable {name!r} needs an object at {'.'.join(path[:depth])!r},"
                f" where another one has put a {json_type(below)}; keep one of the two",
            )
        tree = below
    tree[path[-1]] = value


def update_env(low: Traced, high: Traced | None) -> Traced:
    """Lay the flow run's env over a deployment's env that is an object."""
    if high is None:
        return low
    try:
        values: dict[str, Any] = {}
        values.update(high.value)
    except (TypeError, ValueError) as error:
        raise build_error(
            type(error).__name__,
            f"job variable 'env' of the flow run must be an object, got {json_type(high.value)}",
        ) from None
    return update(low, Traced.on(high.history[-1], values))


def stock_layers(deployment: Variables, flow_run: Variables) -> Variables:
    """Merge the two layers as Prefect 3.8.8 does: by name as written, dotted names unexpanded."""
    merged = dict(deployment)
    for name, traced in flow_run.items():
        merged[name] = replace(merged.get(name), traced)
    env = deployment.get(ENV)
    if env is not None and is_object(env.value):
        merged[ENV] = update_env(env, flow_run.get(ENV))
    return merged


def stock_order(merged: Variables) -> Variables:
    """Expand what `stock_layers` gave; layers are forgotten, so any plain name beats any dotted one."""
    return overlay_all(expand(_dotted(merged)), _plain(merged))


def layered_order(
    deployment: Variables, flow_run: Variables, promoted: Mapping[Layer, Variables]
) -> Variables:
    """Merge layer by layer, so that the flow run wins in whatever form it is written.

    Inside a layer a plain name beats a dotted one and that beats a `promoted` one (an undeclared
    variable taken for an environment variable). Between the layers, what the run states plainly
    replaces what the deployment states plainly, and what it states dotted replaces what the
    deployment states dotted, as in stock; all else is merged.
    """
    plain_run = _plain(flow_run)
    plain_deployment: Variables = {}
    for name, traced in _plain(deployment).items():
        above = plain_run.get(name)
        if above is None:
            plain_deployment[name] = traced
        elif name == ENV and is_object(traced.value):
            above = plain_run[name] = update_env(Traced({}, ()), above)
            kept = {key: value for key, value in traced.value.items() if key not in above.value}
            plain_deployment[name] = traced.with_value(kept)
        else:
            plain_deployment[name] = traced.with_value(MISSING)
    dotted_deployment = expand(_dotted(deployment))
    for root, *rest in map(split_path, _dotted(flow_run)):
        if (below := dotted_deployment.get(root)) is not None:
            dotted_deployment[root] = below.with_value(_without(below.value, rest))
    low = _overlay_in_order(promoted.get(Layer.DEPLOYMENT, {}), dotted_deployment, plain_deployment)
    high = _overlay_in_order(promoted.get(Layer.FLOW_RUN, {}), expand(_dotted(flow_run)), plain_run)
    return overlay_all(low, high)


def in_order_of(model: Any, value: Any) -> Any:
    """Give `value` with the keys of its objects in the order they have in `model`, others last.

    The order of keys shows where an object ends up as text.
    """
    if not is_object(model) or not is_object(value):
        return value
    ordered = {key: in_order_of(model[key], value[key]) for key in model if key in value}
    return {**ordered, **value, **ordered}


def _overlay_in_order(*layers: Variables) -> Variables:
    return reduce(overlay_all, layers)


def _plain(variables: Variables) -> Variables:
    return {name: traced for name, traced in variables.items() if not is_dotted(name)}


def _dotted(variables: Variables) -> Variables:
    return {name: traced for name, traced in variables.items() if is_dotted(name)}


def _without(value: Any, path: list[str]) -> Any:
    """Give `value` less what stands at `path`, if anything does."""
    if not is_object(value) or path[0] not in value:
        return value
    rest = {key: below for key, below in value.items() if key != path[0]}
    return rest if len(path) == 1 else {**value, path[0]: _without(value[path[0]], path[1:])}
