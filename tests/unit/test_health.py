"""Health is a function of time, readiness of what the daemon does."""

from datetime import UTC, datetime, timedelta

import pytest

from worker.health import LONGEST_SILENCE, Readiness, Snapshot, is_alive, is_healthy, readiness

START = datetime(2026, 1, 1, tzinfo=UTC)


def snapshot(
    *, draining: bool = False, online: bool = True, silent: float = 0.0, poll_interval: float = 10.0
) -> Snapshot:
    return Snapshot(
        last_contact=START, poll_interval=poll_interval, draining=draining, online=online, silent=silent
    )


@pytest.mark.parametrize(("age", "healthy"), [(0, True), (300, True), (301, False)])
def test_healthy_while_the_last_poll_is_younger_than_thirty_intervals(age: int, *, healthy: bool) -> None:
    assert is_healthy(snapshot(), now=START + timedelta(seconds=age)) is healthy


@pytest.mark.parametrize(("silent", "alive"), [(0.0, True), (LONGEST_SILENCE, True), (30.1, False)])
def test_alive_while_the_event_loop_turns(silent: float, *, alive: bool) -> None:
    assert is_alive(snapshot(silent=silent)) is alive


def test_an_outage_a_start_and_a_drain_are_no_reason_to_restart() -> None:
    away = snapshot(draining=True, online=False)
    assert not is_healthy(away, now=START + timedelta(days=1))
    assert is_alive(away)


@pytest.mark.parametrize(
    ("seen", "age", "judged"),
    [
        (snapshot(), 300, Readiness.READY),
        (snapshot(), 301, Readiness.OUT_OF_CONTACT),
        (snapshot(online=False), 0, Readiness.STARTING),
        (snapshot(online=False), 301, Readiness.STARTING),
        (snapshot(draining=True), 0, Readiness.DRAINING),
        (snapshot(draining=True, online=False), 301, Readiness.DRAINING),
        (snapshot(silent=31.0, draining=True), 0, Readiness.HANGING),
    ],
)
def test_ready_is_who_takes_new_runs(seen: Snapshot, age: int, judged: Readiness) -> None:
    assert readiness(seen, now=START + timedelta(seconds=age)) is judged
