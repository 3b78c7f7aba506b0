"""Every command of docs/job-variables.md is run, and where the page shows output, that is what comes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.project import Project
from tests.support.server import PrefectServer

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "job-variables.md"
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str | None]]:
    """Each block of commands, with the output that is shown after it."""
    found: list[tuple[str, str | None]] = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "sh":
            found.append((text, None))
        else:
            commands, _ = found.pop()
            found.append((commands, text))
    return found


def shown(text: str) -> re.Pattern[str]:
    """A pattern for output in which `…` stands for anything."""
    return re.compile(".*".join(re.escape(part) for part in text.split("…")), re.DOTALL)


@pytest.mark.timeout(300)
def test_the_page_tells_what_happens(api: PrefectApi, prefect_server: PrefectServer, tmp_path: Path) -> None:
    pool = api.create_pool("my-pool", template=api.template(defaults={"env": {"REGION": "eu"}}))
    project = Project(api=api, pool=pool, out=tmp_path)
    deployment = api.create_deployment(
        pool=project.pool,
        entrypoint="flows.py:etl",
        name="nightly",
        job_variables={"env": {"LOG_LEVEL": "debug"}},
    )
    runs = [api.create_flow_run(deployment, job_variables={"env.LOG_LEVEL": level}) for level in ("a", "b")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = prefect_server.env({"RUN": runs[0], "OTHER_RUN": runs[1]})
    commands = 0
    for block, output in blocks():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), block
        if output is not None:
            assert shown(output).fullmatch(done.stdout), f"{block}\n{done.stdout}"
        commands += len(block.splitlines())
    assert commands > 8
    made = [run for run in api.runs_of_deployment(deployment) if run["id"] not in runs]
    assert [run["job_variables"] for run in made] == [{"env.LOG_LEVEL": "warning", "MY_NEW_ENV_VAR": 42}]


def test_the_examples_of_the_page_exist() -> None:
    for name in re.findall(r"\(\.\./(examples/[^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert os.path.exists(ROOT / name), name  # noqa: PTH110 - a name as the page has it
