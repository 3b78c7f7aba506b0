"""Why a process died, from its real death to the one line that the server is told.

What the kernel's counters mean when they move is shown on a tree of files in tests/unit/test_evidence.py: to have the
out-of-memory killer strike takes a memory cgroup of the test's own, which a test may not have.
"""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Launches
from tests.support.wait import wait_until
from worker.processes.evidence import explain_memory_death, read_memory_evidence
from worker.processes.process import Exit, ProcessHandle
from worker.processes.process_table import Identity
from worker.runs.conclusion import Intent, crash_message

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Peak memory is told only where it is above our own, and these programs are small.
USAGE = r"(Peak memory [\d.]+ (MiB|GiB), r|R)an for [\d.]+ s\."


@pytest.fixture
def launches(tmp_path: Path, session_mark: str) -> Iterator[Launches]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    yield launches
    launches.end()


def message(ended: Exit, *, evidence: str | None = None) -> str:
    return crash_message(ended, intent=Intent.NONE, state_name="Running", evidence=evidence)


@pytest.mark.parametrize(
    ("script", "status", "why"),
    [
        ("exit 7", "7", "It ended without reporting a final state."),
        (
            "exit 1",
            "1",
            "It failed before the flow could report a state; the last lines of its output say why.",
        ),
        (
            "exec no-such-command",
            "127",
            "The command was not found; check it and the PATH of the run's environment.",
        ),
        ("kill -ABRT $$", "-6", "It aborted (SIGABRT): native code gave up."),
        ("kill -SEGV $$", "-11", "It crashed (SIGSEGV): a fault in native code."),
        (
            "bash -c 'kill -KILL $$'; exit $?",
            "137",
            "It was killed (SIGKILL): as the operating system does when memory runs out.",
        ),
    ],
)
async def test_ends_in_one_line(launches: Launches, script: str, status: str, why: str) -> None:
    ended = await launches.shell(f"ulimit -c 0; {script}").wait()
    expected = re.escape(f"Process exited with status code: {status}. {why} ") + USAGE
    assert re.fullmatch(expected, message(ended)), message(ended)


async def test_a_process_that_took_much_memory_and_was_killed(launches: Launches) -> None:
    before = read_memory_evidence()
    # A child begins with its parent's peak: it has to take more than that.
    size = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) + 200
    script = f"import signal; b = b'x' * ({size} << 20); print('eaten', flush=True); signal.pause()"
    handle = launches.python(script)
    await wait_until(lambda: "eaten" in launches.lines(), description="its memory in use")
    os.kill(handle.pid, 9)
    ended = await handle.wait()
    evidence = explain_memory_death(before, read_memory_evidence())
    text = message(ended, evidence=evidence)
    assert text.startswith("Process exited with status code: -9. It was killed (SIGKILL): ")
    peak = re.search(r"Peak memory ([\d.]+) (MiB|GiB), ran for [\d.]+ s\.$", text)
    assert peak, text
    assert size - 1 <= float(peak[1]) * (1024 if peak[2] == "GiB" else 1) < size + 200
    # Somebody sent the signal, not the kernel; elsewhere on the machine it may have been at work meanwhile.
    assert evidence is None or "on this machine" in evidence


async def test_an_adopted_process_of_which_nothing_is_known(launches: Launches) -> None:
    first = launches.shell("while [ ! -e go ]; do sleep 0.05; done; exit 7")
    adopted = ProcessHandle.adopt(
        identity=Identity(first.pid, first.start_time),
        marker=first.marker,
        started=first.started,
        clock=lambda: first.started + 250,
    )
    assert adopted is not None
    (launches.directory / "go").touch()
    await first.wait()
    ended = await adopted.wait()
    assert message(ended) == (
        "Process ended, and its exit status could not be read, as happens when the worker that started it is gone. "
        "Ran for 4 min 10 s."
    )


def test_the_counters_of_this_machine() -> None:
    seen = read_memory_evidence()
    if sys.platform == "linux":
        counted = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        assert counted, "a kernel before 4.13?"
        assert seen.oom_kills is not None
        assert seen.oom_kills >= 0
        assert explain_memory_death(seen, seen) is None
        assert len({cgroup.path for cgroup in seen.cgroups}) == len(seen.cgroups)
    else:
        assert seen.oom_kills is None
