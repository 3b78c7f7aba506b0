"""What a person at a terminal sees: columns, what is left out of them, and colours."""

import io
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from worker.console import Names, plain, wants_color
from worker.log import Redactor, configure


@pytest.fixture
def _restored_logging() -> Any:
    yield
    structlog.reset_defaults()


def lines(*, color: bool = False) -> list[str]:
    """The story of one run, as it stands on a terminal, without the time."""
    stream = io.StringIO()
    configure(chosen_format="console", level="info", redactor=Redactor(), color=color, stream=stream)
    log = structlog.get_logger()
    with bound_contextvars(work_pool="nightly", worker="host-nightly"):
        log.info("worker.started", limit=None, job_variables="layered")
        with bound_contextvars(flow_run_id="0b4c", flow_run="amber-fox"):
            log.info("flow_run.claimed")
            with bound_contextvars(deployment="report", flow="make-report"):
                log.info("flow_run.launched", pid=7, cold_because=None, working_dir="/a dir\n")
                log.warning("flow_run.reported", outcome="crashed", reason="exit code 7")
        log.warning("control.malformed", flow_run_id="77aa", reason="")
    return [line.split(" ", 2)[-1] for line in stream.getvalue().splitlines()]


@pytest.mark.usefixtures("_restored_logging")
def test_lines_are_aligned_and_say_everything_once() -> None:
    assert lines() == [
        "info     worker.started                              work_pool=nightly worker=host-nightly job_variables=layered",
        "info     flow_run.claimed       amber-fox            flow_run_id=0b4c",
        "info     flow_run.launched      amber-fox            deployment=report flow=make-report pid=7 working_dir='/a dir\\n'",
        "warning  flow_run.reported      amber-fox            outcome=crashed reason='exit code 7'",
        "warning  control.malformed                           flow_run_id=77aa reason=''",
    ]


@pytest.mark.usefixtures("_restored_logging")
def test_colours_only_when_asked_for() -> None:
    assert "\033" not in "".join(lines())
    assert "\033[33mwarning\033[0m" in "".join(lines(color=True))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "allowed", "expected"),
    [
        (Terminal(), {}, True, True),
        (io.StringIO(), {}, True, False),
        (Terminal(), {"TERM": "dumb"}, True, False),
        (Terminal(), {"NO_COLOR": "1"}, True, False),
        (Terminal(), {"NO_COLOR": ""}, True, True),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True, True),
        (io.StringIO(), {"FORCE_COLOR": ""}, True, False),
        (Terminal(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        (Terminal(), {"FORCE_COLOR": "1"}, False, False),
    ],
)
def test_whether_there_are_colours(
    stream: io.StringIO, environ: dict[str, str], *, allowed: bool, expected: bool
) -> None:
    assert wants_color(stream, environ, allowed=allowed) is expected


def test_a_name_keeps_its_line_and_its_colour() -> None:
    names = Names(color=True)
    assert names("amber-fox") == names("amber-fox")
    assert names("amber-fox", width=12).endswith("\033[0m   ")
    assert Names(color=False)("evil\n\033[31m") == r"evil\n\x1b[31m"
    assert plain("Füchsin") == "Füchsin"
