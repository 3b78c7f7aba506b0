"""The commands of README.md and docs/migrating.md, and what other pages say in a sentence, typed as they stand there.

Each command is read from its page. Only what a page makes up is replaced: the names of pool, run and deployment, and a
program by the one that is tested. tests/unit/test_docs.py says where the commands of the other pages are run.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import FAST, Worker
from tests.support.docs import LAYERS, ROOT, Page, flags, pages
from tests.support.project import Project
from tests.support.server import PrefectServer
from tests.support.services import Service, spawn
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.thorough]

README = list(Page(ROOT / "README.md").commands())
MIGRATING = list(Page(ROOT / "docs/migrating.md").commands())
PIP, SERVED = (
    next(words for words in README if words[:2] == what)
    for what in (["pip", "install"], ["headrace", "start"])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where commands are typed: one user's environment, and what the pages' names mean here."""

    server: PrefectServer
    home: Path
    names: Mapping[str, str]
    programs: Path = Path(sys.executable).parent

    def words(self, words: Sequence[str]) -> list[str]:
        program, *rest = words
        ours = [str(self.programs / "python"), "-m", "worker.cli"]
        # `-m` finds this checkout's daemon; one that was installed is found as it is typed.
        tested = (
            ours
            if program == "headrace" and self.programs == Path(sys.executable).parent
            else [str(self.programs / program)]
        )
        return [*tested, *(self.names.get(word, word) for word in rest)]

    def environment(self) -> dict[str, str]:
        return self.server.env(FAST | {"HOME": str(self.home), "TMPDIR": str(self.home)})

    @contextmanager
    def started(self, words: Sequence[str], *, line: str = "started!") -> Generator[Service]:
        """Type a command that goes on, and wait until it has printed `line`; ended with the context."""
        service = spawn(
            self.words(words),
            name=words[0],
            role="docs",
            directory=self.home,
            environment=self.environment(),
            cwd=self.home if self.programs != Path(sys.executable).parent else ROOT,
        )
        try:
            assert service.wait_until_true(lambda: line in service.stdout(), timeout=90), service.transcript()
            yield service
        finally:
            service.end()

    def type(self, words: Sequence[str]) -> str:
        """Type a command that ends, well; what it printed."""
        done = subprocess.run(
            self.words(words),
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def test_the_commands_of_the_readme(
    prefect_server: PrefectServer, api: PrefectApi, project: Project, tmp_path: Path
) -> None:
    """Start, explain, ps, logs, stop and doctor, in the page's order, beside a run in flight."""
    script = tmp_path / "script"
    script.write_text("extracting\n")
    deployment = project.deploy(
        "chatty", file="chatty.py", name=f"nightly-{project.pool}", parameters={"script": str(script)}
    )
    run = api.create_flow_run(deployment, name=f"otter-{project.pool}", job_variables={"env.X": "2"})
    later = api.create_flow_run(deployment, state={"type": "PENDING"})
    names = {
        "my-pool": project.pool,
        "etl/nightly": f"chatty/nightly-{project.pool}",
        "swift-otter": f"otter-{project.pool}",
        "case.json": "examples/job-variables/layers.json",
        "ID": run,
        "A": run,
        "B": later,
    }
    desk = Desk(server=prefect_server, home=tmp_path, names=names)
    typed: list[list[str]] = []

    def printed(*beginning: str) -> str:
        (words,) = (words for words in README if words[: len(beginning)] == list(beginning))
        typed.append(words)
        return desk.type(words)

    (follow,) = (words for words in README if words[:2] == ["headrace", "logs"])
    with desk.started(SERVED), desk.started(follow, line="extracting") as following:
        typed += [SERVED, follow]
        explain = ("headrace", "explain")
        assert re.search(r"^env\.X +2 +flow run", printed(*explain, "--flow-run"), re.MULTILINE)
        assert re.search(r"^env\.X +1 +flow run", printed(*explain, "--deployment"), re.MULTILINE)
        assert "pool default" in printed(*explain, "--pool")
        assert "env.X" in printed(*explain, "--diff")
        assert "amber-fox" in printed(*explain, "--input")
        assert names["swift-otter"] in printed("headrace", "ps")
        assert "is Cancelled" in printed("headrace", "stop")
        assert following.wait_exit() == 0
        assert "FAIL" not in printed("headrace", "doctor")
    assert sorted(typed) == sorted(words for words in README if words[0] == "headrace")


@pytest.mark.long
def test_installing_as_the_readme_says(
    prefect_server: PrefectServer, api: PrefectApi, project: Project, tmp_path: Path
) -> None:
    """In a fresh virtual environment, by whoever has nothing but a checkout."""
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    subprocess.run([fresh / "bin" / PIP[0], *PIP[1:]], cwd=ROOT, check=True, capture_output=True, timeout=300)
    desk = Desk(server=prefect_server, home=tmp_path, names={"my-pool": project.pool}, programs=fresh / "bin")
    with desk.started(SERVED) as daemon:
        seen = project.seen(project.run())
        assert Path(seen["executable"]).is_relative_to(fresh)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0


@pytest.mark.long
def test_changing_from_the_one_command_to_the_other(
    prefect_server: PrefectServer, api: PrefectApi, project: Project, tmp_path: Path
) -> None:
    """docs/migrating.md: stock first, headrace beside it, then headrace alone; each takes what its flags say."""
    stock, ours = MIGRATING
    assert (stock[:3], ours[:2]) == (["prefect", "worker", "start"], ["headrace", "start"])
    assert stock[3:] == ours[2:]
    queue = stock[stock.index("--work-queue") + 1]
    api.create_queue(project.pool, queue)
    desk = Desk(server=prefect_server, home=tmp_path, names={"my-pool": project.pool})
    elsewhere = project.run()
    with desk.started(stock) as old:
        api.wait_for_state(project.run(work_queue_name=queue), "COMPLETED")
        with desk.started(ours) as new:
            old.signal(signal.SIGTERM)
            old.wait_exit()
            run = project.run(work_queue_name=queue)
            api.wait_for_state(run, "COMPLETED")
            assert run in new.stderr()
    assert api.flow_run(elsewhere)["state_type"] == "SCHEDULED"


@pytest.fixture(scope="module")
def crashed(api: PrefectApi, module_project: Project, worker: Worker) -> str:
    """A run that crashed."""
    run = module_project.run("crashes")
    api.wait_for_state(run, "CRASHED")
    worker.wait_for_event("flow_run.reported", flow_run_id=run)
    return run


def in_a_sentence(page: str, beginning: str) -> str:
    """The one piece of code in the prose of the page that begins so."""
    (found,) = (code for code in Page(ROOT / page).code() if code.startswith(beginning))
    return found


def test_what_is_left_of_a_crashed_run_is_in_its_log(
    prefect_server: PrefectServer, crashed: str, tmp_path: Path
) -> None:
    words = shlex.split(in_a_sentence("docs/operating.md", "prefect flow-run logs"))
    wait_for(
        lambda: (
            "exit code 7" in Desk(server=prefect_server, home=tmp_path, names={"ID": crashed}).type(words)
        ),
        interval=0.5,
        description="the crash in the run's log",
    )


def test_warnings_are_picked_out_of_a_service_log(worker: Worker, crashed: str) -> None:
    """systemd's journal has both streams of the daemon, and systemd's own lines."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    journalctl, _, pick = in_a_sentence("docs/logs.md", "journalctl").partition(" | ")
    assert journalctl.split()[:3] == ["journalctl", "-o", "cat"]
    said = "Started headrace@nightly.service - headrace.\n" + worker.stdout() + "17\n" + worker.stderr()
    done = subprocess.run(shlex.split(pick), input=said, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"level": "warning"') == done.stdout.count('"level"') >= 1
    assert crashed in done.stdout


@pytest.mark.long
def test_commands_of_prefect_in_a_sentence_exist(prefect_server: PrefectServer, tmp_path: Path) -> None:
    desk = Desk(server=prefect_server, home=tmp_path, names={})
    named = {code for page in pages() for code in page.code() if code.startswith("prefect ")} - LAYERS
    assert len(named) >= 4
    for command in sorted(named):
        words = re.match(r"(?:[a-z][a-z-]+(?: |$))+", command)
        assert words is not None
        assert flags(command) <= flags(desk.type([*words[0].split(), "--help"])), command
