"""Bytes to lines: the pure part of following a run's output, and the last lines of a file."""

from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.leaks import open_descriptors
from tests.support.wait import wait_until
from worker.processes.output import LineSplitter, follow, tail

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
