"""The fork server: what it forks, what waits for the word, and what becomes of both when something dies."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import psutil
import pytest

from tests.support import services
from tests.support.processes import RUN_MARK, Launches, not_a_subreaper_afterwards
from tests.support.wait import wait_for, wait_until
from worker.processes.forkserver import ForkServer, ForkServerError
from worker.processes.held import Held, NotWarm, held_output
from worker.processes.launch_problems import LaunchError, LaunchSpec
from worker.processes.launcher import EXECUTION_ID
from worker.processes.process_table import Marker, find_leader, read_process
from worker.processes.tree import OrphanReaper, become_subreaper

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# The engine ends at once, with status 1 and a message, when the id of its run is none.
NO_RUN = {"PREFECT__FLOW_RUN_ID": "none"}
ENGINE = (sys.executable, "-m", "prefect.engine")


class Kept:
    """A fork server in service, and what is needed to ask it."""

    def __init__(
        self, launches: Launches, *, preload: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.launches = launches
        self.directory = launches.directory
        self.woken = 0
        self.log = self.directory / "forkserver.log"
        home = {"HOME": str(self.directory), "PREFECT_HOME": str(self.directory / "prefect")}
        self.server = ForkServer(
            python=sys.executable,
            environment=launches.spec(*ENGINE, env={**home, **(env or {})}).env,
            preload=preload,
            log=self.log,
            launcher=launches.launcher,
            wake=self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    def spec(self, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> LaunchSpec:
        return LaunchSpec(
            argv=ENGINE,
            env={**self.server.environment, **NO_RUN, **(env or {})},
            cwd=cwd or self.directory,
            stream_output=False,
        )

    def hold(
        self, spec: LaunchSpec | None = None, *, marker: Marker | None = None, output: Path | None = None
    ) -> AbstractAsyncContextManager[Held]:
        return self.server.hold(
            spec or self.spec(),
            output=output or self.launches.output,
            marker=marker or Marker(EXECUTION_ID, os.urandom(16).hex()),
        )

    def pid(self) -> int:
        """The fork server's own."""
        (pid,) = (
            process.pid
            for process in services.marked_processes(RUN_MARK, self.launches.mark)
            if "forkserver_main" in process.cmdline()
        )
        return pid


@pytest.fixture
async def kept(tmp_path: Path, session_mark: str) -> AsyncIterator[Kept]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    with not_a_subreaper_afterwards():
        become_subreaper()
        kept = Kept(launches)
        await kept.server.keep_once()
        yield kept
        await kept.server.close()
        assert launches.left() == []
        assert launches.launcher.waited_for == frozenset()
        launches.end()


async def test_what_is_held_looks_like_an_engine_and_has_done_nothing(kept: Kept) -> None:
    marker = Marker(EXECUTION_ID, os.urandom(16).hex())
    async with kept.hold(marker=marker) as held:
        pid = held.handle.pid
        info = read_process(pid)
        assert info is not None
        assert (info.ppid, info.session) == (os.getpid(), pid)
        shown = psutil.Process(pid)
        assert (tuple(shown.cmdline()), shown.cwd()) == (ENGINE, str(kept.directory))
        leader = find_leader(marker)
        assert leader is not None
        assert leader.pid == pid
        assert held_output(kept.launches.output).read_bytes() == b""
        assert not kept.launches.output.exists()


async def test_what_is_held_has_the_pages_to_itself_that_it_is_going_to_write_to(kept: Kept) -> None:
    async with kept.hold() as held:

        def own_pages() -> int:
            return psutil.Process(held.handle.pid).memory_full_info().uss // resource.getpagesize()

        # Far more than what is there without being copied ahead: some 1,100.
        await wait_until(lambda: own_pages() >= 2500, description="the copies of thousands of pages")


async def test_with_the_word_it_runs_the_engine_and_its_exit_is_ours_to_collect(kept: Kept) -> None:
    async with kept.hold() as held:
        handle = held.go()
    exit_ = await handle.wait()
    assert exit_.code == 1
    assert "Invalid flow run id" in kept.launches.output.read_text()


async def test_without_the_word_it_is_gone_afterwards(kept: Kept) -> None:
    async with kept.hold() as held:
        pid = held.handle.pid
    assert read_process(pid) is None
    assert not held_output(kept.launches.output).exists()
    assert not kept.launches.output.exists()


async def test_many_at_once_are_all_told_apart(kept: Kept) -> None:
    async def one(number: int) -> None:
        output = kept.directory / f"output-{number}"
        async with kept.hold(kept.spec(env={"NUMBER": str(number)}), output=output) as held:
            handle = held.go()
        assert (await handle.wait()).code == 1
        assert output.read_text().count("Invalid flow run id") == 1

    async with anyio.create_task_group() as running:
        for number in range(8):
            running.start_soon(one, number)


async def test_the_death_of_the_fork_server_does_not_touch_what_it_has_forked(kept: Kept) -> None:
    async with kept.hold() as held:
        os.kill(kept.pid(), signal.SIGKILL)
        handle = held.go()
    assert (await handle.wait()).code == 1


async def test_a_dead_one_is_noticed_by_the_next_run_and_replaced(kept: Kept) -> None:
    first = kept.pid()
    os.kill(first, signal.SIGKILL)
    await wait_until(
        lambda: (info := read_process(first)) is None or info.dead, description="the fork server is dead"
    )
    with pytest.raises(NotWarm, match="fork server"):
        async with kept.hold():
            raise AssertionError
    assert kept.woken == 1
    assert kept.server.absence is not None
    await kept.server.keep_once()
    assert kept.server.absence is None
    async with kept.hold() as held:
        assert held.handle.alive()


async def test_a_dead_one_is_replaced_at_the_next_look(kept: Kept) -> None:
    first = kept.pid()
    os.kill(first, signal.SIGKILL)
    await wait_until(
        lambda: (info := read_process(first)) is None or info.dead, description="the fork server is dead"
    )
    await kept.server.keep_once()
    assert kept.pid() != first


async def test_one_that_keeps_dying_is_tried_less_often(kept: Kept) -> None:
    for again in (False, True):
        pid = kept.pid()
        os.kill(pid, signal.SIGKILL)
        await wait_until(
            lambda pid=pid: (info := read_process(pid)) is None or info.dead,
            description="the fork server is dead",
        )
        with pytest.raises(NotWarm, match="fork server"):
            async with kept.hold():
                raise AssertionError
        delay = await kept.server.keep_once()
        assert (kept.server.absence is not None) is again
    assert 0 < delay <= 4
    with pytest.raises(NotWarm):  # at once: nobody waits for the next one
        async with kept.hold():
            raise AssertionError


async def test_one_that_does_not_answer_is_given_up(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.processes.forkserver.ANSWER_LIMIT", 0.2)
    os.kill(kept.pid(), signal.SIGSTOP)
    with pytest.raises(NotWarm, match="did not answer"):
        async with kept.hold():
            raise AssertionError
    # Replacing it ends it, stopped as it is, and what it would have forked never comes to be.
    await kept.server.keep_once()
    assert kept.server.absence is None


async def test_a_missing_directory_is_told_as_a_cold_start_would(kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="nowhere does not exist: create it or change `working_dir`"):
        async with kept.hold(kept.spec(cwd=tmp_path / "nowhere")):
            raise AssertionError
    assert kept.server.absence is None  # nothing is wrong with the fork server


async def test_a_module_in_the_directory_that_hides_an_installed_one_goes_cold(
    kept: Kept, tmp_path: Path
) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "yaml.py").write_text("")
    with pytest.raises(NotWarm, match=r"yaml\.py"):
        async with kept.hold(kept.spec(cwd=hiding)):
            raise AssertionError
    assert kept.server.absence is None


async def test_cancelled_while_it_is_prepared_leaves_nothing(kept: Kept) -> None:
    os.kill(kept.pid(), signal.SIGSTOP)

    async def ask() -> None:
        async with kept.hold():
            raise AssertionError

    async with anyio.create_task_group() as asking:
        asking.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        asking.cancel_scope.cancel()
    os.kill(kept.pid(), signal.SIGCONT)
    # The fork server goes on, and the request that nobody waits for comes to nothing.
    async with kept.hold() as held:
        assert held.handle.alive()
    reaper = OrphanReaper()
    await wait_until(
        lambda: reaper.reap_orphans(kept.launches.launcher.waited_for), description="it is reaped"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "thread",
        ),
        ("import socket\nkept = socket.create_server(('127.0.0.1', 0))", "open"),
        ("raise LookupError('no such thing')", "no such thing"),
    ],
)
async def test_a_module_that_cannot_be_preloaded_is_refused_in_one_sentence(
    tmp_path: Path, session_mark: str, source: str, reason: str
) -> None:
    (tmp_path / "shared_by_all.py").write_text(source)
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    kept = Kept(launches, preload=("shared_by_all",), env={"PYTHONPATH": str(tmp_path)})
    assert await kept.server.keep_once() > 60  # trying again at once would change nothing
    with pytest.raises(NotWarm, match=reason):
        async with kept.hold():
            raise AssertionError
    assert kept.server.absence is not None
    assert "shared_by_all" in kept.server.absence
    assert launches.left() == []
    await kept.server.close()


async def test_an_interpreter_without_prefect_is_said_and_tried_again(
    tmp_path: Path, session_mark: str
) -> None:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    kept = Kept(launches, env={"PYTHONPATH": str(tmp_path)})
    (tmp_path / "prefect.py").write_text("raise ImportError('broken installation')")
    with pytest.raises(ForkServerError, match="broken installation"):
        await kept.server.keep_once()
    (tmp_path / "prefect.py").unlink()
    await kept.server.keep_once()
    assert kept.server.absence is None
    await kept.server.close()
    assert launches.left() == []


DAEMON = """
import os, sys, anyio
from pathlib import Path
from worker.processes.forkserver import ForkServer
from worker.processes.launcher import Launcher
from worker.processes.launch_problems import LaunchSpec
from worker.processes.process_table import Marker
from worker.processes.tree import become_subreaper

async def main():
    become_subreaper()
    directory = Path(sys.argv[1])
    launcher = Launcher()
    server = ForkServer(python=sys.executable, environment=dict(os.environ), preload=(), log=directory / "log",
                        launcher=launcher, wake=lambda: None)
    await server.keep_once()
    spec = LaunchSpec(argv=(sys.executable, "-m", "prefect.engine"), env=dict(os.environ), cwd=directory, stream_output=False)
    async with server.hold(spec, output=directory / "held", marker=Marker("HEADRACE_EXECUTION_ID", "a" * 32)) as held:
        print("held", held.handle.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def test_a_killed_daemon_leaves_neither_fork_server_nor_held_process(
    tmp_path: Path, session_mark: str
) -> None:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(tmp_path)],
        env={**launches.spec("x").env, "HOME": str(tmp_path), **NO_RUN},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        held = next(line.split()[1] for line in process.stdout if line.startswith("held "))
        assert int(held) in launches.left()
    assert len(launches.left()) == 3
    process.kill()
    process.wait()
    wait_for(lambda: not launches.left(), description="fork server and held process have ended")
    assert not (tmp_path / "held").exists(), "it has not begun"
    assert held_output(tmp_path / "held").read_bytes() == b""


async def test_packages_that_change_on_disk_make_it_stale(tmp_path: Path, session_mark: str) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "installed_one.py").write_text("VERSION = 1\n")
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    kept = Kept(launches, preload=("installed_one",), env={"PYTHONPATH": str(packages)})
    await kept.server.keep_once()
    (packages / "installed_one.py").write_text("VERSION = 'another, and longer'\n")
    with pytest.raises(NotWarm):
        async with kept.hold():
            raise AssertionError
    assert kept.woken == 1
    await kept.server.keep_once()
    async with kept.hold() as held:
        assert held.handle.alive()
    await kept.server.close()
    assert launches.left() == []


async def test_the_word_comes_too_late_for_one_that_has_ended(kept: Kept) -> None:
    async with kept.hold() as held:
        os.kill(held.handle.pid, signal.SIGKILL)
        await wait_until(lambda: not held.handle.alive(), description="the end of the held process")
        with pytest.raises(NotWarm, match="ended"):
            held.go()
    assert not kept.launches.output.exists(), "nothing says that it has begun"
