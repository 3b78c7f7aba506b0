"""Reading the journal of a daemon from outside, whether it runs or not, without its noticing.

Owns a consistent look at a file that another process writes. A reader that opened it in place would take part in SQLite's
locking, and make files beside it that the daemon's user might not be allowed to open. So the file and its log are copied and
the copy is read. Writing is `journal`'s alone.
"""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.runs.journal_entry import FORMAT, Entry

_TRIES = 20
# The header of the log changes whenever it is begun anew (sqlite.org/fileformat2.html#walformat).
_LOG_HEADER = 32

_Print = tuple[int, int, int, bytes]


@dataclass(frozen=True, slots=True)
class Contents:
    """The open entries, and how many there are that cannot be read."""

    entries: tuple[Entry, ...] = ()
    unreadable: int = 0


class JournalUnreadable(Exception):
    """The journal cannot be read; the message says why, and what to do."""


def read_journal(path: Path) -> Contents:
    """What is open; nothing if there is no journal. Raises JournalUnreadable."""
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
            copy = Path(directory, "journal.db")
            return _contents(copy, path) if _copied(path, copy) else Contents()
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise JournalUnreadable(f"the journal {path} cannot be read: {reason}") from error


def _copied(path: Path, copy: Path) -> bool:
    """Copy the file and its log as of one moment; False if there is no file.

    What is appended to the log meanwhile does no harm: a transaction that is not whole is not there. But the log must
    not have been carried over to the file, which the file's time and the log's header tell.
    """
    for _ in range(_TRIES):
        before = _fingerprint(path)
        if before is None:
            return False
        shutil.copyfile(path, copy)
        _copy_log(path, copy)
        if _fingerprint(path) == before:
            return True
    return True  # the daemon is very busy; SQLite says whether the copy is sound


def _copy_log(path: Path, copy: Path) -> None:
    target = _log_of(copy)
    try:
        shutil.copyfile(_log_of(path), target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)


def _fingerprint(path: Path) -> _Print | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, _head(_log_of(path))


def _head(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, _LOG_HEADER)
    finally:
        os.close(descriptor)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _contents(copy: Path, path: Path) -> Contents:
    with closing(sqlite3.connect(copy)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > FORMAT:
            raise JournalUnreadable(
                f"the journal {path} was written by a later version of headrace: use that version's commands"
            )
        if version == 0:
            return Contents()  # a daemon that has not made its tables yet
        rows = connection.execute("SELECT entry FROM attempts").fetchall()
    adapter = TypeAdapter(Entry)
    entries: list[Entry] = []
    for (text,) in rows:
        with suppress(ValidationError):
            entries.append(adapter.validate_json(text))
    return Contents(entries=tuple(entries), unreadable=len(rows) - len(entries))
