"""Bytes to lines: following a run's output, dropping its oldest part, and the last lines of a file."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.leaks import open_descriptors
from tests.support.wait import wait_until
from worker.processes.output import LONGEST_LINE, LineSplitter, follow, tail
from worker.processes.output_limit import bound, next_interval, punch_hole

pytestmark = pytest.mark.anyio


def split(*chunks: bytes, limit: int = 10) -> list[str]:
    splitter = LineSplitter(limit=limit)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + list(splitter.feed(b"", final=True))


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        pytest.param((), [], id="nothing"),
        pytest.param((b"one\ntwo\n",), ["one", "two"], id="two lines"),
        pytest.param((b"one\n\ntwo",), ["one", "", "two"], id="empty line, last without end"),
        pytest.param((b"o", b"ne", b"\n"), ["one"], id="a line in three chunks"),
        pytest.param((b"one\r", b"\ntwo\r\n"), ["one", "two"], id="CR LF, cut in the middle"),
        pytest.param((b"10%\r20%\n",), ["10%\r20%"], id="a lone CR stays"),
        pytest.param((b"\xe2\x82", b"\xac\n"), ["€"], id="a character in two chunks"),
        pytest.param((b"a\xffb\n",), ["a\ufffdb"], id="invalid byte"),
        pytest.param((b"a\xe2\x82",), ["a\ufffd"], id="ends inside a character"),
        pytest.param((b"0123456789\n",), ["0123456789"], id="exactly the limit"),
        pytest.param((b"0123456789", b"\n"), ["0123456789"], id="exactly the limit, end apart"),
        pytest.param((b"0123456789ab\n",), ["0123456789", "ab"], id="longer than the limit"),
        pytest.param((b"0123456789" * 2 + b"ab",), ["0123456789", "0123456789", "ab"], id="long, no end"),
        pytest.param((b"a\0b\n",), ["a\0b"], id="NUL"),
    ],
)
def test_splits(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert split(*chunks) == lines


@given(st.lists(st.binary(max_size=40)), st.integers(min_value=1, max_value=8))
def test_however_the_bytes_arrive_nothing_is_lost_or_too_long(chunks: list[bytes], limit: int) -> None:
    whole = b"".join(chunks).decode(errors="replace")
    pieces = split(*chunks, limit=limit)
    assert "".join(pieces).replace("\r", "") == whole.replace("\n", "").replace("\r", "")
    assert all(len(piece) <= limit for piece in pieces)


@given(st.lists(st.binary(max_size=40)))
def test_the_cuts_between_chunks_do_not_show(chunks: list[bytes]) -> None:
    assert split(*chunks, limit=1000) == split(b"".join(chunks), limit=1000)


def test_nothing_long_is_held() -> None:
    splitter = LineSplitter(limit=100)
    given_out = 0
    for fed in range(1000, 100_000, 1000):
        given_out += sum(len(piece) for piece in splitter.feed(b"x" * 1000))
        assert fed - given_out <= 100


def test_tail_of_no_file(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("content", "max_bytes", "max_lines", "lines"),
    [
        pytest.param(b"", 100, 5, [], id="empty"),
        pytest.param(b"a\nb\nc\n", 100, 2, ["b", "c"], id="last lines"),
        pytest.param(b"a\nb\nc", 100, 2, ["b", "c"], id="no end"),
        pytest.param(b"aaaa\nbbbb\ncccc\n", 8, 5, ["cccc"], id="half a line is left out"),
        pytest.param(b"x" * 50, 8, 5, ["x" * 8], id="one line longer than we look"),
        pytest.param(b"a\n\xff\n", 100, 5, ["a", "\ufffd"], id="invalid byte"),
        pytest.param(b"a\n", 100, 0, [], id="none wanted"),
    ],
)
def test_tail(tmp_path: Path, content: bytes, max_bytes: int, max_lines: int, lines: list[str]) -> None:
    path = tmp_path / "output"
    path.write_bytes(content)
    assert tail(path, max_bytes=max_bytes, max_lines=max_lines) == lines


class Following:
    """A follower, its lines, and the file it follows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.done = anyio.Event()
        self.offset: int | None = None

    async def run(self) -> None:
        self.offset = await follow(self.path, sink=self.lines.append, done=self.done, poll_interval=0.001)

    def append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    async def sees(self, *lines: str) -> None:
        await wait_until(lambda: self.lines == list(lines), description=f"the lines {lines}")


async def test_follows_a_file_from_before_it_exists_to_its_last_byte(tmp_path: Path) -> None:
    following = Following(tmp_path / "output")
    async with anyio.create_task_group() as group:
        group.start_soon(following.run)
        following.append(b"one\ntw")
        await following.sees("one")
        following.append(b"o\nthree")
        await following.sees("one", "two")
        following.append(b" and a half")
        following.done.set()
    assert following.lines == ["one", "two", "three and a half"]
    assert following.offset == following.path.stat().st_size


async def test_what_was_written_just_before_the_end_is_delivered(tmp_path: Path) -> None:
    lines: list[str] = []
    done = anyio.Event()
    done.set()
    (tmp_path / "output").write_bytes(b"all of it\n")
    await follow(tmp_path / "output", sink=lines.append, done=done)
    assert lines == ["all of it"]


async def test_a_file_that_never_comes(tmp_path: Path) -> None:
    done = anyio.Event()
    done.set()
    assert await follow(tmp_path / "none", sink=lambda _: None, done=done) == 0


async def test_a_deleted_file_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("ab", buffering=0) as writer:
        async with anyio.create_task_group() as group:
            following = Following(path)
            group.start_soon(following.run)
            writer.write(b"before\n")
            await following.sees("before")
            path.unlink()
            writer.write(b"after\n")
            await following.sees("before", "after")
            following.done.set()


async def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "output"
    async with anyio.create_task_group() as group:
        following = Following(path)
        group.start_soon(following.run)
        following.append(b"a long first line\n")
        await following.sees("a long first line")
        path.write_bytes(b"new\n")
        await following.sees("a long first line", "new")
        following.done.set()


async def test_following_can_begin_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"seen\nunseen\n")
    lines: list[str] = []
    done = anyio.Event()
    done.set()
    assert await follow(path, sink=lines.append, done=done, offset=5) == 12
    assert lines == ["unseen"]


async def test_a_cancelled_follower_lets_go_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "output"
    before = open_descriptors()
    async with anyio.create_task_group() as group:
        following = Following(path)
        group.start_soon(following.run)
        following.append(b"one\n")
        await following.sees("one")
        group.cancel_scope.cancel()
    assert open_descriptors().keys() == before.keys()


async def test_other_tasks_run_while_short_lines_are_given_out(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"\n" * 60_000)  # one chunk
    done = anyio.Event()
    done.set()
    count = ticks = 0

    def sink(_: str) -> None:
        nonlocal count
        count += 1

    async def tick() -> None:
        nonlocal ticks
        while count < 60_000:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await follow(path, sink=sink, done=done)
    assert ticks > 200


# What was dropped

Punch = Callable[[int, int, int], None]
BLOCK = 4096
MEBI = 1 << 20


def occupied(path: Path) -> int:
    return path.stat().st_blocks * 512


def hole(path: Path, end: int) -> None:
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 0, end)


def cannot_punch(descriptor: int, offset: int, length: int) -> None:
    del descriptor, offset, length
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def pretends_to_punch(descriptor: int, offset: int, length: int) -> None:
    """As a file system that writes zeros and knows no holes."""
    os.pwrite(descriptor, bytes(length), offset)


def numbered(first: int, last: int) -> bytes:
    """Lines of 64 bytes."""
    return b"".join(b"%063d\n" % number for number in range(first, last))


async def everything(path: Path, *, offset: int = 0) -> list[str]:
    lines: list[str] = []
    done = anyio.Event()
    done.set()
    await follow(path, sink=lines.append, done=done, offset=offset)
    return lines


async def bound_once(path: Path, *, limit: int, keep: int = BLOCK) -> int:
    done = anyio.Event()
    done.set()
    return await bound(path, limit=limit, keep=keep, done=done)


async def test_a_reader_that_is_behind_is_told_how_much_it_missed(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(numbered(0, 1024))
    hole(path, 8 * BLOCK)
    lines = await everything(path)
    assert lines[0] == f"[... {8 * BLOCK} bytes of output dropped ...]"
    assert "\n".join([*lines[1:], ""]).encode() == numbered(8 * BLOCK // 64, 1024)


async def test_a_reader_in_the_middle_of_a_hole_misses_the_rest_of_it(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(numbered(0, 1024))
    hole(path, 8 * BLOCK)
    lines = await everything(path, offset=8 * BLOCK - 10)
    assert lines[:2] == ["[... 10 bytes of output dropped ...]", f"{8 * BLOCK // 64:063d}"]


async def test_a_reader_past_the_hole_notices_nothing(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(numbered(0, 1024))
    hole(path, 8 * BLOCK)
    lines = await everything(path, offset=8 * BLOCK)
    assert "\n".join([*lines, ""]).encode() == numbered(8 * BLOCK // 64, 1024)


async def test_a_line_whose_end_was_dropped_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "output"
    async with anyio.create_task_group() as group:
        following = Following(path)
        group.start_soon(following.run)
        following.append(b"whole\nbegun \xe2\x82")
        await following.sees("whole")
        missing = 4 * BLOCK - path.stat().st_size
        # In one step for the reader: nothing else runs in between.
        following.append(b"x" * missing + b"the end of it\nnext\n")
        hole(path, 4 * BLOCK)
        await following.sees(
            "whole", "begun \ufffd", f"[... {missing} bytes of output dropped ...]", "the end of it", "next"
        )
        following.done.set()


async def test_nul_bytes_that_were_written_are_output(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"\0" * (8 * BLOCK) + b"\nend\n")
    lines = await everything(path)
    assert "".join(lines[:-1]) == "\0" * (8 * BLOCK)
    assert lines[-1] == "end"
    assert tail(path, max_bytes=MEBI) == lines


async def test_a_file_that_only_pretends_to_be_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert await everything(path) == [f"[... {1 << 40} bytes of output dropped ...]"]
    assert tail(path) == []


async def test_below_the_limit_nothing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(numbered(0, 1024))
    assert await bound_once(path, limit=occupied(path)) == 0
    assert path.read_bytes() == numbered(0, 1024)


async def test_beyond_the_limit_the_latest_half_of_it_is_left(tmp_path: Path) -> None:
    path = tmp_path / "output"
    content = os.urandom(4 * MEBI)
    path.write_bytes(content)
    dropped = await bound_once(path, limit=MEBI)
    remaining = len(content) - dropped
    block = path.stat().st_blksize
    assert MEBI // 2 <= remaining < MEBI // 2 + block
    assert path.read_bytes() == bytes(dropped) + content[dropped:]
    assert occupied(path) < MEBI


async def test_a_reader_that_keeps_up_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "output"
    following = Following(path)
    dropped = 0

    async def keep_small() -> None:
        nonlocal dropped
        dropped = await bound(path, limit=MEBI, done=following.done, poll_interval=0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(following.run)
        group.start_soon(keep_small)
        for step in range(
            16
        ):  # a quarter of the limit each: what is not yet read is never among what is dropped
            following.append(numbered(4096 * step, 4096 * (step + 1)))
            await wait_until(
                lambda: following.lines[-1:] == [f"{4096 * (step + 1) - 1:063d}"],  # noqa: B023 - called at once
                description="the last line",
            )
        following.done.set()
    assert "\n".join([*following.lines, ""]).encode() == numbered(0, 16 * 4096)
    assert dropped >= 3 * MEBI


async def test_what_is_to_be_kept_is_kept_under_a_small_limit(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(numbered(0, 4096))
    await bound_once(path, limit=BLOCK, keep=64 * 1024)
    assert tail(path, max_lines=3) == [f"{number:063d}" for number in (4093, 4094, 4095)]
    assert path.read_bytes()[-64 * 1024 :] == numbered(4096 - 1024, 4096)
    assert occupied(path) <= 64 * 1024 + 2 * path.stat().st_blksize


async def test_a_second_daemon_counts_what_the_first_one_dropped(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"x" * (4 * MEBI))
    first = await bound_once(path, limit=MEBI)
    assert await bound_once(path, limit=MEBI) == first
    with path.open("ab") as file:
        file.write(b"x" * (4 * MEBI))
    both = await bound_once(path, limit=MEBI)
    assert both == first + 4 * MEBI


@pytest.mark.parametrize("punch", [cannot_punch, pretends_to_punch])
async def test_where_no_hole_can_be_made_the_file_begins_again(tmp_path: Path, punch: Punch) -> None:
    path = tmp_path / "output"
    done = anyio.Event()
    dropped = 0

    async def keep_small() -> None:
        nonlocal dropped
        dropped = await bound(path, limit=MEBI, done=done, poll_interval=0.001, punch=punch)

    following = Following(path)
    async with anyio.create_task_group() as group:
        group.start_soon(following.run)
        with path.open("ab", buffering=0) as writer:  # O_APPEND, as the launcher opens it
            writer.write(b"first\n")
            writer.write(b"x" * (2 * MEBI))
            # Not what is told of a reader that is behind; a piece of a line is held back until it is complete.
            await wait_until(
                lambda: sum(map(len, following.lines[1:])) >= 2 * MEBI - LONGEST_LINE, description="a reader"
            )
            group.start_soon(keep_small)
            await wait_until(lambda: path.stat().st_size == 0, description="a truncated file")
            writer.write(b"\nlast\n")
            await wait_until(lambda: following.lines[-1] == "last", description="the last line")
        done.set()
        following.done.set()
    assert path.read_bytes() == b"\nlast\n"
    assert dropped == len("first\n") + 2 * MEBI
    if punch is cannot_punch:
        assert "\0" not in "".join(following.lines)


async def test_a_reader_whose_file_is_truncated_while_it_reads_is_told_how_much_it_missed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "output"
    size = 3 * 64 * 1024  # chunks
    path.write_bytes(b"x" * (size - 1) + b"\n")
    lines: list[str] = []
    done = anyio.Event()

    def sink(line: str) -> None:
        if not lines:
            path.write_bytes(b"new\n")
            done.set()
        lines.append(line)

    await follow(path, sink=sink, done=done, poll_interval=0.001)
    assert f"[... {size - 64 * 1024} bytes of output dropped ...]" in lines
    assert lines[-1] == "new"


async def test_a_file_that_comes_late_or_never_or_goes(tmp_path: Path) -> None:
    path = tmp_path / "output"
    assert await bound_once(path, limit=MEBI) == 0
    before = open_descriptors()
    done = anyio.Event()
    results: list[int] = []

    async def keep_small() -> None:
        results.append(await bound(path, limit=MEBI, done=done, poll_interval=0.001))

    async with anyio.create_task_group() as group:
        group.start_soon(keep_small)
        with path.open("ab", buffering=0) as writer:
            writer.write(b"x" * (2 * MEBI))
            await wait_until(lambda: occupied(path) < MEBI, description="a bounded file")
            path.unlink()
            writer.write(b"x" * (2 * MEBI))
            await wait_until(
                lambda: os.fstat(writer.fileno()).st_blocks * 512 < MEBI, description="a bounded deleted file"
            )
            done.set()
    assert results[0] >= 3 * MEBI
    assert open_descriptors().keys() == before.keys()


async def test_nothing_else_in_the_place_of_the_file_is_shortened(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * (2 * MEBI))
    link = tmp_path / "output"
    link.symlink_to(precious)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        await bound_once(link, limit=MEBI)
    assert precious.read_bytes() == b"x" * (2 * MEBI)


async def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "output")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        await bound_once(tmp_path / "output", limit=MEBI)
    assert stat.S_ISFIFO((tmp_path / "output").stat().st_mode)


@pytest.mark.parametrize(
    ("interval", "grown", "elapsed", "expected"),
    [
        pytest.param(0.01, 0, 0.01, 0.02, id="quiet: twice as long"),
        pytest.param(0.15, 0, 0.15, 0.2, id="quiet: not longer than the longest"),
        pytest.param(0.2, -5000, 0.2, 0.2, id="has just been shortened"),
        pytest.param(0.2, 1000, 0.2, 0.05, id="a quarter of the limit"),
        pytest.param(0.2, 1_000_000, 0.2, 0.01, id="fast: not shorter than the shortest"),
        pytest.param(0.01, 10, 0.01, 0.02, id="slow: twice as long"),
        pytest.param(0.1, 10, 0.0, 0.01, id="no time has passed"),
    ],
)
def test_how_soon_to_look_again(interval: float, grown: int, elapsed: float, expected: float) -> None:
    following = next_interval(interval, grown=grown, elapsed=elapsed, limit=1000, longest=0.2)
    assert following == pytest.approx(expected)


def test_a_pipe_or_a_link_in_the_place_of_the_output_is_not_waited_for_or_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("of somebody else")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=r"."):
            tail(tmp_path / name)
