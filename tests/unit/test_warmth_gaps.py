"""After the gaps are filled a forked process puts what is new on new pages, and has few of the shared ones copied."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import scrubbed_environment

OWN = Path(__file__).parents[2] / "worker" / "processes" / "forkserver_main"

# So many blocks are freed that there is a gap on every page. A forked process allocates a part of that again.
HOST = """
import ctypes, json, os, resource, sys
sys.path.insert(0, sys.argv[1])
import warmth_gaps
sys.path.pop(0)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults(act):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = act()
        os.write(writer, str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode())
        os._exit(0)
    os.close(writer)
    told = int(os.read(reader, 100))
    os.close(reader)
    os.waitpid(pid, 0)
    return told
"""
PYTHONS = """
SIZE = 64  # with the 33 bytes of an empty one
made = [bytes(SIZE - 33) for _ in range(100_000)]
gaps = [made[at] for at in range(0, len(made), 64)]
del made[::64]
gaps = None
act = lambda: [bytes(SIZE - 33) for _ in range(1_000)]
"""
C_LIBRARYS = """
made = [libc.malloc(2_000) for _ in range(4_000)]
for at in range(0, len(made), 4):
    libc.free(made[at])
act = lambda: [ctypes.memset(libc.malloc(1_000), 1, 1_000) for _ in range(500)]
"""
COUNT = """
before = faults(act)
kept = warmth_gaps.fill_gaps()
print(json.dumps({"before": before, "after": faults(act)}))
"""


def run(code: str, directory: Path, **env: str) -> tuple[Any, str]:
    """What it prints, as JSON, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", HOST + code, OWN],
        cwd=directory,
        env=scrubbed_environment(home=directory, mark="gaps") | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    "gaps",
    [
        PYTHONS,
        pytest.param(
            C_LIBRARYS,
            marks=pytest.mark.skipif(
                not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not tell its gaps"
            ),
        ),
    ],
)
def test_what_is_allocated_after_a_fork_lies_together(gaps: str, tmp_path: Path) -> None:
    told, said = run(gaps + COUNT, tmp_path)
    assert said == "", "the table that Python prints is nobody's to read"
    assert told["after"] < told["before"] / 2


def test_gaps_of_every_size_are_filled(tmp_path: Path) -> None:
    code = """
made = [bytes(size) for size in range(480) for _ in range(500)]
del made[::3]
before = sum(size * count for size, count in warmth_gaps._available().items())
kept = warmth_gaps.fill_gaps()
after = sum(size * count for size, count in warmth_gaps._available().items())
print(json.dumps({"before": before, "after": after}))
"""
    told, _ = run(code, tmp_path)
    assert told["after"] < told["before"] / 5


@pytest.mark.parametrize("allocator", ["malloc", "malloc_debug", "pymalloc_debug"])
def test_an_allocator_without_such_pools_is_left_as_it_is(allocator: str, tmp_path: Path) -> None:
    code = """
print(json.dumps(warmth_gaps.fill_gaps()))
"""
    assert run(code, tmp_path, PYTHONMALLOC=allocator) == ([], "")


def test_what_keeps_gaps_from_being_filled_is_said_and_no_more(tmp_path: Path) -> None:
    code = """
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
kept = warmth_gaps.fill_gaps()
print(json.dumps(kept))
"""
    told, said = run(code, tmp_path)
    assert told == []
    assert said.startswith("gaps in memory are not filled: OSError")
