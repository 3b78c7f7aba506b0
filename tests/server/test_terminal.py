"""A real daemon on a terminal: what a person sees, and what nobody wants to see."""

import re
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker
from tests.support.project import Project

pytestmark = pytest.mark.thorough

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?P<level>\w+) +(?P<event>[a-z_]+\.[a-z_]+)(?P<fields>.*)")
ESCAPE = re.compile(r"\033\[\d+m")


@pytest.mark.parametrize("coloured", [True, False], ids=["coloured", "plain"])
def test_one_run_on_a_terminal(
    api: PrefectApi, daemon: StartWorker, tmp_path: Path, *, coloured: bool
) -> None:
    pool = api.create_pool()
    run_id = Project(api=api, pool=pool, out=tmp_path).run()
    name = api.flow_run(run_id)["name"]
    worker = daemon(
        pool=pool,
        program="tests.support.terminal_daemon",
        args=("--run-once", "--log-format", "auto", "--log-level", "info"),
        env={"TERM": "xterm", "NO_COLOR": "" if coloured else "1"},
        wait=False,
    )
    assert worker.wait_exit() == 0
    shown = worker.stdout()
    assert bool(ESCAPE.search(shown)) is coloured
    lines = ESCAPE.sub("", shown).splitlines()
    story = [match for line in lines if (match := LINE.fullmatch(line))]

    # Three kinds of lines and no other: events, what the flow printed, what scripts wait for.
    printed = [line for line in lines if line.startswith(f"{name} | ")]
    announced = [line for line in lines if line.startswith(f"Worker '{worker.name}' ")]
    assert len(story) + len(printed) + len(announced) == len(lines), shown
    assert f"{name} | stdout of {run_id}" in printed
    assert len(announced) == 2

    about_the_run = [match for match in story if match["event"].startswith("flow_run.")]
    assert [match["event"] for match in about_the_run] == [
        "flow_run.claimed",
        "flow_run.launched",
        "flow_run.exited",
        "flow_run.reported",
    ]
    assert all(match["fields"].split()[0] == name for match in about_the_run)
    # What would be the same in every line is in one.
    assert sum(run_id in match["fields"] and "working_dir" not in match["fields"] for match in story) == 1
    assert sum(f"worker={worker.name}" in match["fields"] for match in story) == 1
    assert {match["level"] for match in story} == {"info"}
