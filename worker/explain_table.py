"""Tables of text for people: columns that fit the terminal, whole values when nobody's terminal bounds them.

Owns widths and shortening. Knows nothing of what the cells say.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from typing import Final, TextIO

_GAP: Final = "  "
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


def table(rows: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Lines with the cells of each row one below the other, the first row being the heading.

    Within `width` columns the widest cells are shortened first, ending in an ellipsis.
    """
    widths = [max(_columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    if width is not None:
        widths = _fitted(widths, width - len(_GAP) * (len(widths) - 1))
    return [
        _GAP.join(_cell(cell, columns) for cell, columns in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _fitted(widths: list[int], available: int) -> list[int]:
    """The widths, the widest lowered to a common bound such that all of them together fit."""
    low, high = _NARROWEST, max(widths)
    while low < high:
        bound = (low + high + 1) // 2
        if sum(min(one, bound) for one in widths) <= available:
            low = bound
        else:
            high = bound - 1
    fitted = [min(one, low) for one in widths]
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
