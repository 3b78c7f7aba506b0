"""What is wrong with a template, and what event data may not become.

Owns the error an automation's run is crashed with, and the refusal of rendered data that would act as a reference
once the layers are resolved. Does not render.
"""

import re
from typing import Any, cast

Path = tuple[str | int, ...]
"""Keys and indexes from the job variables to a value."""

# What layering takes for a placeholder (PROTOCOL 3.2), whole or cut off at the end of the text.
_PLACEHOLDER = re.compile(r"\{\{\s*(?:[\w.\-\[\]$]+\s*\}\}|[\w.\-\[\]$]*\s*\Z)")


class AutomationTemplateError(Exception):
    """A job variable that cannot be rendered: one sentence naming the variable and the reason.

    The run is crashed with it.
    """


def template_error(path: Path, reason: str) -> AutomationTemplateError:
    """The error for the job variable at `path`; `reason` is a clause."""
    where = f"job variable {_shown(path)!r}" if path else "the job variables"
    return AutomationTemplateError(f"{where} cannot be rendered for this automation's run: {reason}")


def _shown(path: Path) -> str:
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def refuse_references(value: Any, path: Path) -> None:
    """Refuse rendered data that layering would resolve: whoever emits an event must not read blocks by it."""
    match value:
        case str():
            if _PLACEHOLDER.search(value):
                raise template_error(
                    path,
                    "the event's data puts a placeholder in double braces into it, which would be resolved as "
                    "a block, variable or environment reference; pass such data as a flow parameter instead",
                )
        case dict():
            for key, item in cast("dict[str, Any]", value).items():
                if key == "$ref":
                    raise template_error(
                        path, "the event's data puts a '$ref' into it, which could resolve to a block"
                    )
                refuse_references(key, path)
                refuse_references(item, path)
        case list():
            for item in cast("list[Any]", value):
                refuse_references(item, path)
        case _:
            pass
