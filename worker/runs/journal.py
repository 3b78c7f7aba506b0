"""The journal: what this daemon has begun and not yet settled, on disk, so that the next one can settle it.

Owns the file, its format, and what happens when it cannot be written or read. What an open entry means is
`recovery`'s decision; who writes which phase when is told by `record`.

SQLite in WAL mode with full sync (sqlite.org/pragma.html#pragma_synchronous): a committed entry survives a
crash of the machine. The entries of this process are held in memory and mirrored to the file, so that a file
that was lost or damaged under a running daemon is written anew.
"""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.to_thread
import structlog
from pydantic import TypeAdapter, ValidationError

from worker.runs.journal_entry import FORMAT, Entry

CHECK_INTERVAL = 5.0
T = TypeVar("T")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TABLES = """
CREATE TABLE IF NOT EXISTS attempts (attempt TEXT PRIMARY KEY, flow_run TEXT, phase TEXT, entry TEXT);
CREATE TABLE IF NOT EXISTS checked (at TEXT);
"""


class JournalTooNewError(Exception):
    """The journal was written by a later version; the message says what to do."""


_ENTRY = TypeAdapter(Entry)


class Journal:
    """The open entries of one daemon; one for its life, closed last.

    `now` dates a damaged file that is set aside. All methods may be called by several tasks; none is disturbed by
    cancellation, as half a step is worse than a step too many.
    """

    def __init__(self, path: Path, *, now: Callable[[], datetime]) -> None:
        self._path = path
        self._now = now
        self._log = structlog.get_logger()
        self._connection: sqlite3.Connection | None = None
        self._entries: dict[UUID, Entry] = {}
        self._unwritten: set[UUID] = set()
        self._writing = anyio.Lock()
        self._thread = anyio.CapacityLimiter(1)
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written at present; None when all is well."""
        return self._trouble

    def entries(self) -> list[Entry]:
        """The open entries."""
        return list(self._entries.values())

    async def load(self) -> None:
        """Read what an earlier daemon has left open. A damaged file is set aside.

        Raises OSError or sqlite3.Error when the file cannot be read now, JournalTooNewError when not by this version.
        """
        for entry in await self._in_thread(self._read):
            self._entries.setdefault(entry.attempt, entry)

    async def announce(self, entry: Entry) -> bool:
        """Write what is about to be done; if it cannot be written, False: then it must not be done."""
        return await self._write({entry.attempt: entry})

    async def note(self, entry: Entry) -> None:
        """Write what has happened; what cannot be written now is written as soon as something can."""
        self._entries[entry.attempt] = entry
        await self._mirror(entry.attempt)

    async def forget(self, attempt: UUID) -> None:
        """The attempt is settled."""
        self._entries.pop(attempt, None)
        await self._mirror(attempt)

    async def check_once(self) -> float:
        """Catch up on what could not be written; returns the seconds until the next look."""
        if self._trouble is not None or self._unwritten:
            await self._write({})
        return CHECK_INTERVAL

    async def close(self) -> None:
        """Write what is left and let go of the file."""
        with anyio.CancelScope(shield=True):
            await self.check_once()
            await self._in_thread(self._disconnect)

    async def _mirror(self, attempt: UUID) -> None:
        self._unwritten.add(attempt)
        await self._write({})

    async def _write(self, announced: Mapping[UUID, Entry]) -> bool:
        written = False
        with anyio.CancelScope(shield=True):
            async with self._writing:
                # Taken over before writing: what changes meanwhile is written by the next call.
                late, self._unwritten = self._unwritten, set()
                changes = {attempt: self._entries.get(attempt) for attempt in late} | dict(announced)
                try:
                    await self._in_thread(partial(self._store, changes))
                except (OSError, sqlite3.Error, RuntimeError) as error:  # RuntimeError: no thread to be had
                    self._unwritten |= late
                    self._failed(error)
                else:
                    self._entries |= announced
                    self._succeeded()
                    written = True
        return written

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            self._log.warning(
                "journal.unwritable",
                path=str(self._path),
                reason=str(error),
                hint="no run is claimed until it can be written: free some space, or restore write access",
            )
        self._trouble = str(error)

    def _succeeded(self) -> None:
        if self._trouble is not None:
            self._log.info("journal.writable", path=str(self._path))
        self._trouble = None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """One at a time, off the event loop: a sync to a slow disk must not hold up the others."""
        return await anyio.to_thread.run_sync(call, limiter=self._thread)

    # In the thread

    def _read(self) -> list[Entry]:
        try:
            rows = self._select()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            rows = self._select()
        return [entry for row in rows if (entry := self._parse(row)) is not None]

    def _select(self) -> list[tuple[str, str]]:
        connection = self._connected()
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            damage = sqlite3.DatabaseError(str(verdict))
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        return connection.execute("SELECT attempt, entry FROM attempts").fetchall()

    def _parse(self, row: tuple[str, str]) -> Entry | None:
        try:
            return _ENTRY.validate_json(row[1])
        except ValidationError as error:
            self._log.error("journal.entry_unreadable", attempt=row[0], errors=error.error_count())
            return None

    def _store(self, changes: Mapping[UUID, Entry | None]) -> None:
        if self._connection is not None and not self._path.exists():
            self._log.error("journal.vanished", path=str(self._path))
            self._disconnect()
            changes = {**self._entries, **changes}
        try:
            self._commit(changes)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            self._commit({**self._entries, **changes})

    def _commit(self, changes: Mapping[UUID, Entry | None]) -> None:
        connection = self._connected()
        try:
            connection.execute("BEGIN IMMEDIATE")
            if not changes:  # only to see whether anything can be written
                connection.execute("DELETE FROM checked")
                connection.execute("INSERT INTO checked VALUES (?)", (self._now().isoformat(),))
            for attempt, entry in changes.items():
                if entry is None:
                    connection.execute("DELETE FROM attempts WHERE attempt = ?", (str(attempt),))
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?)",
                        (
                            str(attempt),
                            str(entry.flow_run_id),
                            entry.phase.value,
                            _ENTRY.dump_json(entry).decode(),
                        ),
                    )
            connection.execute("COMMIT")
        except BaseException:
            self._disconnect()  # rolls back, and the next try opens the file anew
            raise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5, check_same_thread=False)
            try:
                _prepare(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):  # the file may be what is broken; it is let go of in any case
                self._connection.close()
            self._connection = None

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        self._disconnect()
        stamp = self._now().strftime("%Y%m%dT%H%M%S%f")
        aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(aside.with_name(aside.name + suffix))
        self._log.error("journal.damaged", path=str(self._path), set_aside=str(aside), reason=str(error))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        msg = (
            f"the journal {path} was written by a later version of headrace (format {version}, this one knows {FORMAT}):"
            " use that version, or choose another --state-dir"
        )
        raise JournalTooNewError(msg)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if version < FORMAT:
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code: Any = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED
