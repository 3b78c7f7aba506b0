"""What `headrace ps`, `logs` and `stop` make of journals, process tables and answers."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from worker.api.models import FlowRun, SetStateAnswer, SetStateStatus, State, StateType
from worker.commands.daemons import Attempt, Daemon, find_daemons, matching, the_one
from worker.commands.in_flight import Sample, Shown, cpu_percent, rows, shown_phase
from worker.commands.logs import is_over
from worker.commands.ps import notes, report
from worker.commands.session import CommandError
from worker.commands.stop import choose, judge_answer, judge_end
from worker.commands.text import aligned, duration, one_line
from worker.processes.file_locks import lock_holder, parse_locks
from worker.processes.process_table import Identity
from worker.processes.usage import MemoryKind, Usage
from worker.runs.conclusion import Intent
from worker.runs.journal_entry import Entry, Phase
from worker.state_directory import StateDirectory, for_worker

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(**facts: Any) -> Entry:
    given: dict[str, Any] = {"attempt": uuid4(), "flow_run_id": uuid4(), "name": "brave-newt", "since": SINCE}
    return Entry(**{**given, **facts})


def daemon(*entries: Entry, pid: int | None = 7, problem: str | None = None) -> Daemon:
    return Daemon(
        state=StateDirectory(Path("/state/w-1")),
        name="w",
        pool="p",
        pid=pid,
        entries=entries,
        problem=problem,
    )


def attempt(**facts: Any) -> Attempt:
    made = entry(**facts)
    return Attempt(made, daemon(made))


@pytest.mark.parametrize(
    ("phase", "intent", "attended", "alive", "shown"),
    [
        (Phase.CLAIMING, Intent.NONE, True, False, Shown.CLAIMING),
        (Phase.LAUNCHING, Intent.NONE, True, False, Shown.STARTING),
        (Phase.LAUNCHING, Intent.NONE, True, True, Shown.STARTING),
        (Phase.LAUNCHED, Intent.NONE, True, True, Shown.RUNNING),
        (Phase.LAUNCHED, Intent.NONE, True, False, Shown.REPORTING),
        (Phase.LAUNCHED, Intent.CANCEL, True, True, Shown.CANCELLING),
        (Phase.LAUNCHED, Intent.STOP, True, True, Shown.STOPPING),
        (Phase.LAUNCHED, Intent.RESCHEDULE, True, True, Shown.STOPPING),
        (Phase.EXITED, Intent.CANCEL, True, False, Shown.REPORTING),
        (Phase.LAUNCHED, Intent.NONE, False, True, Shown.LEFT_RUNNING),
        (Phase.LAUNCHED, Intent.NONE, False, False, Shown.LEFT_BEHIND),
        (Phase.CLAIMING, Intent.NONE, False, False, Shown.LEFT_BEHIND),
        (Phase.EXITED, Intent.NONE, False, False, Shown.LEFT_BEHIND),
    ],
)
def test_phases(phase: Phase, intent: Intent, attended: bool, alive: bool, shown: Shown) -> None:
    assert shown_phase(phase, intent, attended=attended, alive=alive) is shown


def sample(at: float, cpu: float, processes: int = 1) -> Sample:
    used = Usage(processes=processes, cpu_seconds=cpu, memory=1024, kind=MemoryKind.PSS)
    return Sample(at=at, pid=42 if processes else None, usage=used)


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        (None, sample(2.0, 1.0), None),
        (sample(1.0, 1.0), sample(2.0, 1.5), 50.0),
        (sample(1.0, 1.0), sample(3.0, 5.0), 200.0),
        (sample(1.0, 5.0), sample(2.0, 1.0), 0.0),
        (sample(1.0, 1.0), sample(1.0, 1.0), None),
        (sample(1.0, 1.0), sample(2.0, 0.0, processes=0), None),
        (sample(1.0, 0.0, processes=0), sample(2.0, 9.0), None),
    ],
)
def test_cpu(before: Sample | None, after: Sample, percent: float | None) -> None:
    assert cpu_percent(before, after) == percent


def test_rows_are_the_oldest_first_and_complete() -> None:
    now = SINCE.timestamp() + 100
    young = entry(phase=Phase.LAUNCHED, started=now - 10, flow="etl", deployment="nightly")
    old = entry(phase=Phase.CLAIMING)
    host = daemon(young, old)
    found = [Attempt(young, host), Attempt(old, host)]
    after = {young.attempt: sample(2.0, 1.0), old.attempt: sample(2.0, 0.0, processes=0)}
    made = rows(found, before={young.attempt: sample(1.0, 0.9)}, after=after, now=now)
    assert [row.attempt.entry for row in made] == [old, young]
    shown = report([host], made)
    assert json.loads(json.dumps(shown)) == {
        "daemons": [
            {
                "name": "w",
                "pool": "p",
                "running": True,
                "pid": 7,
                "state_directory": "/state/w-1",
                "problem": None,
            }
        ],
        "runs": [
            {
                "flow_run_id": str(old.flow_run_id),
                "name": "brave-newt",
                "flow": None,
                "deployment": None,
                "pool": "p",
                "worker": "w",
                "phase": "claiming",
                "pid": None,
                "processes": 0,
                "age_seconds": 100.0,
                "cpu_percent": None,
                "cpu_seconds": 0.0,
                "memory_bytes": None,
                "memory_kind": "pss",
            },
            {
                "flow_run_id": str(young.flow_run_id),
                "name": "brave-newt",
                "flow": "etl",
                "deployment": "nightly",
                "pool": "p",
                "worker": "w",
                "phase": "running",
                "pid": 42,
                "processes": 1,
                "age_seconds": 10.0,
                "cpu_percent": 10.0,
                "cpu_seconds": 1.0,
                "memory_bytes": 1024,
                "memory_kind": "pss",
            },
        ],
    }


def test_notes_tell_what_became_of_each_daemon() -> None:
    assert notes([]) == ["no daemon has been started here with this state directory"]
    (running,) = notes([daemon(entry())])
    assert "running, pid 7, 1 run in flight" in running
    (left,) = notes([daemon(entry(), entry(), pid=None)])
    assert "not running, 2 runs left: start it again" in left
    quiet, problem = notes([daemon(pid=None, problem="the journal cannot be read")])
    assert "nothing left" in quiet
    assert "the journal cannot be read" in problem


def test_a_run_is_meant_by_id_prefix_or_name() -> None:
    first = attempt(flow_run_id=UUID("aaaa1111-0000-4000-8000-000000000000"), name="brave-newt")
    second = attempt(flow_run_id=UUID("aaaa2222-0000-4000-8000-000000000000"), name="aaaa1111")
    both = [first, second]
    assert matching(both, str(first.entry.flow_run_id)) == [first]
    assert matching(both, "brave-newt") == [first]
    assert matching(both, "AAAA2") == [second]
    assert matching(both, "aaa") == []
    assert matching(both, "aaaa") == both
    assert matching(both, "aaaa1111") == both
    assert the_one(both, "nobody") is None
    with pytest.raises(CommandError, match="aaaa2222"):
        the_one(both, "aaaa")


def test_of_several_attempts_at_a_run_the_latest_is_meant() -> None:
    run_id = uuid4()
    early = attempt(flow_run_id=run_id)
    late = attempt(flow_run_id=run_id, since=SINCE.replace(hour=4))
    assert matching([late, early], str(run_id)) == [late]


PROCESS = Identity(42, 1.0)


@pytest.mark.parametrize(
    ("facts", "alive", "attended", "over"),
    [
        ({"phase": Phase.LAUNCHED, "process": PROCESS}, True, True, False),
        ({"phase": Phase.LAUNCHED, "process": PROCESS}, True, False, False),
        ({"phase": Phase.LAUNCHED, "process": PROCESS}, False, True, True),
        ({"phase": Phase.EXITED, "process": PROCESS}, True, True, True),
        ({"phase": Phase.CLAIMING}, False, True, False),
        ({"phase": Phase.LAUNCHING}, False, False, True),
    ],
)
def test_when_nothing_more_is_printed(facts: dict[str, Any], alive: bool, attended: bool, over: bool) -> None:
    assert is_over(entry(**facts), alive=alive, attended=attended) is over


def test_a_settled_run_prints_no_more() -> None:
    assert is_over(None, alive=False, attended=True)


def answer(status: SetStateStatus, state_type: StateType | None, reason: str | None = None) -> SetStateAnswer:
    state = State(type=state_type, name=state_type.capitalize()) if state_type else None
    return SetStateAnswer(status=status, state=state, reason=reason)


@pytest.mark.parametrize(
    ("given", "stopping", "words"),
    [
        (answer(SetStateStatus.ACCEPT, StateType.CANCELLING), True, "is being cancelled"),
        (answer(SetStateStatus.REJECT, StateType.CANCELLED), True, "nobody had begun it"),
        (answer(SetStateStatus.REJECT, StateType.CANCELLING), True, "is being cancelled"),
        (answer(SetStateStatus.ABORT, StateType.COMPLETED), False, "has ended already, as Completed"),
        (answer(SetStateStatus.ABORT, StateType.CANCELLED), False, "has ended already, as Cancelled"),
        (answer(SetStateStatus.ABORT, StateType.RUNNING, "not now"), False, "not now"),
        (answer(SetStateStatus.WAIT, None, "later"), False, "later"),
        (answer(SetStateStatus.ACCEPT, None), True, "is being cancelled"),
    ],
)
def test_the_answer_to_a_cancel(given: SetStateAnswer, stopping: bool, words: str) -> None:
    judged = judge_answer(given)
    assert judged.stopping is stopping
    assert words in judged.message


def run(state_type: StateType) -> FlowRun:
    return FlowRun(id=uuid4(), name="newt", state_type=state_type, state_name=state_type.capitalize())


def test_how_a_cancelled_run_ended() -> None:
    assert judge_end(run(StateType.CANCELLED)).stopping
    completed = judge_end(run(StateType.COMPLETED))
    assert not completed.stopping
    assert "Completed" in completed.message


def test_the_run_that_goes_on_is_meant_by_a_name() -> None:
    ended, going_on = run(StateType.COMPLETED), run(StateType.RUNNING)
    assert choose([ended, going_on], "newt") is going_on
    assert choose([ended], "newt") is ended
    with pytest.raises(CommandError, match="no run is called"):
        choose([], "newt")
    with pytest.raises(CommandError, match="several"):
        choose([going_on, run(StateType.PENDING)], "newt")


LOCKS = [
    "1: POSIX  ADVISORY  READ 100 fe:00:500 125 125",
    "2: FLOCK  ADVISORY  READ 101 fe:00:600 0 EOF",
    "3: FLOCK  ADVISORY  WRITE 102 fe:00:600 0 EOF",
    "3: -> FLOCK  ADVISORY  WRITE 103 fe:00:700 0 EOF",
    "4: FLOCK  ADVISORY  WRITE 104 00:2a:800 0 EOF",
]


@pytest.mark.parametrize(
    ("inode", "device", "written", "pid"),
    [
        (500, "fe:00", 100, None),
        (600, "fe:00", None, 102),
        (700, "fe:00", 103, None),
        (800, "00:1b", 104, 104),
        (800, "00:1b", 999, None),
        (900, "fe:00", 1, None),
    ],
)
def test_who_holds_a_lock(inode: int, device: str, written: int | None, pid: int | None) -> None:
    assert parse_locks(LOCKS, device=device, inode=inode, written=written) == pid


def test_the_lock_of_a_state_directory_is_seen_and_left(tmp_path: Path) -> None:
    state = for_worker(tmp_path, api_url="http://h/api", pool="p", name="w")
    assert lock_holder(state.lock) is None
    with state.locked():
        assert lock_holder(state.lock) is not None
        (found,) = find_daemons(tmp_path, pool="p", name="w")
        assert found.pid is not None
    assert lock_holder(state.lock) is None
    (found,) = find_daemons(tmp_path, pool=None, name=None)
    assert (found.name, found.pool, found.pid) == ("w", "p", None)


def test_a_directory_without_a_label_is_shown_by_its_name(tmp_path: Path) -> None:
    state = for_worker(tmp_path, api_url="http://h/api", pool="p", name="some worker")
    for content in (None, "not json", "[1]"):
        state.label.unlink(missing_ok=True)
        if content is not None:
            state.label.write_text(content)
        (found,) = find_daemons(tmp_path, pool=None, name=None)
        assert (found.name, found.pool) == ("some-worker", None)


def test_no_daemon_and_the_wrong_one(tmp_path: Path) -> None:
    assert find_daemons(tmp_path / "nowhere", pool=None, name=None) == []
    for_worker(tmp_path, api_url="http://h/api", pool="p", name="w")
    with pytest.raises(CommandError, match=r"w \(pool p\)"):
        find_daemons(tmp_path, pool="q", name=None)
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="--state-dir"):
        find_daemons(tmp_path / "file", pool=None, name=None)


def test_text() -> None:
    assert [duration(seconds) for seconds in (0, 59.9, 60, 3723, 90061)] == [
        "0s",
        "59s",
        "1m00s",
        "1h02m",
        "1d01h",
    ]
    assert aligned([("A", "B"), ("long", "1")], right=frozenset({1})) == ["A     B", "long  1"]
    assert one_line("a\x1b[2Jb\n") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}"
