"""Tables of text for people: columns that fit the terminal, whole values when nobody's terminal bounds them.

Owns widths and shortening. Knows nothing of what the cells say.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Collection, Sequence
from typing import Final, TextIO

_GAP: Final = "  "
_NARROW: Final = 24
_NARROWEST: Final = 8
ELLIPSIS: Final = "…"


def one_line(text: str) -> str:
    """The text as it can stand in one line of a terminal."""
    return text if text.isprintable() else ascii(text)


def terminal_width(stream: TextIO) -> int | None:
    """The columns of the terminal that `stream` is; None when it is none, and nothing is to be shortened."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def printable(text: str, stream: TextIO) -> str:
    """The text as `stream` can take it, whatever its encoding."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def table(
    rows: Sequence[Sequence[str]], *, width: int | None = None, elastic: Collection[int] = ()
) -> list[str]:
    """Lines with the cells of each row one below the other, the first row being the heading.

    Within `width` columns the widest cells are shortened first, ending in an ellipsis; those of the `elastic`
    columns before all others.
    """
    widths = [max(_columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None:
        available = width - len(_GAP) * (len(widths) - 1)
        widths = _fitted(widths, available, elastic, narrowest=_NARROW)
        widths = _fitted(widths, available, range(len(widths)), narrowest=_NARROWEST)
    return [
        _GAP.join(_cell(cell, columns) for cell, columns in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _fitted(widths: list[int], available: int, elastic: Collection[int], *, narrowest: int) -> list[int]:
    """The widths, the widest of the elastic ones lowered to a common bound such that all together fit, if they can."""

    def bounded(bound: int) -> list[int]:
        return [min(one, bound) if place in elastic else one for place, one in enumerate(widths)]

    bound = max(narrowest, min(max(widths), available))
    while bound > narrowest and sum(bounded(bound)) > available:
        bound -= 1
    fitted = bounded(bound)
    spare = max(0, available - sum(fitted))
    for place, one in enumerate(widths):  # what rounding left over
        if spare and one > fitted[place]:
            fitted[place] += 1
            spare -= 1
    return fitted


def _cell(text: str, columns: int) -> str:
    shortened = text if _columns(text) <= columns else _shortened(text, columns - 1)
    return shortened + " " * (columns - _columns(shortened))


def _shortened(text: str, columns: int) -> str:
    while _columns(text) > columns:
        text = text[: min(len(text) - 1, columns)]
    return text + ELLIPSIS


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes (UAX 11: wide characters take two)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )
