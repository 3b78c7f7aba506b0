"""Structured logs: set-up, rendering and redaction.

Events are `noun.verb` with fields; they go to standard error, as JSON lines or, on a terminal, as readable
ones. Standard output is left to what `prefect worker start` prints there: the started and stopped lines and
the flows' own output.
"""

import json
import logging
import sys
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor

from worker import console

MASK = "********"
_SECRET_WORDS = ("password", "secret", "token", "api_key", "auth_string", "authorization", "credential")
_SHORTEST_SECRET = 4

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class Redactor:
    """Masks secrets by value, wherever they stand, and by key name.

    Values shorter than four characters are not hidden by value: they would mask half of every line.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.hide(*secrets)

    def hide(self, *secrets: str) -> None:
        """Mask these values from now on; longer ones first, so that none is masked in part.

        Logs and output are made of lines, so each line of a key in several lines is a secret of its own.
        """
        parts = [part for secret in secrets for part in (secret, *secret.splitlines())]
        known = {*self._secrets, *(part for part in parts if len(part) >= _SHORTEST_SECRET)}
        self._secrets = tuple(sorted(known, key=len, reverse=True))

    @property
    def longest(self) -> int:
        """Characters of the longest secret, 0 if there is none."""
        return len(self._secrets[0]) if self._secrets else 0

    def text(self, text: str) -> str:
        """The text with every known secret masked."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def value(self, value: Any) -> Any:
        """The same for text inside lists and mappings."""
        match value:
            case str():
                return self.text(value)
            case dict():
                mapping = cast("dict[Any, Any]", value)
                return {key: self._by_key(str(key), item) for key, item in mapping.items()}
            case list() | tuple() | set() | frozenset():
                items = cast("Iterable[Any]", value)
                return [self.value(item) for item in items]
            case _:
                return value

    def _by_key(self, key: str, value: Any) -> Any:
        if any(word in key.lower() for word in _SECRET_WORDS) and isinstance(value, str) and value:
            return MASK
        return self.value(value)

    def __call__(self, _logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor."""
        for key in event:
            event[key] = self._by_key(key, event[key])
        return event


def is_json(chosen: str, stream: TextIO) -> bool:
    """Whether logs are JSON lines: as chosen, and for `auto` when nobody reads them on a terminal."""
    return chosen == "json" or (chosen == "auto" and not stream.isatty())


class PatientStream:
    """A stream whose reader may go away, or whose disk may fill up, without taking the daemon along.

    Losing log lines is bad; ending every flow for it would be worse.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def dump(event: Any, **options: Any) -> str:
    """JSON in ASCII, so that no character of a value can end the line.

    A half of a surrogate pair, which stands for no character and which JSON parsers refuse (RFC 8259, part 8.2), becomes "?".
    """
    text = json.dumps(event, **options)
    if "\\ud" not in text:
        return text
    repaired = json.dumps(event, ensure_ascii=False, **options).encode("utf-8", errors="replace")
    return json.dumps(json.loads(repaired))


def _in_order(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The same for the eye in every line: what all events have comes first, what is bound to many comes last."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    last = {key: event.pop(key) for key in console.BOUND if key in event}
    return first | dict(event) | last


def configure(
    *, chosen_format: str, level: str, redactor: Redactor, color: bool = False, stream: TextIO | None = None
) -> None:
    """Set up structlog for the process; called once, by the command line.

    JSON has the time in UTC; the console, with `color` or without, in local time.
    """
    target = sys.stderr if stream is None else stream
    as_json = is_json(chosen_format, target)
    stamp = (
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if as_json
        else structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False)
    )
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
        # Plain tracebacks pass through the redactor as text; the console renderer would print locals.
        structlog.processors.format_exc_info,
        redactor,
    ]
    if as_json:
        processors += [_in_order, structlog.processors.JSONRenderer(serializer=dump)]
    else:
        processors += console.renderer(color=color)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(level.lower(), logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", PatientStream(target))),
        cache_logger_on_first_use=False,
    )
