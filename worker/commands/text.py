"""Text for people: aligned columns, durations, one line for a value of any kind."""

from collections.abc import Sequence

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def aligned(table: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """The lines of a table whose columns are aligned; those in `right` at their right edge."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def duration(seconds: float) -> str:
    """For people: `42s`, `3m12s`, `5h03m`, `2d04h`."""
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def one_line(text: str) -> str:
    """The text without what would break a line or move a terminal's cursor."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
