"""Redaction by value and by key name, and the choice of rendering."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.log import MASK, Redactor, configure, dump, is_json


@pytest.mark.parametrize(
    ("event", "redacted"),
    [
        ({"reason": "key pnu_12345 refused"}, {"reason": f"key {MASK} refused"}),
        ({"nested": {"list": ["a pnu_12345"]}}, {"nested": {"list": [f"a {MASK}"]}}),
        ({"api_key": "short"}, {"api_key": MASK}),
        ({"headers": {"Authorization": "x"}}, {"headers": {"Authorization": MASK}}),
        ({"DB_PASSWORD": "x", "count": 3}, {"DB_PASSWORD": MASK, "count": 3}),
        ({"token": ""}, {"token": ""}),
        ({"plain": "nothing here"}, {"plain": "nothing here"}),
    ],
)
def test_secrets_are_masked(event: dict[str, Any], redacted: dict[str, Any]) -> None:
    assert Redactor(["pnu_12345", "pnu_12345_long"])(None, "info", event) == redacted


def test_the_longer_secret_is_masked_whole() -> None:
    assert Redactor(["abcd", "abcdefgh"]).text("x abcdefgh y") == f"x {MASK} y"


def test_each_line_of_a_key_is_a_secret() -> None:
    assert Redactor(["-----BEGIN\nMIIEpQ\n-----END"]).text("print MIIEpQ") == f"print {MASK}"


def test_very_short_values_are_not_hidden_everywhere() -> None:
    assert Redactor(["a"]).text("a cat") == "a cat"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("chosen", "stream", "expected"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_json_unless_somebody_reads_along(chosen: str, stream: io.StringIO, *, expected: bool) -> None:
    assert is_json(chosen, stream) is expected


@pytest.fixture
def _restored_logging() -> Any:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("chosen", ["json", "console"])
def test_a_traceback_does_not_leak_the_secret(chosen: str) -> None:
    stream = io.StringIO()
    configure(chosen_format=chosen, level="info", redactor=Redactor(["s3cr3t-value"]), stream=stream)
    log = structlog.get_logger()
    try:
        int("the value is s3cr3t-value")
    except ValueError:
        log.exception("flow_run.error", flow_run_id="1")
    log.debug("poll.done")
    text = stream.getvalue()
    assert "s3cr3t-value" not in text
    assert MASK in text
    assert "poll.done" not in text
    if chosen == "json":
        entry = json.loads(text)
        assert entry["event"] == "flow_run.error"
        assert "ValueError" in entry["exception"]


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("two\nlines\r\u2028\x85", "two\nlines\r\u2028\x85"),
        ("half \ud83d of a pair", "half ? of a pair"),
        ("a fox \N{FOX FACE} and half \udc80", "a fox \N{FOX FACE} and half ?"),
        ("NUL \0 and ESC \x1b", "NUL \0 and ESC \x1b"),
        (r"a written \ud800", r"a written \ud800"),
        (Path("/tmp"), "PosixPath('/tmp')"),
    ],
)
@pytest.mark.usefixtures("_restored_logging")
def test_an_event_is_one_line_of_json_whatever_its_values(value: object, read: str) -> None:
    stream = io.StringIO()
    configure(chosen_format="json", level="info", redactor=Redactor(), stream=stream)
    structlog.get_logger().info("a.b", value=value)
    text = stream.getvalue()
    assert text.isascii()
    assert text.splitlines(keepends=True) == [text]
    assert text.endswith("}\n")
    assert json.loads(text)["value"] == read
    assert list(json.loads(text)) == ["timestamp", "level", "event", "value"]


def test_what_is_sound_is_not_touched() -> None:
    assert dump({"a": "é"}) == '{"a": "\\u00e9"}'
