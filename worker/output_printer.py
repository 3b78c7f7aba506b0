"""What flows print, passed on by the daemon: prefixed lines for people, log events for machines."""

import logging
from collections.abc import Callable
from typing import TextIO

import structlog

from worker.api.models import FlowRun
from worker.console import Names
from worker.log import Redactor


def printer(
    *, as_json: bool, redactor: Redactor, stream: TextIO, color: bool = False
) -> Callable[[FlowRun, str], None]:
    """A function that passes on one line of a run's output.

    As JSON each line is a `flow_run.output` event among the logs; otherwise it goes to `stream`, where
    `prefect worker start` prints it, behind the run's name. Whether there is any is the job variable's business
    (`stream_output`), so `--log-level`, which is about the daemon's own lines, does not filter it. A reader that has
    gone away (a closed pipe) must not cost the run anything: the rest is dropped, with one warning.
    """
    log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET))
    names = Names(color)
    broken = False

    def as_event(_flow_run: FlowRun, line: str) -> None:
        # The run's id and name are bound to every event of its execution.
        log.info("flow_run.output", line=line)

    def as_text(flow_run: FlowRun, line: str) -> None:
        nonlocal broken
        if broken:
            return
        try:
            print(f"{names(flow_run.name)} | {redactor.text(line)}", file=stream, flush=True)
        except (OSError, ValueError) as error:
            broken = True
            log.warning("output.unwritable", reason=str(error))

    return as_event if as_json else as_text
