"""Nothing is claimed that could not be kept: an unwritable journal, a full disk; each is told once."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from worker.runs.claim_gate import LEAST_FREE_BYTES, ClaimGate, free_bytes
from worker.runs.journal import Journal

pytestmark = pytest.mark.anyio


def gate(
    path: Path,
    free: Iterator[int] | None = None,
    *,
    memory: Iterator[int | None] | None = None,
    min_free_memory: int = 0,
) -> ClaimGate:
    return ClaimGate(
        journal=Journal(path, now=lambda: datetime.now(UTC)),
        free_bytes=lambda: LEAST_FREE_BYTES if free is None else next(free),
        free_memory=lambda: None if memory is None else next(memory),
        min_free_memory=min_free_memory,
        monotonic=lambda: 1.0,
    )


def test_a_full_disk_closes_it_until_there_is_room(tmp_path: Path) -> None:
    asked = gate(tmp_path / "j", iter([LEAST_FREE_BYTES, 0, 0, LEAST_FREE_BYTES]))
    with capture_logs() as logs:
        assert [asked.closed() is None for _ in range(4)] == [True, False, False, True]
    assert [entry["event"] for entry in logs] == ["disk.low", "disk.freed"]


async def test_an_unwritable_journal_closes_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "j", now=lambda: datetime.now(UTC))
    asked = ClaimGate(
        journal=journal,
        free_bytes=lambda: LEAST_FREE_BYTES,
        free_memory=lambda: None,
        min_free_memory=0,
        monotonic=lambda: 1.0,
    )
    assert asked.closed() is None
    await journal.forget(uuid4())
    assert "journal" in str(asked.closed())


def test_too_little_memory_closes_it_until_there_is_more(tmp_path: Path) -> None:
    asked = gate(tmp_path / "j", memory=iter([100, 99, 0, 100]), min_free_memory=100)
    with capture_logs() as logs:
        assert [asked.closed() for _ in range(4)] == [None, *["memory is nearly used up"] * 2, None]
    assert [(one["event"], one["log_level"]) for one in logs] == [
        ("memory.low", "warning"),
        ("memory.freed", "info"),
    ]


def test_memory_does_not_matter_without_a_bound_or_when_it_is_unknown(tmp_path: Path) -> None:
    assert gate(tmp_path / "j", memory=iter([])).closed() is None
    assert gate(tmp_path / "j", memory=iter([None]), min_free_memory=100).closed() is None


def test_free_space_is_looked_at(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "missing") == 0


def test_a_shortage_is_told_once_and_so_is_its_end(tmp_path: Path) -> None:
    asked = gate(tmp_path / "j")
    with capture_logs() as logs:
        asked.started()
        asked.shortage("is short of processes")
        assert asked.closed() == "is short of processes"
        asked.shortage("is short of memory")
        assert asked.closed() == "is short of memory"
        asked.started()
        assert asked.closed() is None
        asked.started()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("claims.paused", "warning"),
        ("claims.resumed", "info"),
    ]
