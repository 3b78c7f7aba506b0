"""Sampling memory: who belongs to a run, how often it is read, and for how long."""

import os
import sys
from collections.abc import Callable, Mapping

import pytest

from worker.processes.memory import BUDGET, FRESH, MemorySampler, proportional_set_size, runs_members
from worker.processes.process_table import Identity, ProcessInfo


def process(pid: int, ppid: int, session: int, start: float = 1.0, *, dead: bool = False) -> ProcessInfo:
    return ProcessInfo(pid=pid, ppid=ppid, session=session, start_time=start, dead=dead)


def table(*processes: ProcessInfo) -> dict[int, ProcessInfo]:
    return {one.pid: one for one in processes}


def test_a_run_is_its_session_and_what_descends_from_it() -> None:
    processes = table(
        process(1, 0, 1, 0.0),
        process(10, 1, 10),
        process(11, 10, 10, 2.0),
        # It has a session of its own, and a child.
        process(12, 11, 12, 3.0),
        process(13, 12, 12, 4.0),
        # Its parent has ended, its session is still the run's.
        process(14, 1, 10, 5.0),
        process(15, 10, 10, 6.0, dead=True),
        process(20, 1, 20),
        process(30, 1, 30),
    )
    leaders = {"a": Identity(10, 1.0), "b": Identity(20, 1.0)}
    assert runs_members(processes, leaders) == {"a": [10, 11, 12, 13, 14], "b": [20]}


def test_a_later_process_with_the_number_of_a_leader_is_not_the_run() -> None:
    assert runs_members(table(process(10, 1, 10, 9.0)), {"a": Identity(10, 1.0)}) == {}


class Machine:
    """A clock, a process table and set sizes; reading one takes `cost` seconds."""

    def __init__(self, pids: int, *, cost: float = 0.0) -> None:
        self.now = 100.0
        self.cost = cost
        self.read: list[int] = []
        self.processes = table(*(process(pid, 1, pid) for pid in range(10, 10 + pids)))
        self.leaders = {str(pid): one.identity for pid, one in self.processes.items()}

    def pss(self, pid: int) -> int | None:
        self.read.append(pid)
        self.now += self.cost
        return pid if pid in self.processes else None

    def sampler(self) -> MemorySampler:
        tables: Callable[[], Mapping[int, ProcessInfo]] = lambda: self.processes  # noqa: E731 - its type is the point
        return MemorySampler(monotonic=lambda: self.now, table=tables, pss=self.pss)


def test_who_asks_again_at_once_gets_the_same_answer() -> None:
    machine = Machine(2)
    sampler = machine.sampler()
    assert sampler.sample(machine.leaders) == {"10": 10, "11": 11}
    machine.now += FRESH - 0.1
    sampler.sample(machine.leaders)
    assert machine.read == [10, 11]
    machine.now += 0.2
    sampler.sample(machine.leaders)
    assert machine.read == [10, 11] * 2


def test_a_look_is_bounded_and_the_next_one_begins_with_the_others() -> None:
    machine = Machine(6, cost=BUDGET / 2.5)
    sampler = machine.sampler()
    assert list(sampler.sample(machine.leaders)) == ["10", "11", "12"]
    machine.now += FRESH
    assert set(sampler.sample(machine.leaders)) == {"10", "11", "12", "13", "14", "15"}
    assert machine.read == [10, 11, 12, 13, 14, 15]


def test_what_has_ended_is_forgotten() -> None:
    machine = Machine(2)
    sampler = machine.sampler()
    sampler.sample(machine.leaders)
    del machine.processes[10]
    assert set(sampler.sample({"11": machine.leaders["11"]})) == {"11"}
    machine.now += FRESH
    assert set(sampler.sample(machine.leaders)) == {"11"}
    assert sampler.sample({}) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="smaps_rollup is Linux's")
def test_our_own_set_size_is_that_of_a_python_process() -> None:
    size = proportional_set_size(os.getpid())
    assert size is not None
    assert 1 << 20 < size < 1 << 34
    assert proportional_set_size(1 << 30) is None
