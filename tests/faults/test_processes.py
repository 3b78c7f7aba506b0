"""Real processes: how they are started, what they begin with, how they end."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from tests.support import services
from tests.support.leaks import open_descriptors
from tests.support.processes import RUN_MARK, Launches
from tests.support.wait import wait_for, wait_until
from worker.processes.launch_problems import LaunchError, LaunchSpec, explain_failure, find_problem
from worker.processes.launcher import Launcher
from worker.processes.output import follow
from worker.processes.process import Exit, ProcessHandle
from worker.processes.process_table import Identity, Marker, read_process

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

NOBODY = 65534


@pytest.fixture
def launches(tmp_path: Path, session_mark: str) -> Iterator[Launches]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    yield launches
    launches.end()


# How a process ends


async def test_exit_code(launches: Launches) -> None:
    exit_ = await launches.shell("exit 7").wait()
    assert (exit_.code, exit_.signal, exit_.status_code) == (7, None, 7)
    assert exit_.describe() == "exit code 7"
    assert exit_.started <= exit_.ended


async def test_death_by_signal(launches: Launches) -> None:
    exit_ = await launches.shell("kill -SEGV $$").wait()
    assert (exit_.code, exit_.signal, exit_.status_code) == (None, signal.SIGSEGV, -signal.SIGSEGV)
    assert exit_.describe() == "signal SIGSEGV"


@pytest.mark.parametrize(
    ("code", "number", "text"),
    [(0, None, "exit code 0"), (None, 9, "signal SIGKILL"), (None, 40, "signal 40"), (None, None, "unknown")],
)
def test_exits_in_words(code: int | None, number: int | None, text: str) -> None:
    exit_ = Exit(code=code, signal=number, max_rss_bytes=None, started=0, ended=1)
    assert exit_.describe().startswith(text)


async def test_memory_that_was_used(launches: Launches) -> None:
    # A child begins with its parent's peak, and ours depends on the tests before.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (200 << 20)
    exit_ = await launches.python(f"b'x' * {used}").wait()
    assert exit_.max_rss_bytes is not None
    assert used < exit_.max_rss_bytes < used + (200 << 20)


async def test_memory_below_our_own_is_not_told(launches: Launches) -> None:
    assert (await launches.shell("exit 0").wait()).max_rss_bytes is None


async def test_several_wait_and_a_cancelled_one_disturbs_none(launches: Launches) -> None:
    os.mkfifo(launches.directory / "gate")
    handle = launches.shell("read -r _ < gate; exit 3")
    exits: list[Exit] = []

    async def wait() -> None:
        exits.append(await handle.wait())

    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as first:
            first.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            others.start_soon(wait)
            others.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        assert exits == []
        (launches.directory / "gate").write_text("go\n")
    assert [exit_.code for exit_ in exits] == [3, 3]
    assert (await handle.wait()).code == 3


async def test_fifty_at_once_and_no_descriptor_left(launches: Launches) -> None:
    before = open_descriptors()
    codes: dict[int, int | None] = {}

    async def run(number: int) -> None:
        codes[number] = (await launches.shell(f"sleep 0.$((RANDOM % 5)); exit {number}").wait()).code

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(run, number)
    assert codes == {number: number for number in range(50)}
    assert launches.launcher.waited_for == frozenset()
    assert open_descriptors().keys() == before.keys()


async def test_without_pidfds_all_is_the_same(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    handle = launches.shell("sleep 600 & exit 7")
    assert (await handle.wait()).code == 7
    assert await handle.sweep() == 1
    handle = launches.shell("sleep 600")
    assert handle.alive()
    await handle.stop(grace=60)
    assert (await handle.wait()).signal == signal.SIGTERM
    assert launches.left() == []


async def test_one_whose_exit_someone_else_has_taken(launches: Launches) -> None:
    handle = launches.shell("exit 7")
    await anyio.to_thread.run_sync(os.waitpid, handle.pid, 0)
    assert (await handle.wait()).describe() == "unknown exit status"


# What a process begins with


async def test_a_new_process_is_fresh(launches: Launches) -> None:
    readable, writable = os.pipe()
    os.set_inheritable(writable, True)
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        statuses = launches("cat", "/proc/self/status")  # a shell has signals of its own to ignore
        descriptors = launches("ls", "-l", "/proc/self/fd")
        handle = launches.shell("cat; umask; pwd; ps -o sid= $$")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        os.close(readable)
        os.close(writable)
    assert [(await each.wait()).code for each in (statuses, descriptors, handle)] == [0, 0, 0]
    lines = launches.lines()
    # The three write into one file at the same time: the shell's lines are those of neither of the others.
    own = [
        line for line in lines if ":\t" not in line and " -> " not in line and not line.startswith("total ")
    ]
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    # Signals 32 and 33 are the C library's own (nptl(7)): no program can set them, so a parent's setting stays.
    settable = ~(0b11 << 31)
    assert int(status["SigIgn"], 16) & settable == 0
    assert int(status["SigBlk"], 16) & settable == 0
    assert sorted(line.split()[-3] for line in lines if " -> " in line) == [
        "0",
        "1",
        "2",
        "3",
    ]  # 3: the listing
    assert "pipe:" not in launches.output.read_text()
    mask = os.umask(0)
    os.umask(mask)
    assert own[-3:-1] == [f"{mask:04o}", str(launches.directory)]
    assert int(own[-1]) == handle.pid


async def test_output_of_both_kinds_is_appended_to_a_private_file(launches: Launches) -> None:
    await launches.shell("echo out; echo err >&2").wait()
    await launches.shell("echo again").wait()
    assert launches.lines() == ["out", "err", "again"]
    assert stat.S_IMODE(launches.output.stat().st_mode) == 0o600


async def test_the_environment_is_the_given_one_and_the_marker(launches: Launches) -> None:
    spec = LaunchSpec(
        argv=("/usr/bin/env",), env={"ONLY": "läuft\nweiter"}, cwd=launches.directory, stream_output=False
    )
    await launches.launcher.launch(spec, output=launches.output).wait()
    *lines, marker = launches.lines()
    assert lines == ["ONLY=läuft", "weiter"]
    assert marker.startswith("HEADRACE_EXECUTION_ID=")


async def test_the_command_is_looked_up_in_the_new_path(launches: Launches) -> None:
    program = launches.directory / "bin" / "only-here"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    await launches("only-here", env={"PATH": str(program.parent)}).wait()
    await launches("./only-here", cwd=program.parent).wait()
    assert launches.lines() == ["found", "found"]


def test_an_ignored_sigchld_is_put_right() -> None:
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        Launcher()
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_a_launch_spec_shows_no_values() -> None:
    spec = LaunchSpec(argv=("true",), env={"PASSWORD": "hunter2"}, cwd=Path("/"), stream_output=True)
    assert "hunter2" not in repr(spec)


# What cannot be started


@pytest.mark.parametrize(
    ("argv", "env", "cwd", "words"),
    [
        ((), {}, "/", "command is empty"),
        (("",), {}, "/", "command is empty"),
        (("tr\0ue",), {}, "/", "argument 0 of the command contains a NUL"),
        (
            ("true", "\ud800"),
            {},
            "/",
            "argument 1 of the command contains a character that cannot be encoded",
        ),
        (("true",), {"SECRET": "hunter2\0"}, "/", "environment variable SECRET contains a NUL"),
        (("true",), {"SECRET": "hunter2\ud800"}, "/", "environment variable SECRET contains a character"),
        (("true",), {"A=B": "hunter2"}, "/", "'A=B' cannot be the name"),
        (("true",), {"": "hunter2"}, "/", "'' cannot be the name"),
        (("true",), {"A\0": "hunter2"}, "/", "cannot be the name"),
        (("true",), {}, "/a\0b", "working directory's path contains a NUL"),
    ],
)
def test_impossible_specs(argv: tuple[str, ...], env: dict[str, str], cwd: str, words: str) -> None:
    problem = find_problem(LaunchSpec(argv=argv, env=env, cwd=Path(cwd), stream_output=False))
    assert problem is not None
    assert words in problem
    assert "hunter2" not in problem


def test_every_other_spec_is_possible() -> None:
    spec = LaunchSpec(argv=("true", ""), env={"A": "", "ö": "\udcff"}, cwd=Path("/"), stream_output=False)
    assert find_problem(spec) is None


def refusal(
    launches: Launches, *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> str:
    with pytest.raises(LaunchError) as caught:
        launches(*argv, env=env, cwd=cwd)
    assert launches.launcher.waited_for == frozenset()
    return str(caught.value)


def test_a_command_that_is_not_there(launches: Launches) -> None:
    assert "'no-such-command' is not in PATH (/nowhere)" in refusal(
        launches, "no-such-command", env={"PATH": "/nowhere"}
    )
    assert "'./none' does not exist" in refusal(launches, "./none")


def test_a_command_that_is_no_program(launches: Launches) -> None:
    script = launches.directory / "script"
    script.write_text("echo hello\n")
    assert "may not be executed" in refusal(launches, str(script))
    script.chmod(0o755)
    assert "begin a script with a #! line" in refusal(launches, str(script))
    script.write_text("#!/no/such/interpreter\n")
    assert "interpreter that its first line names" in refusal(launches, str(script))
    assert "is a directory" in refusal(launches, str(launches.directory))


def test_a_directory_that_is_none(launches: Launches) -> None:
    assert "does not exist: create it" in refusal(launches, "true", cwd=launches.directory / "none")
    file = launches.directory / "file"
    file.touch()
    assert f"{file} is not a directory" in refusal(launches, "true", cwd=file)


@contextmanager
def as_nobody() -> Generator[None]:
    """Without root's right to enter every directory; for a user who is not root nothing changes."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)


def test_a_directory_that_may_not_be_entered(launches: Launches) -> None:
    closed = launches.directory / "closed"
    closed.mkdir(mode=0)
    spec = LaunchSpec(argv=("/bin/true",), env={}, cwd=closed, stream_output=False)
    with as_nobody(), pytest.raises(LaunchError, match="may not be entered by user"):
        launches.launcher.launch(spec, output=Path(os.devnull))
    closed.chmod(0o700)


def test_one_variable_too_large(launches: Launches) -> None:
    message = refusal(launches, "true", env={"BIG": "x" * 200_000})
    assert "the environment variable BIG has 200004 bytes" in message
    assert "xxx" not in message


def test_an_environment_too_large(launches: Launches) -> None:
    message = refusal(launches, "true", env={f"V{n}": "x" * 100_000 for n in range(100)})
    assert "more than the system takes" in message
    assert "xxx" not in message


def test_an_output_file_that_cannot_be_opened(launches: Launches) -> None:
    launches.output = launches.directory / "none" / "output"
    assert f"cannot open the output file {launches.output}" in refusal(launches, "true")


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_no_descriptor_left(launches: Launches, spare: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
    try:
        message = refusal(launches, "true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit -n" in message


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "out of memory"), (errno.EMFILE, "ulimit -n")],
)
def test_a_machine_that_is_full(number: int, words: str) -> None:
    spec = LaunchSpec(argv=("true",), env={}, cwd=Path("/"), stream_output=False)
    assert words in explain_failure(spec, OSError(number, os.strerror(number), "true"))


def test_a_failed_launch_leaves_no_descriptor(launches: Launches) -> None:
    before = open_descriptors()
    refusal(launches, "no-such-command")
    refusal(launches, "true", cwd=launches.directory / "none")
    assert open_descriptors().keys() == before.keys()


# The daemon's death

DAEMON = """
import anyio, json, os, sys
from pathlib import Path
from worker.processes.launch_problems import LaunchSpec
from worker.processes.launcher import Launcher

async def main():
    directory, script = Path(sys.argv[1]), sys.argv[2]
    spec = LaunchSpec(argv=("bash", "-c", script), env=dict(os.environ), cwd=directory, stream_output=False)
    handle = Launcher().launch(spec, output=directory / "output")
    print(json.dumps([handle.pid, handle.start_time]), flush=True)
    await handle.wait()

anyio.run(main)
"""


@pytest.fixture
def orphan(launches: Launches, session_mark: str) -> Identity:
    """A run whose daemon was killed; it waits for a line in the file `gate`, then says hello."""
    gate = launches.directory / "gate"
    os.mkfifo(gate)
    script = "echo ready; read -r _ < gate; echo hello; echo error >&2; exit 5"
    environment = {**os.environ, services.MARK: session_mark, RUN_MARK: launches.mark}
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(launches.directory), script],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    with daemon:
        assert daemon.stdout is not None
        pid, start_time = json.loads(daemon.stdout.readline())
        wait_for(lambda: launches.lines() == ["ready"], description="the run's first line")
        daemon.kill()
    return Identity(pid, start_time)


def adopt(identity: Identity, launches: Launches) -> ProcessHandle | None:
    return ProcessHandle.adopt(
        identity=identity, marker=Marker(RUN_MARK, launches.mark), started=0.0, clock=lambda: 1.0
    )


async def test_a_run_whose_daemon_was_killed_writes_on(launches: Launches, orphan: Identity) -> None:
    (launches.directory / "gate").write_text("go\n")
    await wait_until(lambda: launches.left() == [], description="the run's end")
    assert launches.lines() == ["ready", "hello", "error"]


async def test_a_run_whose_daemon_was_killed_can_be_adopted(launches: Launches, orphan: Identity) -> None:
    handle = adopt(orphan, launches)
    assert handle is not None
    assert handle.alive()
    (launches.directory / "gate").write_text("go\n")
    exit_ = await handle.wait()
    assert (exit_.status_code, exit_.started, exit_.ended) == (None, 0.0, 1.0)
    assert not handle.alive()


async def test_an_adopted_run_can_be_stopped(launches: Launches, orphan: Identity) -> None:
    handle = adopt(orphan, launches)
    assert handle is not None
    await handle.stop(grace=60)
    assert launches.left() == []


async def test_what_has_the_pid_of_a_run_is_not_adopted_for_it(launches: Launches) -> None:
    handle = launches.shell("sleep 600")
    before = open_descriptors()
    assert adopt(Identity(handle.pid, handle.start_time - 1), launches) is None
    assert open_descriptors().keys() == before.keys()
    assert handle.alive()
    await handle.kill_tree()
    assert read_process(handle.pid) is None


# Output that is large


async def test_a_large_output_is_followed_in_little_memory(tmp_path: Path) -> None:
    # In a process of its own, whose memory is limited: 200 MB without a line end, and then 200 MB of lines.
    script = """
import anyio, resource, sys
from pathlib import Path
from worker.processes.output import follow

async def main():
    done = anyio.Event(); done.set()
    count = [0, 0]
    def sink(line):
        count[0] += 1
        count[1] = max(count[1], len(line))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await follow(Path(sys.argv[1]), sink=sink, done=done)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(count[0], count[1], grown)

anyio.run(main)
"""
    path = tmp_path / "output"
    lines = 200 * 1024 * 1024 // 16384
    with path.open("wb") as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
        for _ in range(200):
            file.write((b"y" * 4095 + b"\n") * 256)
    done = await anyio.run_process([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[2])
    count, longest, grown_kib = map(int, done.stdout.split())
    assert lines + 200 * 256 <= count <= lines + 200 * 256 + 1
    assert longest <= 16 * 1024
    assert grown_kib < 20 * 1024


async def test_the_output_of_a_living_process_is_followed_to_its_end(launches: Launches) -> None:
    lines: list[str] = []
    done = anyio.Event()
    handle = launches.shell(r"for n in 1 2 3; do echo $n; sleep 0.05; done; printf '\xff last'")
    async with anyio.create_task_group() as group:

        async def read() -> None:
            await follow(launches.output, sink=lines.append, done=done, poll_interval=0.01)

        group.start_soon(read)
        await handle.wait()
        done.set()
    assert lines == ["1", "2", "3", "\ufffd last"]
