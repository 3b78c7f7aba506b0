"""What a person at a terminal sees: log events as aligned lines, and the colours.

Owns the columns, what is left out of them because it would be the same in every line, and whether there are colours.
Does not own which events there are, and what is secret (`worker.log`).
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Bound to every event of the daemon or of a run (docs/logs.md). JSON has them in every line; here they are shown
# where they are told for the first time, and the run's name has a column.
BOUND: Final = ("flow_run", "flow_run_id", "deployment", "flow", "work_pool", "worker")
_INTRODUCED: Final[Mapping[str, tuple[str, ...]]] = {
    "worker.started": ("work_pool", "worker"),
    "flow_run.claimed": ("flow_run_id",),
    "flow_run.adopted": ("flow_run_id",),
    "flow_run.recovered": ("flow_run_id",),
    "flow_run.found": ("flow_run_id",),
    "flow_run.launched": ("deployment", "flow"),
}
_LEVEL_WIDTH: Final = len("critical")
_EVENT_WIDTH: Final = 22
_NAME_WIDTH: Final = 20
_RESET: Final = "\033[0m"
_BOLD: Final = "\033[1m"
_DIM: Final = "\033[2m"
_LEVEL_STYLES: Final = {
    "debug": _DIM,
    "info": "\033[32m",
    "warning": "\033[33m",
    "error": "\033[31m",
    "critical": "\033[31m",
}
# Not red, which means trouble, and neither black nor white, which may be the background.
_NAME_STYLES: Final = ("\033[36m", "\033[35m", "\033[34m", "\033[32m", "\033[96m", "\033[95m", "\033[94m")


def wants_color(stream: TextIO, environ: Mapping[str, str], *, allowed: bool = True) -> bool:
    """Whether to colour what goes to the stream; `allowed` is PREFECT_LOGGING_COLORS.

    NO_COLOR (no-color.org) is stronger than FORCE_COLOR (force-color.org), as in Python's own tools; both count when
    they are not empty.
    """
    if not allowed or environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of runs: each has its own colour, the same in the log and before its output."""

    color: bool

    def __call__(self, name: str, *, width: int = 0) -> str:
        """The name on one line, padded to `width`."""
        text = plain(name)
        padding = " " * (width - len(text))
        if not self.color or not text:
            return text + padding
        style = _NAME_STYLES[zlib.crc32(name.encode("utf-8", errors="replace")) % len(_NAME_STYLES)]
        return f"{style}{text}{_RESET}{padding}"


def plain(text: str) -> str:
    """The text without anything that would move the cursor or break the line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def renderer(*, color: bool) -> list[Processor]:
    """The processors that make a line of an event: local time, level, event, run, fields."""
    names = Names(color)

    def styled(style: str, text: str, width: int = 0) -> str:
        padding = " " * (width - len(text))
        return f"{style}{text}{_RESET}{padding}" if color else text + padding

    def cell(key: str, value: object) -> str:
        text = str(value)
        match key:
            case "timestamp":
                return styled(_DIM, text)
            case "level":
                return styled(_LEVEL_STYLES.get(text, ""), text, _LEVEL_WIDTH)
            case "event":
                return styled(_BOLD, text, _EVENT_WIDTH)
            case "flow_run":
                return names(text, width=_NAME_WIDTH)
            case _:
                return styled(_DIM, f"{key}=") + _value(value)

    columns = [structlog.dev.Column(key, cell) for key in ("", "timestamp", "level", "event", "flow_run")]
    return [_uncluttered, structlog.dev.ConsoleRenderer(columns=columns, sort_keys=False)]


def _uncluttered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The event without what says nothing here, and with a name for the column of names, if only an empty one."""
    shown = _INTRODUCED.get(str(event.get("event")), () if "flow_run" in event else ("flow_run_id",))
    introduced = {key: event[key] for key in shown if key in event}
    rest = {
        key: value for key, value in event.items() if key not in BOUND and value is not None and value != []
    }
    return {"flow_run": event.get("flow_run", ""), **introduced, **rest}


def _value(value: object) -> str:
    """A field's value: as it is if that is one word, else quoted."""
    if not isinstance(value, str):
        return repr(value)
    return value if value.isprintable() and value and not set(value) & {" ", "=", '"', "'"} else repr(value)
