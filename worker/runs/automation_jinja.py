"""Jinja as the server's automations speak it: one sandbox, parsing and rendering of single templates.

Owns the sandbox and its limits, and which names and filters exist in it (PROTOCOL 5.5; the limits are those of
Prefect's `server/utilities/user_templates.py`). Importing this module imports jinja2, so it is imported only
when there is a template. Does not know where templates sit in the job variables, nor what they are about.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from jinja2 import ChainableUndefined, TemplateError, Undefined, nodes, pass_context, pass_eval_context
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from worker.runs.automation_objects import NotProvided, TemplateFailure, to_json

# The server's own limits, so that a template it takes for parameters is taken here and none beyond.
_LONGEST_RANGE = 100
_MOST_LOOPS = 10
_DEEPEST_LOOP = 2

# Ours: the server renders in a process that can afford to stall, the daemon cannot.
_MOST_STEPS = 10_000
_LONGEST_TEXT = 1_000_000
_LARGEST_NUMBER_BITS = 4096
_LONGEST_REASON = 300

_STEP = "_headrace_step"
_DEFINED = "_headrace_defined"
_FLOW_RUN_URL = re.compile(r"flow-run/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")

# Whatever else a template raises is a bug of ours, not of the template.
_RENDER_FAILURES = (
    TemplateError,
    NotProvided,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; products and powers are bounded because a payload may hold their operands."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse a product or power that would not fit (jinja2 calls this for both)."""
        if not _fits(operator, left, right):
            raise OverflowError(f"the result of {operator!r} is too big")
        return super().call_binop(context, operator, left, right)


def _fits(operator: str, left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        return bits <= _LARGEST_NUMBER_BITS
    if operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(times, int):
                return len(cast("str", sequence)) * times <= _LONGEST_TEXT
    return True


class Sandbox:
    """Parses and renders the templates of one set of job variables; the limits hold for all of them together.

    Made for one rendering, never shared.
    """

    def __init__(self) -> None:
        self._environment = _Environment(undefined=ChainableUndefined)
        # jinja2 declares both as holding its own functions only.
        functions = cast("dict[str, Any]", self._environment.globals)
        functions["range"] = _bounded_range
        self._filters = cast("dict[str, Any]", self._environment.filters)
        self._filters.update(
            {
                "tojson": _tojson,
                "flow_run_id": _flow_run_id,
                "ui_url": _no_ui,
                "ui_resource_events_url": _no_ui,
                _STEP: self._steps,
                _DEFINED: _defined,
            }
        )
        self._functions = frozenset(functions)
        self._steps_left = _MOST_STEPS

    def roots(self, template: str) -> frozenset[str] | None:
        """The names the template takes from its context; None when it does not parse as Jinja.

        Jinja's own functions (`range`, `dict`, …) are left out beside other names; alone they count as names,
        because `{{ namespace }}` is somebody's placeholder.
        """
        try:
            tree = self._environment.parse(template)
            self._know_filters(tree)
            names = find_undeclared_variables(tree)
        except (TemplateError, RecursionError):
            return None
        loaded = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
        return frozenset(names or loaded & self._functions)

    def _know_filters(self, tree: nodes.Template) -> None:
        """An unknown filter is no question of syntax: it is reported when the template is rendered."""
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            known = self._filters if isinstance(node, nodes.Filter) else self._environment.tests
            if node.name not in known:
                node.name = "string"  # both a filter and a test, of any arguments as far as names go

    def variable_names(self, template: str) -> frozenset[str]:
        """The workspace variables the template reads as `variables.name`; raises TemplateFailure.

        Any other use of `variables` would need all of them and is refused.
        """
        tree = self._parse(template)
        uses = sum(1 for node in tree.find_all(nodes.Name) if node.name == "variables" and node.ctx == "load")
        keys = [
            key
            for node in tree.find_all((nodes.Getattr, nodes.Getitem))
            if isinstance(node.node, nodes.Name) and node.node.name == "variables"
            if (key := _constant_key(node)) is not None
        ]
        if uses != len(keys) or any(hasattr(dict, key) for key in keys):
            raise TemplateFailure("it uses `variables` otherwise than as `variables.name`")
        return frozenset(keys)

    def render(self, template: str, context: Mapping[str, Any], *, sole_must_exist: bool) -> str:
        """The text the template renders to; raises TemplateFailure.

        Undefined names render to nothing, as on the server. With `sole_must_exist` a template that is one
        expression and nothing else must have a value: the server's rendering of plain-string parameters fails
        there too, and an empty setting is worse than a crash that says what is missing.
        """
        tree = self._parse(template)
        if "humanize_" in template:
            self._add_humanize()
        try:
            _check_loops(tree)
            self._guard_loops(tree)
            if sole_must_exist:
                self._guard_sole_expression(tree)
            return self._joined(self._environment.from_string(tree).generate(dict(context)))
        except _RENDER_FAILURES as error:
            raise TemplateFailure(_reason(error)) from error

    def _parse(self, template: str) -> nodes.Template:
        try:
            return self._environment.parse(template)
        except (TemplateError, RecursionError) as error:
            raise TemplateFailure(_reason(error)) from error

    def _guard_loops(self, tree: nodes.Template) -> None:
        for loop in tree.find_all(nodes.For):
            loop.iter = self._filtered(cast("nodes.Expr", loop.iter), _STEP)

    def _guard_sole_expression(self, tree: nodes.Template) -> None:
        match tree.body:
            case [nodes.Output(nodes=parts) as output]:
                expressions = [part for part in parts if not _is_blank(part)]
                if len(expressions) == 1 and not isinstance(expressions[0], nodes.TemplateData):
                    output.nodes = [self._filtered(expressions[0], _DEFINED)]
            case _:
                pass

    def _filtered(self, node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=self._environment)

    @pass_context
    def _steps(self, _context: Context, value: Iterable[Any]) -> Iterator[Any]:
        for item in value:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise OverflowError(f"its loops take more than {_MOST_STEPS} steps")
            yield item

    @staticmethod
    def _joined(pieces: Iterable[str]) -> str:
        text: list[str] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > _LONGEST_TEXT:
                raise OverflowError(f"its text is longer than {_LONGEST_TEXT} characters")
            text.append(piece)
        return "".join(text)

    def _add_humanize(self) -> None:
        """The server's humanize filters, from the package it has them from; it is one of Prefect's dependencies."""
        try:
            self._environment.add_extension("jinja2_humanize_extension.HumanizeExtension")
        except ImportError as error:
            raise TemplateFailure(
                "its humanize filters need the package jinja2-humanize-extension beside the daemon; "
                "install that package, or `headrace[prefect]`, which brings it"
            ) from error
        # They load a catalogue from any path and change the locale of the whole thread.
        self._filters["humanize_activate"] = _no_locale
        self._filters["humanize_deactivate"] = _no_locale


def _constant_key(node: nodes.Getattr | nodes.Getitem) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    return None


def _bounded_range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > _LONGEST_RANGE:
        raise OverflowError(f"a range may have {_LONGEST_RANGE} numbers, this one has {len(numbers)}")
    return numbers


def _check_loops(tree: nodes.Template) -> None:
    loops = sum(1 for _ in tree.find_all(nodes.For))
    if loops > _MOST_LOOPS:
        raise TemplateFailure(f"it has {loops} for loops, {_MOST_LOOPS} are allowed")
    depth = _loop_depth(tree)
    if depth > _DEEPEST_LOOP:
        raise TemplateFailure(f"its for loops nest {depth} deep, {_DEEPEST_LOOP} are allowed")


def _loop_depth(node: nodes.Node) -> int:
    inner = max((_loop_depth(child) for child in node.iter_child_nodes()), default=0)
    return inner + isinstance(node, nodes.For)


def _is_blank(part: nodes.Expr) -> bool:
    return isinstance(part, nodes.TemplateData) and not part.data.strip()


def _defined(value: Any) -> Any:
    if isinstance(value, Undefined):
        value()  # an undefined value raises, when called, the error that says what is missing
    return value


@pass_eval_context
def _tojson(eval_ctx: EvalContext, value: Any, indent: int | None = None) -> Markup:
    policies = eval_ctx.environment.policies
    options: dict[str, Any] = dict(policies["json.dumps_kwargs"])
    if indent is not None:
        options["indent"] = indent
    return htmlsafe_json_dumps(to_json(value), dumps=policies["json.dumps_function"], **options)


def _flow_run_id(text: str | None) -> str | None:
    found = _FLOW_RUN_URL.search(text) if text else None
    return found.group(1) if found else None


def _no_ui(_value: Any) -> str:
    raise NotProvided(
        "the filters ui_url and ui_resource_events_url need the UI's address, which only the server knows"
    )


def _no_locale(_value: Any, *_args: Any, **_options: Any) -> str:
    raise NotProvided("the filters humanize_activate and humanize_deactivate are not offered")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, NotProvided) else f"{type(error).__name__}: {text}"
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
