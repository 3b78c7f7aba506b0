"""Pages that a run writes to are copied while its process waits: those, no others, and with nothing changed in them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import scrubbed_environment

OWN = Path(__file__).parents[2] / "worker" / "processes" / "forkserver_main"

# 64 pages of memory; a forked process is asked which of them it writes to, and another one has those copied ahead.
HOST = """
import json, mmap, os, resource, signal, sys
sys.path.insert(0, sys.argv[1])
import warmth_pages
sys.path.pop(0)
size = mmap.PAGESIZE
memory = mmap.mmap(-1, 64 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"before" * (64 * size // 6))
import ctypes
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
WRITTEN = [3, 4, 5, 20]

def write():
    for page in WRITTEN:
        memory[page * size] = 7

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def in_a_fork(act):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writer, json.dumps(act()).encode())
        os._exit(0)
    os.close(writer)
    told = os.read(reader, 1 << 16)
    os.waitpid(pid, 0)
    return json.loads(told)

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as list_of_them:
        return list_of_them.read()
"""


def run(code: str, directory: Path) -> tuple[Any, str]:
    """What it prints, as JSON, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", HOST + code, OWN],
        cwd=directory,
        env=scrubbed_environment(home=directory, mark="pages"),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def test_the_pages_that_are_written_to_are_found_and_no_others(tmp_path: Path) -> None:
    code = """
content = memory[:]
pages = warmth_pages.written_by(write)
inside = [
    ((address - start) // size, length // size)
    for address, length in pages
    if start <= address < start + 64 * size
]
print(json.dumps({"inside": inside, "unchanged": memory[:] == content, "children": children()}))
"""
    told, said = run(code, tmp_path)
    assert told == {"inside": [[3, 3], [20, 1]], "unchanged": True, "children": ""}
    assert said == ""


def test_what_has_been_copied_ahead_is_written_to_without_a_fault_and_is_what_it_was(tmp_path: Path) -> None:
    code = """
pages = warmth_pages.written_by(write)
content = memory[:]

def counted(ahead):
    if ahead:
        pages.copy(until=lambda: False)
    same = memory[:] == content
    before = faults()
    write()
    return same, faults() - before

print(json.dumps([in_a_fork(lambda: counted(False)), in_a_fork(lambda: counted(True))]))
"""
    ((_, without), (same, ahead)), said = run(code, tmp_path)
    assert same
    assert ahead <= without - 4, "each of the four is copied when it is written to, or before"
    assert said == ""


@pytest.mark.parametrize(
    ("death", "sentence"),
    [
        ("raise RuntimeError('of this version')", "RuntimeError: of this version"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended with wait status 9"),
        ("os._exit(0)", "JSONDecodeError"),
        ("warmth_pages._own = lambda _: [(1, object())]", "not JSON serializable"),
    ],
)
def test_what_keeps_pages_from_being_told_is_said_and_means_none(
    tmp_path: Path, death: str, sentence: str
) -> None:
    code = f"""
def fails():
    {death}

opened = len(os.listdir("/proc/self/fd"))
pages = warmth_pages.written_by(fails)
print(json.dumps([list(pages), children(), len(os.listdir("/proc/self/fd")) - opened]))
"""
    told, said = run(code, tmp_path)
    assert told == [[], "", 0]
    assert sentence in said
    assert "no pages are copied ahead" in said


def test_a_scout_that_does_not_come_back_is_not_waited_for(tmp_path: Path) -> None:
    code = """
warmth_pages._LONGEST_SCOUT = 0.05
pages = warmth_pages.written_by(signal.pause)
print(json.dumps([list(pages), children()]))
"""
    told, said = run(code, tmp_path)
    assert told == [[], ""]
    assert "no pages are copied ahead" in said


def test_an_older_kernel_is_asked_once_and_no_scout_is_sent(tmp_path: Path) -> None:
    code = """
warmth_pages.MADV_POPULATE_WRITE = 9999  # no advice of any kernel's
print(json.dumps([warmth_pages.is_possible(), list(warmth_pages.written_by(signal.pause))]))
"""
    told, said = run(code, tmp_path)
    assert told == [False, []]
    assert said == ""


def test_who_has_something_else_to_do_copies_no_more(tmp_path: Path) -> None:
    code = """
memory = mmap.mmap(-1, 1024 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"x" * (1024 * size))
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
pages = warmth_pages.Pages([(start + page * size, size) for page in range(1024)])

def quiet(answers):
    answers = iter(answers)
    pages.copy(until=lambda: next(answers))
    before = faults()
    for page in range(1024):
        memory[page * size] = 7
    return faults() - before

print(json.dumps([in_a_fork(lambda: quiet(told)) for told in ([True], [False, True], [False] * 8)]))
"""
    (at_once, soon, never), _ = run(code, tmp_path)
    assert at_once >= 1000
    assert 800 <= soon < 1000
    assert never < 20


def test_what_is_not_there_any_more_is_left_out(tmp_path: Path) -> None:
    code = """
gone = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
view = ctypes.c_char.from_buffer(gone)
address = ctypes.addressof(view)
del view
gone.close()
pages = warmth_pages.Pages([(address, 4 * size), (start, 64 * size)])

def copied():
    pages.copy(until=lambda: False)
    before = faults()
    for page in range(64):
        memory[page * size] = 7
    return faults() - before, any(first <= address // size < last for first, last in warmth_pages._writable())

print(json.dumps(in_a_fork(copied)))
"""
    (told, there), _ = run(code, tmp_path)
    assert not there
    assert told <= 32, "of 64"
