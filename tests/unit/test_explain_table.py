"""Tables that fit a terminal."""

import io

import pytest

from worker.explain.table import one_line, printable, table, terminal_width

ROWS = [("KEY", "VALUE", "LAYER"), ("env.A", "x" * 60, "deployment"), ("env.LONG_NAME", "y", "flow run")]


def test_without_a_width_nothing_is_shortened() -> None:
    lines = table(ROWS)
    assert lines[1] == f"env.A          {'x' * 60}  deployment"
    assert lines[2] == f"env.LONG_NAME  {'y'.ljust(60)}  flow run"


@pytest.mark.parametrize("width", [40, 60, 78, 79, 86, 87, 88, 200])
def test_with_a_width_every_line_fits_and_the_elastic_column_gives_way(width: int) -> None:
    lines = table(ROWS, width=width, elastic=(1,))
    assert max(map(len, lines)) <= width
    assert ("…" in lines[1]) is (width < 87)
    if width >= 60:
        assert lines[1].startswith("env.A          xxx")
        assert lines[1].endswith("  deployment")
        assert width >= 87 or len(lines[1]) == width


def test_a_terminal_too_narrow_still_shows_something() -> None:
    lines = table(ROWS, width=5, elastic=(1,))
    assert lines[0] == "KEY       VALUE     LAYER"
    assert lines[1] == "env.A     xxxxxxx…  deploym…"


def test_wide_characters_take_two_columns() -> None:
    lines = table([("日本", "x"), ("ab", "y")])
    assert lines == ["日本  x", "ab    y"]
    assert table([("日本日本日本", "x"), ("ab", "y")], width=11) == ["日本日…   x", "ab        y"]


def test_text_on_one_line() -> None:
    assert one_line("a\nb") == r"'a\nb'"
    assert one_line("å b") == "å b"


def test_any_stream_can_take_it() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert printable("…", stream) == r"\u2026"
    assert terminal_width(stream) is None
