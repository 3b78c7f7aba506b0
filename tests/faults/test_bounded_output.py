"""Output without measure, from real processes: what is read of it, the memory and the disk it takes.

The reading side runs in a process of its own (`MEASURED`), so that its memory can be told from the tests'.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from tests.support.processes import Launches
from tests.support.wait import wait_until
from worker.processes.output import follow, tail
from worker.processes.output_limit import bound

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

MEBI = 1 << 20
TOTAL = 300 * MEBI
LIMIT = 16 * MEBI

# Launches the command in its arguments, follows and bounds its output as the daemon does, and says what that took.
MEASURED = """
import json, os, sys
from pathlib import Path
import anyio
from worker.processes.launch_problems import LaunchSpec
from worker.processes.launcher import Launcher
from worker.processes.output import follow, tail
from worker.processes.output_limit import bound, punch_hole

output, limit, *argv = sys.argv[1:]
output, limit = Path(output), int(limit)
seen = dict(lines=0, characters=0, longest=0, told=[], nuls=0, invalid=0, ticks=0, worst_excess=0, last="")

def sink(line):
    seen["last"] = line
    if line.startswith("[... ") and line.endswith(" dropped ...]"):
        seen["told"].append(int(line.split()[1]))
        return
    seen["lines"] += 1
    seen["characters"] += len(line)
    seen["longest"] = max(seen["longest"], len(line))
    seen["nuls"] += line.count(chr(0))
    seen["invalid"] += line.count(chr(0xfffd))

def punch(descriptor, offset, length):
    punch_hole(descriptor, offset, length)
    after = os.fstat(descriptor)
    # What is left on disk, beyond the bytes behind the hole; the writer goes on meanwhile, so look at one moment.
    seen["worst_excess"] = max(seen["worst_excess"], after.st_blocks * 512 - (after.st_size - offset - length))

def peak():
    # In KiB. Not ru_maxrss, which a process inherits from the one that started it (getrusage(2)).
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))

async def main():
    done = anyio.Event()
    async def following():
        seen["offset"] = await follow(output, sink=sink, done=done)
    async def bounding():
        seen["dropped"] = await bound(output, limit=limit, done=done, punch=punch)
    async def ticking():
        while not done.is_set():
            seen["ticks"] += 1
            await anyio.sleep(0.001)
    # Not counted: what the first use of threads, of a process and of the codec takes.
    await anyio.to_thread.run_sync(lambda: None)
    before = peak()
    spec = LaunchSpec(argv=tuple(argv), env=dict(os.environ), cwd=output.parent, stream_output=True)
    handle = Launcher().launch(spec, output=output)
    async with anyio.create_task_group() as group:
        for task in (following, bounding, ticking):
            group.start_soon(task)
        exit_ = await handle.wait()
        await handle.sweep()
        done.set()
    seen["grown"] = peak() - before
    status = output.stat()
    seen.update(code=exit_.status_code, size=status.st_size, occupied=status.st_blocks * 512, tail=tail(output))
    print(json.dumps(seen))

anyio.run(main)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of one process. `grown` is in KiB; `told` are the gaps that the reader was told of, in bytes."""

    code: int
    size: int
    occupied: int
    offset: int
    dropped: int
    told: list[int]
    lines: int
    characters: int
    longest: int
    nuls: int
    invalid: int
    ticks: int
    worst_excess: int
    grown: int
    last: str
    tail: list[str]


@pytest.fixture
def launches(tmp_path: Path, session_mark: str) -> Iterator[Launches]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    yield launches
    launches.end()


async def measure(launches: Launches, script: str) -> Seen:
    spec = launches.spec(
        sys.executable, "-c", MEASURED, str(launches.output), str(LIMIT), "bash", "-c", script
    )
    done = await anyio.run_process(spec.argv, env=dict(spec.env), cwd=Path(__file__).parents[2], stderr=None)
    return Seen(**json.loads(done.stdout))


def check(seen: Seen, total: int) -> None:
    """What holds for any output of so many bytes."""
    assert seen.code == 0
    assert (seen.size, seen.offset) == (total, total)
    # disk: after every drop hardly more than what was written last, in the end no more than the limit
    assert seen.dropped > total - LIMIT - MEBI
    assert seen.worst_excess < MEBI
    assert seen.occupied <= LIMIT
    # memory, lines and other tasks
    assert seen.grown < 8 * 1024
    assert seen.longest <= 16 * 1024
    assert seen.ticks > 10
    # what was not read was told, and no more than what was dropped
    assert sum(seen.told) <= seen.dropped


async def test_300_mb_of_lines(launches: Launches) -> None:
    # 64 bytes a line
    seen = await measure(launches, f"yes {'y' * 63} | head -c {TOTAL}")
    check(seen, TOTAL)
    # Every gap may split two lines, whose beginning and end then stand alone.
    read = seen.characters + seen.lines
    assert read - len(seen.told) <= TOTAL - sum(seen.told) <= read
    assert (seen.nuls, seen.invalid) == (0, 0)
    assert seen.last == "y" * 63
    assert seen.tail == ["y" * 63] * 20


async def test_300_mb_without_a_line_end(launches: Launches) -> None:
    seen = await measure(launches, f"head -c {TOTAL} /dev/zero | tr '\\0' x")
    check(seen, TOTAL)
    assert seen.characters == TOTAL - sum(seen.told)
    assert (seen.nuls, seen.invalid) == (0, 0)
    assert seen.tail == ["x" * 16 * 1024]


async def test_100_mb_of_invalid_utf_8(launches: Launches) -> None:
    seen = await measure(launches, f"head -c {TOTAL // 3} /dev/zero | tr '\\0' '\\377'")
    check(seen, TOTAL // 3)
    assert seen.invalid == seen.characters == TOTAL // 3 - sum(seen.told)


async def test_100_mb_of_nul_bytes_are_neither_lost_nor_made(launches: Launches) -> None:
    seen = await measure(launches, f"head -c {TOTAL // 3} /dev/zero")
    check(seen, TOTAL // 3)
    assert seen.nuls == seen.characters == TOTAL // 3 - sum(seen.told)


# Smaller ones, as the daemon attends them


class Attended:
    """A process's lines, and how many bytes of them were dropped."""

    def __init__(self, launches: Launches) -> None:
        self.lines: list[str] = []
        self.dropped = -1
        self._output = launches.output
        self._done = anyio.Event()

    async def until_the_end_of(self, launches: Launches, script: str) -> int | None:
        """Run the script with follower and bound; returns its status code."""
        handle = launches.shell(script)
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow)
            group.start_soon(self._bound)
            await handle.wait()
            await handle.sweep()
            self._done.set()
        return (await handle.wait()).status_code

    async def _follow(self) -> None:
        await follow(self._output, sink=self.lines.append, done=self._done, poll_interval=0.01)

    async def _bound(self) -> None:
        self.dropped = await bound(self._output, limit=MEBI, done=self._done, poll_interval=0.01)


async def test_a_flow_that_closes_its_output(launches: Launches) -> None:
    attended = Attended(launches)
    assert await attended.until_the_end_of(launches, "echo before; exec >&- 2>&-; echo after; exit 3") == 3
    assert attended.lines == ["before"]
    assert attended.dropped == 0


async def test_a_flow_that_closes_its_output_and_lives_on(launches: Launches) -> None:
    attended = Attended(launches)
    script = "echo before; exec >&- 2>&-; while [ ! -e go ]; do sleep 0.05; done; exit 4"

    async def let_go() -> None:
        await wait_until(lambda: attended.lines == ["before"], description="the line before it closed")
        (launches.directory / "go").touch()

    async with anyio.create_task_group() as group:
        group.start_soon(let_go)
        assert await attended.until_the_end_of(launches, script) == 4


async def test_a_grandchild_that_holds_the_output_open(launches: Launches) -> None:
    attended = Attended(launches)
    script = "(trap '' TERM HUP; echo grandchild; touch up; while :; do sleep 60; done) & "
    script += "while [ ! -e up ]; do sleep 0.05; done; echo leader; exit 5"
    assert await attended.until_the_end_of(launches, script) == 5
    assert attended.lines == ["grandchild", "leader"]
    assert launches.left() == []


async def test_a_daemonised_grandchild_that_writes_on_and_on(launches: Launches) -> None:
    attended = Attended(launches)
    script = "setsid yes from afar & while [ ! -s output ]; do sleep 0.05; done; exit 6"
    assert await attended.until_the_end_of(launches, script) == 6
    assert launches.left() == []
    assert launches.output.stat().st_blocks * 512 <= MEBI
    *lines, last = tail(launches.output)
    assert set(lines) == {"from afar"}
    assert "from afar".startswith(last)  # it was killed while it wrote


async def test_a_flow_that_writes_by_several_hands(launches: Launches) -> None:
    # stdout and stderr, and three processes, append to one file while its beginning goes.
    attended = Attended(launches)
    script = "for n in 1 2 3; do (yes $n | head -c 8000000; echo end $n >&2) & done; wait"
    assert await attended.until_the_end_of(launches, script) == 0
    assert attended.dropped >= 24_000_000 - MEBI
    assert launches.output.stat().st_size == 24_000_000 + 3 * len("end 1\n")
    assert not any("\0" in line for line in attended.lines)


async def test_a_file_that_the_flow_removes(launches: Launches) -> None:
    attended = Attended(launches)
    script = "echo begun; while [ ! -e go ]; do sleep 0.05; done; rm output; yes | head -c 8000000; echo end"

    async def let_go() -> None:
        await wait_until(lambda: attended.lines == ["begun"], description="the first line")
        (launches.directory / "go").touch()

    async with anyio.create_task_group() as group:
        group.start_soon(let_go)
        assert await attended.until_the_end_of(launches, script) == 0
    assert attended.lines[-1] == "end"
    assert attended.dropped >= 8_000_000 - MEBI
    assert not launches.output.exists()
