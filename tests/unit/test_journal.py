"""The journal on real files: phases kept, trouble with the disk told once and outlived, damage set aside."""

import os
import sqlite3
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from structlog.testing import capture_logs

from worker.processes.process import Exit
from worker.processes.process_table import Identity
from worker.runs.conclusion import Intent
from worker.runs.journal import Journal, JournalTooNewError
from worker.runs.journal_entry import FORMAT, Entry, Phase

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(**facts: Any) -> Entry:
    return Entry(attempt=uuid4(), flow_run_id=uuid4(), name="brave-newt", since=NOW, **facts)


@asynccontextmanager
async def journal(path: Path) -> AsyncGenerator[Journal]:
    opened = Journal(path, now=lambda: NOW)
    await opened.load()
    try:
        yield opened
    finally:
        await opened.close()


def rows(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT attempt, phase FROM attempts"))


def clear(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def aside(directory: Path) -> list[bytes]:
    return [file.read_bytes() for file in directory.glob("j.damaged-*")]


def names(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in logs]


FULL = entry(
    phase=Phase.EXITED,
    state_id=uuid4(),
    due=NOW,
    directory="/somewhere",
    stream_output=False,
    boot="boot",
    process=Identity(12, 34.56),
    started=1.5,
    infrastructure_pid="host:12",
    exit=Exit(code=None, signal=9, max_rss_bytes=1, started=1.5, ended=2.5),
    intent=Intent.CANCEL,
    concluded="Completed",
    evidence="none",
)


@pytest.mark.parametrize("one", [entry(), FULL], ids=["claiming", "exited"])
async def test_the_next_daemon_reads_what_was_written(tmp_path: Path, one: Entry) -> None:
    async with journal(tmp_path / "j") as first:
        assert await first.announce(one)
    async with journal(tmp_path / "j") as second:
        assert second.entries() == [one]


async def test_a_commit_needs_no_close(tmp_path: Path) -> None:
    one = entry()
    async with journal(tmp_path / "j") as first:
        await first.announce(one)
        await first.note(replace(one, phase=Phase.LAUNCHED))
        async with journal(tmp_path / "j") as reader:
            assert [found.phase for found in reader.entries()] == [Phase.LAUNCHED]


async def test_what_is_settled_is_gone(tmp_path: Path) -> None:
    one, other = entry(), entry()
    async with journal(tmp_path / "j") as first:
        for each in (one, other):
            await first.announce(each)
        await first.forget(one.attempt)
        await first.forget(one.attempt)
        assert first.entries() == [other]
    assert rows(tmp_path / "j").keys() == {str(other.attempt)}


async def test_full_sync_and_write_ahead(tmp_path: Path) -> None:
    async with journal(tmp_path / "j") as opened:
        connection = opened._connected()  # pyright: ignore[reportPrivateUsage]
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def fill(opened: Journal) -> sqlite3.Connection:
    """Let SQLite itself say that the disk is full: the file may not grow by a page."""
    connection = opened._connected()  # pyright: ignore[reportPrivateUsage]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    return connection


async def test_a_full_disk_is_told_once_and_outlived(tmp_path: Path) -> None:
    running = entry()
    async with journal(tmp_path / "j") as opened:
        await opened.announce(running)
        fill(opened)
        big = entry(directory="x" * 50_000)
        with capture_logs() as logs:
            assert not await opened.announce(big)
            assert big not in opened.entries(), "what was not written is not to be done"
            assert opened.trouble is not None
            assert "full" in opened.trouble
            # The file was opened anew, so the limit is gone: there is room again.
            await opened.check_once()
            assert opened.trouble is None
            assert await opened.announce(big)
        assert names(logs) == ["journal.unwritable", "journal.writable"]


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A journal whose directory is not there."""
    return tmp_path / "missing" / "j"


async def test_facts_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    kept, settled = entry(), entry()
    opened = Journal(place / "j", now=lambda: NOW)
    await opened.load()
    for one in (kept, settled):
        await opened.announce(one)
    place.rename(tmp_path / "elsewhere")
    with capture_logs() as logs:
        await opened.note(replace(kept, phase=Phase.LAUNCHED))
        await opened.forget(settled.attempt)
        assert not await opened.announce(entry())
        await opened.check_once()
        (tmp_path / "elsewhere").rename(place)
        await opened.check_once()
    assert rows(place / "j") == {str(kept.attempt): "launched"}
    assert names(logs) == ["journal.vanished", "journal.unwritable", "journal.writable"]
    await opened.close()


async def test_a_file_that_was_removed_is_written_anew(tmp_path: Path) -> None:
    one, other = entry(), entry()
    async with journal(tmp_path / "j") as opened:
        await opened.announce(one)
        clear(tmp_path)
        assert await opened.announce(other)
    assert rows(tmp_path / "j").keys() == {str(one.attempt), str(other.attempt)}


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 9000])
async def test_a_damaged_file_is_set_aside_at_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with capture_logs() as logs:
        async with journal(tmp_path / "j") as opened:
            assert opened.entries() == []
            assert await opened.announce(entry())
    assert names(logs) == ["journal.damaged"]
    assert aside(tmp_path) == [content]


async def test_damage_under_way_costs_no_entry(tmp_path: Path) -> None:
    one, other = entry(), entry()
    async with journal(tmp_path / "j") as opened:
        await opened.announce(one)
        # What another program writes into the file: SQLite sees it once it looks at the pages again.
        connection = opened._connected()  # pyright: ignore[reportPrivateUsage]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        opened._disconnect()  # pyright: ignore[reportPrivateUsage]
        size = (tmp_path / "j").stat().st_size
        (tmp_path / "j").write_bytes(os.urandom(size))
        with capture_logs() as logs:
            assert await opened.announce(other)
        assert names(logs) == ["journal.damaged"]
    assert rows(tmp_path / "j").keys() == {str(one.attempt), str(other.attempt)}


async def test_one_entry_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    one = entry()
    async with journal(tmp_path / "j") as first:
        await first.announce(one)
    with closing(sqlite3.connect(tmp_path / "j")) as connection, connection:
        connection.execute("INSERT INTO attempts VALUES ('odd', 'run', 'phase', '{}')")
    with capture_logs() as logs:
        async with journal(tmp_path / "j") as second:
            assert second.entries() == [one]
    assert names(logs) == ["journal.entry_unreadable"]


async def test_a_journal_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    async with journal(tmp_path / "j"):
        pass
    with closing(sqlite3.connect(tmp_path / "j")) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(JournalTooNewError, match="later version of headrace"):
        await Journal(tmp_path / "j", now=lambda: NOW).load()
    assert (tmp_path / "j").read_bytes() == before


async def test_trouble_at_the_first_look_is_raised_and_passes(unwritable: Path) -> None:
    opened = Journal(unwritable, now=lambda: NOW)
    with pytest.raises(sqlite3.OperationalError):
        await opened.load()
    unwritable.parent.mkdir()
    await opened.load()
    assert await opened.announce(entry())
    await opened.close()


async def test_many_write_at_once(tmp_path: Path) -> None:
    entries = [entry() for _ in range(20)]
    async with journal(tmp_path / "j") as opened:

        async def live(one: Entry) -> None:
            assert await opened.announce(one)
            for phase in (Phase.LAUNCHED, Phase.EXITED):
                await opened.note(replace(one, phase=phase))
            if one in entries[::2]:
                await opened.forget(one.attempt)

        async with anyio.create_task_group() as group:
            for one in entries:
                group.start_soon(live, one)
    assert rows(tmp_path / "j") == {str(one.attempt): "exited" for one in entries[1::2]}


async def test_a_cancelled_writer_has_written(tmp_path: Path) -> None:
    one = entry()
    async with journal(tmp_path / "j") as opened:
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert await opened.announce(one)
        assert opened.entries() == [one]
    assert rows(tmp_path / "j") == {str(one.attempt): "claiming"}


def test_an_entry_holds_no_environment() -> None:
    """Whatever is added to it has to be asked whether it may hold a secret."""
    assert set(Entry.__dataclass_fields__) == {
        *(
            "attempt",
            "flow_run_id",
            "name",
            "since",
            "phase",
            "state_id",
            "due",
            "directory",
            "stream_output",
        ),
        *("boot", "process", "started", "infrastructure_pid", "exit", "intent", "concluded", "evidence"),
        *("engine", "relinquished", "hooks_begun", "flow", "deployment"),
    }
    assert isinstance(FULL.attempt, UUID)
