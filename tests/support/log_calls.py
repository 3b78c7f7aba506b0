"""Every log event in the source: its names, levels and fields, read from the syntax tree.

Owns what counts as a log call. A call that cannot be read (a computed name, fields from anywhere) is an error: what
operators rely on has to be found by reading the code.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LEVELS = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
    "critical": "critical",
}
_LOGGERS = {"log", "_log", "logger"}
_EXCEPTION = "exception"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class LogCall:
    """One place that logs: the events it can emit, at which levels, with which fields always and which sometimes."""

    where: str
    events: frozenset[str]
    levels: frozenset[str]
    always: frozenset[str]
    sometimes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Event:
    """What the code emits under one name, all places together."""

    levels: frozenset[str]
    always: frozenset[str]
    sometimes: frozenset[str]


class UnreadableCallError(Exception):
    """A log call whose name or fields cannot be told from the source."""


def events(root: Path) -> dict[str, Event]:
    """Every event that the modules under `root` emit; what runs in a flow's interpreter has no structlog."""
    trees = {
        path: ast.parse(text)
        for path in sorted(root.rglob("*.py"))
        if "import structlog" in (text := path.read_text(encoding="utf-8")) or "structlog.typing" in text
    }
    loops = loop_names(trees.values())
    found: dict[str, Event] = {}
    for path, tree in trees.items():
        for call in calls(tree, where=str(path.relative_to(root.parent)), loops=loops):
            for name in call.events:
                found[name] = _merged(found.get(name), call)
    return found


def _merged(known: Event | None, call: LogCall) -> Event:
    if known is None:
        return Event(call.levels, call.always, call.sometimes)
    always = known.always & call.always
    every = known.always | known.sometimes | call.always | call.sometimes
    return Event(known.levels | call.levels, always, every - always)


def loop_names(trees: Iterable[ast.AST]) -> frozenset[str]:
    """The `what` of every loop: literal arguments of that name to `repeat` and `_loop`."""
    return frozenset(
        keyword.value.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _callee(node.func) in {"repeat", "_loop"}
        for keyword in node.keywords
        if keyword.arg == "what"
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, str)
    )


def calls(tree: ast.Module, *, where: str, loops: frozenset[str]) -> Iterator[LogCall]:
    """The log calls of one module."""
    for function, node in _calls_with_function(tree):
        levels = _levels(node.func, function)
        if levels:
            place = f"{where}:{node.lineno}"
            always, sometimes = _fields(node, function, place)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "exception":
                always |= {_EXCEPTION}
            yield LogCall(place, _names(node, loops, place), levels, always, sometimes)


def _calls_with_function(
    tree: ast.AST, function: Function | None = None
) -> Iterator[tuple[Function | None, ast.Call]]:
    for child in ast.iter_child_nodes(tree):
        inside = child if isinstance(child, Function) else function
        if isinstance(child, ast.Call):
            yield inside, child
        yield from _calls_with_function(child, inside)


def _callee(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return None


def _is_logger(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="get_logger", value=value)):
            return "structlog" in ast.unparse(value)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _LOGGERS
        case _:
            return False


def _method_levels(node: ast.expr) -> frozenset[str]:
    """Of `log.info`, or `log.debug if … else log.warning`."""
    match node:
        case ast.Attribute(attr=method, value=value) if method in LEVELS and _is_logger(value):
            return frozenset({LEVELS[method]})
        case ast.IfExp(body=body, orelse=orelse):
            one, other = _method_levels(body), _method_levels(orelse)
            return one | other if one and other else frozenset()
        case _:
            return frozenset()


def _levels(node: ast.expr, function: Function | None) -> frozenset[str]:
    if isinstance(node, ast.Name) and function is not None:
        return frozenset(level for value in _assigned(node.id, function) for level in _method_levels(value))
    return _method_levels(node)


def _assigned(name: str, function: Function) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]


def _names(node: ast.Call, loops: frozenset[str], where: str) -> frozenset[str]:
    match node.args:
        case [ast.Constant(value=str(name))]:
            return frozenset({name})
        case [ast.JoinedStr(values=[ast.FormattedValue(value=value), ast.Constant(value=str(rest))])] if (
            _callee(value) == "what"
        ):
            return frozenset(f"{what}{rest}" for what in loops)
        case _:
            msg = f"{where}: the event's name is neither a literal nor a loop's"
            raise UnreadableCallError(msg)


def _fields(node: ast.Call, function: Function | None, where: str) -> tuple[frozenset[str], frozenset[str]]:
    always: set[str] = set()
    sometimes: set[str] = set()
    for keyword in node.keywords:
        if keyword.arg is None:
            always |= _spread(keyword.value, function, where)
        elif keyword.arg == "exc_info":
            (sometimes if isinstance(keyword.value, ast.IfExp) else always).add(_EXCEPTION)
        else:
            always.add(keyword.arg)
    return frozenset(always), frozenset(sometimes)


def _spread(node: ast.expr, function: Function | None, where: str) -> set[str]:
    """The keys of `**name`, which is one dict display with literal keys in the same function."""
    values = _assigned(node.id, function) if isinstance(node, ast.Name) and function is not None else []
    if len(values) == 1 and isinstance(display := values[0], ast.Dict):
        names = {
            key.value for key in display.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        if len(names) == len(display.keys):
            return names
    msg = f"{where}: what `**{ast.unparse(node)}` holds cannot be told here"
    raise UnreadableCallError(msg)


def table(found: Mapping[str, Event]) -> str:
    """The events as rows of the catalogue, without their meanings."""
    rows: list[str] = []
    for name in sorted(found):
        event = found[name]
        fields = [*sorted(event.always), *(f"{field}?" for field in sorted(event.sometimes))]
        levels = ", ".join(level for level in dict.fromkeys(LEVELS.values()) if level in event.levels)
        rows.append(f"| `{name}` | {levels} | {' '.join(f'`{field}`' for field in fields)} | |")
    return "\n".join(rows)
