"""The end of a whole tree: nothing of a run is left, and nothing else is hit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.support.processes import Launches, not_a_subreaper_afterwards
from tests.support.wait import wait_until
from worker.processes import process_table_psutil
from worker.processes.process import ProcessHandle
from worker.processes.process_table import (
    Identity,
    Marker,
    ProcessInfo,
    carries,
    read_process,
    snapshot,
)
from worker.processes.tree import (
    KillReport,
    OrphanReaper,
    Sent,
    become_subreaper,
    find_members,
    send_signal,
)

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# A child in the group, one in a session of its own, and a daemon that forked twice; all deaf to SIGTERM and SIGHUP.
FAMILY = """
trap '' TERM HUP
sleep 600 &
setsid sleep 600 &
(setsid bash -c 'sleep 600 & exec sleep 600' &)
echo ready
"""


@pytest.fixture
def launches(tmp_path: Path, session_mark: str) -> Iterator[Launches]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    yield launches
    launches.end()


@pytest.fixture(params=[False, True], ids=["orphans go to init", "orphans come to us"])
def subreaper(request: pytest.FixtureRequest) -> Iterator[bool]:
    with not_a_subreaper_afterwards():
        if request.param:
            assert become_subreaper() or sys.platform != "linux"
        yield request.param


async def started(launches: Launches, script: str, *, processes: int) -> ProcessHandle:
    handle = launches.shell(script)
    await wait_until(
        lambda: launches.lines() == ["ready"] and len(launches.left()) == processes,
        description=f"{processes} processes",
    )
    return handle


def start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv)


def own_zombies() -> list[int]:
    return [process.pid for process in snapshot().values() if process.dead and process.ppid == os.getpid()]


def state(pid: int) -> str:
    """The kernel's letter for what it is doing (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Stopping


async def test_who_hears_sigterm_ends_in_its_own_way(launches: Launches) -> None:
    handle = await started(
        launches, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done", processes=2
    )
    report = await handle.stop(grace=60)
    assert (await handle.wait()).code == 3
    assert report.survivors == ()
    assert launches.left() == []


async def test_who_is_deaf_is_killed(launches: Launches) -> None:
    handle = await started(launches, "trap '' TERM; echo ready; while :; do sleep 600; done", processes=2)
    report = await handle.stop(grace=0.05)
    assert (await handle.wait()).signal == signal.SIGKILL
    assert report == KillReport(killed=2)
    assert launches.left() == []


async def test_who_is_stopped_hears_sigterm(launches: Launches) -> None:
    handle = await started(
        launches, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done", processes=2
    )
    os.killpg(handle.pid, signal.SIGSTOP)
    await handle.stop(grace=60)
    assert (await handle.wait()).code == 3


async def test_stopping_what_is_gone_is_harmless(launches: Launches) -> None:
    handle = launches.shell("exit 0")
    await wait_until(lambda: not handle.alive(), description="the end")
    handle.interrupt()
    assert await handle.stop(grace=60) == KillReport()
    handle.interrupt()
    assert await handle.stop(grace=60) == KillReport()
    assert await handle.kill_tree() == KillReport()
    assert await handle.sweep() == 0
    assert (await handle.wait()).code == 0


async def test_a_cancelled_stop_leaves_nobody_stopped(launches: Launches) -> None:
    handle = await started(launches, "trap '' TERM; echo ready; while :; do sleep 0.1; done", processes=2)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: handle.stop(grace=600))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert handle.alive()
    assert state(handle.pid) != "T"
    await handle.kill_tree()


# The whole tree


async def test_kill_tree_leaves_nothing(launches: Launches, subreaper: bool) -> None:
    handle = await started(launches, FAMILY + "wait", processes=5)
    report = await handle.kill_tree()
    assert report == KillReport(killed=5)
    assert launches.left() == []
    assert (await handle.wait()).signal == signal.SIGKILL
    assert own_zombies() == []


async def test_what_outlives_its_leader_is_swept(launches: Launches, subreaper: bool) -> None:
    gate = launches.directory / "gate"
    os.mkfifo(gate)
    handle = await started(launches, FAMILY + "read -r _ < gate; exit 0", processes=5)
    gate.write_text("go\n")
    exit_ = await handle.wait()
    assert exit_.code == 0
    assert launches.left() == []
    assert await handle.sweep() == 4
    assert own_zombies() == []


async def test_who_forks_all_the_time_does_not_get_away(launches: Launches, subreaper: bool) -> None:
    script = """
    trap '' TERM
    flee() { while :; do setsid bash -c 'sleep 600 & (setsid sleep 600 &)' & sleep 0.01; done; }
    flee & flee & flee &
    echo ready
    wait
    """
    handle = launches.shell(script)
    await wait_until(lambda: len(launches.left()) > 20, description="a crowd")
    report = await handle.kill_tree()
    assert report.survivors == ()
    assert launches.left() == []
    # Those that had ended by themselves before, and were nobody's member any more, are the reaper's.
    reaper = OrphanReaper()
    reaper.reap_orphans(launches.launcher.waited_for)
    reaper.reap_orphans(launches.launcher.waited_for)
    assert own_zombies() == []


async def test_one_without_the_marker_is_found_by_descent(launches: Launches) -> None:
    # An emptied environment and a session of its own, but still the leader's grandchild.
    handle = launches.shell("(env -i /usr/bin/setsid /bin/sleep 600 & echo $!; wait) & wait")
    await wait_until(launches.lines, description="its pid")
    pid = int(launches.lines()[0])
    await wait_until(lambda: not carries(pid, handle.marker or Marker("", "")), description="its exec")
    await handle.kill_tree()
    info = read_process(pid)
    assert info is None or info.dead


async def test_the_end_of_one_attempt_is_not_the_end_of_another(launches: Launches) -> None:
    first, second = (launches.shell("sleep 600", env={"PREFECT__FLOW_RUN_ID": "same"}) for _ in range(2))
    await first.kill_tree()
    assert second.alive()
    await second.kill_tree()


async def test_a_tree_that_ends_without_descriptors_to_look_at_it(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await started(launches, FAMILY + "wait", processes=5)
    refusals = iter([True, True, False, True])
    listing = os.scandir

    def scandir(path: str) -> object:
        if next(refusals, False):
            raise OSError(24, "Too many open files", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    await handle.kill_tree()
    assert next(refusals, None) is None
    assert launches.left() == []


# Identity


def test_a_signal_goes_to_one_process_not_to_a_number(launches: Launches) -> None:
    handle = launches.shell("sleep 600")
    assert send_signal(Identity(handle.pid, handle.start_time - 1), signal.SIGKILL) is Sent.GONE
    assert handle.alive()
    assert send_signal(Identity(handle.pid, handle.start_time), signal.SIGKILL) is Sent.DELIVERED


def test_a_signal_to_nobody() -> None:
    process = subprocess.Popen(["true"])
    info = read_process(process.pid)
    process.wait()
    assert info is not None
    assert send_signal(info.identity, signal.SIGKILL) is Sent.GONE


NAMESPACE = """
import anyio, os, subprocess, sys
from pathlib import Path
from worker.processes.launch_problems import LaunchSpec
from worker.processes.launcher import Launcher
from worker.processes.process_table import snapshot
from worker.processes import process_table_psutil
from worker.processes.process import ProcessHandle
from worker.processes.tree import OrphanReaper

async def main():
    assert os.getpid() == 1
    launcher = Launcher()
    def launch(script):
        spec = LaunchSpec(argv=("bash", "-c", script), env=dict(os.environ), cwd=Path("/"), stream_output=False)
        return launcher.launch(spec, output=Path("/dev/null"))

    # As PID 1 every orphan is ours.
    handle = launch("(setsid sleep 600 &) ; (sleep 600 &) ; exit 4")
    assert (await handle.wait()).code == 4
    assert await handle.sweep() == 2
    assert [pid for pid in snapshot() if pid != 1] == [], snapshot()

    # The number of a dead run goes to a stranger who leads a session, like the run did.
    old = launch("exit 0")
    identity = old.pid, old.start_time
    await old.wait()
    await anyio.sleep(0.05)  # into the next clock tick: a start time has no finer grain
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(old.pid - 1))
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    assert stranger.pid == old.pid, (stranger.pid, old.pid)
    old.interrupt()
    await old.stop(grace=0)
    await old.kill_tree()
    await old.sweep()
    old_identity = type(old._tree.leader)(*identity)
    assert ProcessHandle.adopt(identity=old_identity, marker=None, started=0, clock=lambda: 0) is None
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    print("done")

anyio.run(main)
"""


async def test_in_a_pid_namespace_of_its_own(session_mark: str) -> None:
    # As PID 1, and where it can be arranged that a pid is used again at once.
    unshare = shutil.which("unshare")
    command = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child"]
    if unshare is None or (await anyio.run_process([*command, "true"], check=False)).returncode != 0:
        pytest.skip("may not make a PID namespace here (needs root and util-linux)")
    done = await anyio.run_process(
        [*command, sys.executable, "-c", NAMESPACE], cwd=Path(__file__).parents[2], stderr=None, check=False
    )
    assert done.stdout == b"done\n"


# Orphans


async def test_orphans_are_reaped_and_nobodys_exit_is_stolen(launches: Launches) -> None:
    reaper = OrphanReaper()
    with not_a_subreaper_afterwards():
        if not become_subreaper():
            pytest.skip("there are no subreapers here")
        waited = launches.shell("exit 5")
        outside = start("bash", "-c", "exit 6")
        start("bash", "-c", "(exit 1 & exec sleep 0.2) & exit 0").wait()
        await wait_until(lambda: len(own_zombies()) >= 3, description="zombies")
        assert reaper.reap_orphans(launches.launcher.waited_for) == 0
        assert outside.wait() == 6  # its owner was in time
        orphans = set(own_zombies()) - {waited.pid}
        await wait_until(
            lambda: not (set(own_zombies()) & orphans) or reaper.reap_orphans(launches.launcher.waited_for),
            description="the orphans' end",
        )
        await wait_until(
            lambda: reaper.reap_orphans(launches.launcher.waited_for) or own_zombies() == [waited.pid],
            description="no zombie but the one that is waited for",
        )
        assert (await waited.wait()).code == 5


# Membership, decided


def row(pid: int, ppid: int = 1, *, session: int = 1, start: float = 10.0, dead: bool = False) -> ProcessInfo:
    return ProcessInfo(pid=pid, ppid=ppid, session=session, start_time=start, dead=dead)


LEADER = row(100, 50, session=100)
DAEMON = row(50, start=1.0)


def members(
    *rows: ProcessInfo, held: bool = True, seen: tuple[Identity, ...] = (), marked: tuple[int, ...] = ()
) -> set[int]:
    return {
        process.pid
        for process in find_members(
            {process.pid: process for process in (DAEMON, *rows)},
            leader=LEADER.identity,
            leader_held=held,
            seen=seen,
            marked=lambda pid: pid in marked,
            exclude=DAEMON.pid,
        )
    }


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(members(LEADER), {100}, id="alone"),
        pytest.param(
            members(LEADER, row(101, 100), row(102, 101, session=102)), {100, 101, 102}, id="descent"
        ),
        pytest.param(members(row(101, 1, session=100)), {101}, id="an orphan in the session"),
        pytest.param(
            members(row(101, 1, session=100), held=False), set[int](), id="a session number that was free"
        ),
        pytest.param(members(row(101, 1, session=101), marked=(101,)), {101}, id="the marker"),
        pytest.param(
            members(row(101, 50, session=101), row(102, 101), marked=(101,)), {101, 102}, id="its child"
        ),
        pytest.param(members(row(101, 1, start=9.0), marked=(101,)), set[int](), id="older than the leader"),
        pytest.param(members(row(101), seen=(Identity(101, 10.0),)), {101}, id="seen before"),
        pytest.param(members(row(101), seen=(Identity(101, 9.0),)), set[int](), id="a namesake of one seen"),
        pytest.param(members(row(101, 50)), set[int](), id="another child of the daemon"),
        pytest.param(members(LEADER, marked=(50,)), {100}, id="never ourselves"),
        pytest.param(members(row(100, 50, session=100, dead=True)), set[int](), id="the dead do not count"),
        pytest.param(
            members(row(100, 50, session=100, dead=True), row(101, 1, session=100)),
            {101},
            id="left by the dead",
        ),
        pytest.param(
            members(row(101, 102, session=100), row(102, 101)), {101, 102}, id="a torn reading with a circle"
        ),
    ],
)
def test_membership(found: set[int], expected: set[int]) -> None:
    assert found == expected


def test_both_ways_to_read_the_process_table_agree() -> None:
    mine, other = read_process(os.getpid()), process_table_psutil.read_process(os.getpid())
    assert mine is not None
    assert other is not None
    assert (mine.pid, mine.ppid, mine.session, mine.dead) == (
        other.pid,
        other.ppid,
        other.session,
        other.dead,
    )
    assert mine.ppid == os.getppid()
    assert mine.session == os.getsid(0)
    assert os.getpid() in process_table_psutil.pids()


def test_nobody_in_the_process_table() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert read_process(process.pid) is None
    assert process_table_psutil.read_process(process.pid) is None
    assert not carries(process.pid, Marker("A", "b"))


async def test_a_marker_is_matched_whole(launches: Launches) -> None:
    handle = launches("sleep", "600", env={"MARK": "value"})
    await wait_until(lambda: carries(handle.pid, Marker("MARK", "value")), description="its exec")
    assert process_table_psutil.carries(handle.pid, Marker("MARK", "value"))
    assert not process_table_psutil.carries(handle.pid, Marker("MARK", "valu"))
    assert not carries(handle.pid, Marker("MARK", "valu"))
    assert not carries(handle.pid, Marker("ARK", "value"))
    await handle.kill_tree()


async def test_a_process_whose_first_thread_has_ended_is_alive(launches: Launches) -> None:
    handle = launches.python(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('ready', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )

    await wait_until(lambda: state(handle.pid) == "Z", description="the first thread's end")
    assert handle.alive()
    assert await handle.kill_tree() == KillReport(killed=1)
    assert (await handle.wait()).signal == signal.SIGKILL
