"""Health is a function of time."""

from datetime import UTC, datetime, timedelta

import pytest

from worker.health import Snapshot, is_healthy

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("age", "healthy"), [(0, True), (300, True), (301, False)])
def test_healthy_while_the_last_poll_is_younger_than_thirty_intervals(age: int, *, healthy: bool) -> None:
    snapshot = Snapshot(last_contact=START, poll_interval=10)
    assert is_healthy(snapshot, now=START + timedelta(seconds=age)) is healthy
