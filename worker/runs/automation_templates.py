"""Job variables that an automation left as templates: which values are, and what they become.

Pure. Owns the rule for plain strings, the `__prefect_kind` forms (PROTOCOL 5.5; compared with Prefect's
hydration of parameters in the parity tests). Does not find the event (`automations.py`) and does not speak Jinja itself (`automation_jinja.py`, which is imported
only when there is something to parse, because the daemon must start lean).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from worker.runs.automation_errors import AutomationTemplateError, Path, refuse_references, template_error
from worker.runs.automation_objects import TemplateFailure

if TYPE_CHECKING:
    from worker.runs.automation_jinja import Sandbox

KIND = "__prefect_kind"

EVENT_NAMES = frozenset({"automation", "event", "events", "firing", "firings", "labels"})
OBJECT_NAMES = frozenset(
    {"concurrency_limit", "deployment", "flow", "flow_run", "task_run", "work_pool", "work_queue"}
)
VARIABLES_NAME = "variables"
CONTEXT_NAMES = EVENT_NAMES | OBJECT_NAMES | {VARIABLES_NAME}
"""What the server offers to templates (PROTOCOL 5.5)."""


@dataclass(frozen=True, slots=True)
class References:
    """What the templates of some job variables name.

    `names` are context names; `variables` are workspace variables, by either way of naming them.
    """

    names: frozenset[str]
    variables: frozenset[str]


def needs_rendering(job_variables: object) -> bool:
    """Whether any value holds a template: a `__prefect_kind` form, or a plain string taken for Jinja.

    A plain string is taken for Jinja when it parses as Jinja and every root name in it is one the server offers
    (PROTOCOL 5.5): `{{ $VAR }}`, `{{ prefect.variables.x }}` and `{{ name }}` belong to others.
    """
    if not isinstance(job_variables, dict):
        return False  # not job variables at all, which resolving them will say
    sandbox: Sandbox | None = None
    for value in _candidates(cast("dict[str, Any]", job_variables)):
        if isinstance(value, dict):
            return True
        sandbox = sandbox or _sandbox()
        if _is_jinja(sandbox, value):
            return True
    return False


def references(job_variables: object) -> References:
    """What must be read before `render`; raises AutomationTemplateError for a form that is wrong in itself."""
    collector = _Collector(sandbox=_sandbox())
    _Hydrator(collector).hydrate(job_variables, ())
    return References(names=frozenset(collector.names), variables=frozenset(collector.variables))


def render(
    job_variables: Mapping[str, Any], context: Mapping[str, Any], variables: Mapping[str, Any]
) -> dict[str, Any]:
    """A copy of `job_variables` with every template rendered; raises AutomationTemplateError.

    `context` holds the objects by context name; naming one that is absent is an error, never empty text.
    `variables` holds the workspace variables the forms name. Plain strings stay strings, forms give what the
    server's hydration of parameters gives.
    """
    renderer = _Renderer(sandbox=_sandbox(), context=context, variables=variables)
    result = _Hydrator(renderer).hydrate(dict(job_variables), ())
    if result is _Mark.REMOVED:
        return {}
    if not isinstance(result, dict):
        raise AutomationTemplateError(
            f"the job variables as a whole are a {KIND} form that gives {type(result).__name__}, not an object"
        )
    return cast("dict[str, Any]", result)


class _Mark(Enum):
    """Results of hydration that are no values."""

    REMOVED = auto()
    """The form had nothing in it: its key goes."""
    PENDING = auto()
    """Not known while collecting."""


def _sandbox() -> "Sandbox":
    from worker.runs.automation_jinja import Sandbox  # noqa: PLC0415 - costs an import of jinja2, rarely needed

    return Sandbox()


def _candidates(value: object) -> Iterator[str | dict[str, Any]]:
    """The strings and forms that may be templates, forms unopened."""
    match value:
        case str() if "{{" in value or "{%" in value:
            yield value
        case dict():
            items = cast("dict[str, Any]", value)
            if KIND in items:
                yield items
            else:
                for item in items.values():
                    yield from _candidates(item)
        case list():
            for item in cast("list[Any]", value):
                yield from _candidates(item)
        case _:
            pass


def _is_jinja(sandbox: "Sandbox", text: str) -> bool:
    if "{{" not in text and "{%" not in text:
        return False
    roots = sandbox.roots(text)
    return roots is not None and roots <= CONTEXT_NAMES


@dataclass(slots=True)
class _Collector:
    """Notes what templates name; everything rendered is PENDING."""

    sandbox: "Sandbox"
    names: set[str] = field(default_factory=set[str])
    variables: set[str] = field(default_factory=set[str])

    def text(self, template: str, path: Path, *, plain: bool) -> str | _Mark:
        del plain
        names = self.sandbox.roots(template)
        if names is None:
            raise template_error(path, "its template is not valid Jinja")
        self.names |= names & CONTEXT_NAMES
        if VARIABLES_NAME in names:
            try:
                self.variables |= self.sandbox.variable_names(template)
            except TemplateFailure as error:
                raise template_error(path, str(error)) from error
        return _Mark.PENDING

    def variable(self, name: str, path: Path) -> Any:
        del path
        self.variables.add(name)
        return _Mark.PENDING


@dataclass(frozen=True, slots=True)
class _Renderer:
    """Gives every template its text and every workspace variable its value."""

    sandbox: "Sandbox"
    context: Mapping[str, Any]
    variables: Mapping[str, Any]

    def text(self, template: str, path: Path, *, plain: bool) -> str | _Mark:
        absent = ((self.sandbox.roots(template) or frozenset()) & CONTEXT_NAMES) - self.context.keys()
        if absent:
            raise template_error(
                path, f"it names {', '.join(sorted(absent))}, which cannot be known for this run"
            )
        try:
            text = self.sandbox.render(template, self.context, sole_must_exist=plain)
        except TemplateFailure as error:
            raise template_error(path, str(error)) from error
        refuse_references(text, path)
        return text

    def variable(self, name: str, path: Path) -> Any:
        if name not in self.variables:
            raise template_error(path, f"there is no variable {name!r} on the server")
        return self.variables[name]


@dataclass(frozen=True, slots=True)
class _Hydrator:
    """The walk over job variables that both the collector and the renderer take."""

    visitor: _Collector | _Renderer

    def hydrate(self, value: Any, path: Path, *, in_form: bool = False) -> Any:
        """The value with its templates replaced; inside a form plain strings are literal, as on the server."""
        match value:
            case dict():
                items = cast("dict[str, Any]", value)
                if KIND in items:
                    return self._form(items, path)
                hydrated = {
                    key: self.hydrate(item, (*path, key), in_form=in_form) for key, item in items.items()
                }
                return {key: item for key, item in hydrated.items() if item is not _Mark.REMOVED}
            case list():
                elements = enumerate(cast("list[Any]", value))
                members = [self.hydrate(item, (*path, at), in_form=in_form) for at, item in elements]
                return [item for item in members if item is not _Mark.REMOVED]
            case str() if not in_form and _is_jinja(self.visitor.sandbox, value):
                return self.visitor.text(value, path, plain=True)
            case _:
                return value

    def _form(self, form: dict[str, Any], path: Path) -> Any:
        match form[KIND]:
            case "none":
                if "value" not in form:
                    raise template_error(path, f"its {KIND} form has no 'value'")
                return self.hydrate(form["value"], path, in_form=True)
            case "json":
                return self._json(form, path)
            case "jinja":
                return self._jinja(form, path)
            case "workspace_variable":
                return self._variable(form, path)
            case _:
                return form.get("value")

    def _inner(self, value: Any, path: Path) -> Any:
        return self.hydrate(value, path, in_form=True) if isinstance(value, dict) else value

    def _json(self, form: dict[str, Any], path: Path) -> Any:
        if "value" not in form:
            return _Mark.REMOVED
        inner = self._inner(form["value"], path)
        if not isinstance(inner, str):
            return inner
        try:
            value = json.loads(inner)
        except (ValueError, RecursionError) as error:
            raise template_error(path, f"it does not give valid JSON: {error}") from error
        if _renders_jinja(form["value"]):
            refuse_references(value, path)
        return value

    def _jinja(self, form: dict[str, Any], path: Path) -> Any:
        if "template" not in form:
            raise template_error(path, f"its {KIND} form has no 'template'")
        template = self._text_of(form, "template", path)
        return self.visitor.text(template, path, plain=False) if isinstance(template, str) else template

    def _variable(self, form: dict[str, Any], path: Path) -> Any:
        if "variable_name" not in form:
            return _Mark.REMOVED
        name = self._text_of(form, "variable_name", path)
        return self.visitor.variable(name, path) if isinstance(name, str) else name

    def _text_of(self, form: dict[str, Any], key: str, path: Path) -> str | _Mark:
        value = self._inner(form[key], path)
        if isinstance(value, (str, _Mark)):
            return value
        raise template_error(path, f"the {key!r} of its form is not text")


def _renders_jinja(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    form = cast("dict[str, Any]", value)
    return form.get(KIND) == "jinja" or any(_renders_jinja(inner) for inner in form.values())
