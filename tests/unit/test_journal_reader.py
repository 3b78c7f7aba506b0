"""Reading the journal of a daemon that goes on writing, and of one that was killed."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from worker.runs.journal import Journal
from worker.runs.journal_entry import FORMAT, Entry, Phase
from worker.runs.journal_reader import Contents, JournalUnreadable, read_journal

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(name: str = "newt") -> Entry:
    return Entry(
        attempt=uuid4(),
        flow_run_id=uuid4(),
        name=name,
        since=NOW,
        flow="f",
        deployment="d",
        phase=Phase.LAUNCHED,
    )


def state_of(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Everything about the files that a writer, or a reader that takes part, would change."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.iterdir()
    }


async def test_what_an_open_journal_holds_is_read_and_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, now=lambda: NOW)
    await journal.load()
    try:
        first, second = entry("first"), entry("second")
        await journal.note(first)
        await journal.note(second)
        before = state_of(tmp_path)
        assert set(read_journal(path).entries) == {first, second}
        assert state_of(tmp_path) == before
        await journal.forget(first.attempt)
        assert read_journal(path).entries == (second,)
    finally:
        await journal.close()
    before = state_of(tmp_path)
    assert read_journal(path).entries == (second,)
    assert state_of(tmp_path) == before


async def test_no_journal_and_an_empty_one(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal.db") == Contents()
    sqlite3.connect(tmp_path / "journal.db").close()
    (tmp_path / "journal.db").touch()
    assert read_journal(tmp_path / "journal.db") == Contents()


async def test_an_entry_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path, now=lambda: NOW)
    await journal.load()
    whole = entry()
    await journal.note(whole)
    await journal.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO attempts VALUES ('x', 'y', 'launched', '{}')")
        connection.commit()
    assert read_journal(path) == Contents(entries=(whole,), unreadable=1)


async def test_damage_and_a_later_format_are_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(JournalUnreadable, match="cannot be read"):
        read_journal(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(JournalUnreadable, match="later version"):
        read_journal(path)
