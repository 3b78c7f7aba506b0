"""What flows print, on its way through the daemon."""

import io
import json
from collections.abc import Iterator
from uuid import uuid4

import pytest
import structlog
from structlog.testing import capture_logs

from worker.api.models import FlowRun
from worker.log import MASK, Redactor, configure
from worker.output_printer import printer

RUN = FlowRun.read({"id": str(uuid4()), "name": "amber-fox"})


class Closed(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError(text)


def test_lines_stand_behind_the_runs_name_without_secrets() -> None:
    stream = io.StringIO()
    printer(as_json=False, redactor=Redactor(["s3cr3t"]), stream=stream)(RUN, "it is s3cr3t")
    assert stream.getvalue() == f"amber-fox | it is {MASK}\n"


def test_with_json_logs_lines_are_events() -> None:
    stream = io.StringIO()
    with capture_logs() as logs:
        printer(as_json=True, redactor=Redactor(), stream=stream)(RUN, "hello")
    assert [(entry["event"], entry["line"]) for entry in logs] == [("flow_run.output", "hello")]
    assert stream.getvalue() == ""


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored_logging")
def test_output_is_passed_on_at_every_level_of_the_daemons_own_log() -> None:
    stream = io.StringIO()
    configure(chosen_format="json", level="error", redactor=Redactor(["s3cr3t"]), stream=stream)
    structlog.get_logger().warning("poll.failed")
    printer(as_json=True, redactor=Redactor(), stream=io.StringIO())(RUN, "it is s3cr3t")
    (event,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (event["level"], event["event"], event["line"]) == ("info", "flow_run.output", f"it is {MASK}")


def test_a_name_cannot_begin_a_line_of_its_own() -> None:
    stream = io.StringIO()
    run = FlowRun.read({"id": str(uuid4()), "name": "fox\nroot"})
    printer(as_json=False, redactor=Redactor(), stream=stream)(run, "hello")
    assert stream.getvalue() == "fox\\nroot | hello\n"


def test_a_reader_that_has_gone_costs_one_warning() -> None:
    with capture_logs() as logs:
        pass_on = printer(as_json=False, redactor=Redactor(), stream=Closed())
        for _ in range(3):
            pass_on(RUN, "hello")
    assert [entry["event"] for entry in logs] == ["output.unwritable"]
