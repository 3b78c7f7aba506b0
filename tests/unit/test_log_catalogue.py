"""docs/logs.md lists every event that the code can emit, and no other, with its levels and fields."""

import ast
from pathlib import Path

import pytest

from tests.support.log_calls import UnreadableCallError, calls, events, table
from tests.support.log_catalogue import catalogue, faults, read

ROOT = Path(__file__).parents[2]


def test_the_page_lists_what_the_code_emits() -> None:
    emitted, listed = events(ROOT / "worker"), catalogue()
    differing = {name: emitted[name] for name in emitted if listed.get(name) != emitted[name]}
    assert not differing, f"docs/logs.md should say:\n{table(differing)}"
    assert not listed.keys() - emitted.keys(), "listed in docs/logs.md, and emitted by nothing"


def test_what_is_degraded_is_told_with_its_end() -> None:
    """A loop that fails recovers; what a warning begins has an event that ends it."""
    emitted = events(ROOT / "worker")
    for name in emitted:
        noun, verb = name.split(".")
        if verb == "failed":
            assert f"{noun}.recovered" in emitted
    for begun, over in {
        "api.unreachable": "api.recovered",
        "api.call_delayed": "api.call_answered",
        "claims.paused": "claims.resumed",
        "control.cannot_accept": "control.recovered",
        "disk.low": "disk.freed",
        "journal.unwritable": "journal.writable",
        "memory.low": "memory.freed",
        "outbox.dropped": "outbox.recovered",
        "poll.latest_unknown": "poll.latest_known",
        "poll.refused": "poll.accepted",
        "work_pool.paused": "work_pool.resumed",
        "work_queue.paused": "work_queue.resumed",
    }.items():
        assert "warning" in emitted[begun].levels
        assert emitted[over].levels == {"info"}


def found(source: str) -> list[str]:
    """Each call as `event,… level,… field,… optional,…`."""
    loops = frozenset({"poll", "push"})
    return [
        " ".join(
            ",".join(sorted(part)) or "-" for part in (call.events, call.levels, call.always, call.sometimes)
        )
        for call in calls(ast.parse(source), where="module", loops=loops)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('self._log.info("a.b", x=1)', ["a.b info x -"]),
        ('structlog.get_logger().warning("a.b")', ["a.b warning - -"]),
        ('log.exception("a.b")', ["a.b error exception -"]),
        ('log.error("a.b", exc_info=error)', ["a.b error exception -"]),
        ('log.error("a.b", exc_info=None if x else e)', ["a.b error - exception"]),
        (
            'def f():\n level = self._log.info if x else self._log.debug\n level("a.b")',
            ["a.b debug,info - -"],
        ),
        ('def f():\n line = {"x": 1}\n log.debug("a.b", **line, y=2)', ["a.b debug x,y -"]),
        ('log.info(f"{self.what}.failed")', ["poll.failed,push.failed info - -"]),
        ('self._run_log.info("a line for the run")', []),
        ('warnings.info("not a log")', []),
    ],
)
def test_reading_a_call(source: str, expected: list[str]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize(
    "source", ["log.info(name)", 'log.info(f"{name}.failed")', 'def f(line):\n log.info("a.b", **line)']
)
def test_a_call_that_cannot_be_read_is_an_error(source: str) -> None:
    with pytest.raises(UnreadableCallError):
        found(source)


LISTED = read("| `a.b` | info, debug | `x` `y?` | meaning |")


def test_reading_a_row() -> None:
    assert table(LISTED) == "| `a.b` | debug, info | `x` `y?` | |"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"event": "a.b", "level": "info", "x": 1}, []),
        ({"event": "a.b", "level": "debug", "x": 1, "y": 2, "flow_run": "n", "timestamp": ""}, []),
        ({"event": "a.c", "level": "info"}, ["a.c is not in docs/logs.md"]),
        ({"event": "a.b", "level": "error", "x": 1}, ["a.b at level error"]),
        ({"event": "a.b", "level": "info"}, ["a.b without its field x"]),
        ({"event": "a.b", "level": "info", "x": 1, "z": 1}, ["a.b with a field z that is not documented"]),
    ],
)
def test_a_line_is_held_to_the_catalogue(line: dict[str, object], expected: list[str]) -> None:
    assert faults(line, LISTED) == expected
