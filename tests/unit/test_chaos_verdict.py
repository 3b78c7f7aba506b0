"""The verdict on chaos runs must find every kind of violation, and find none where all went well.

Made-up histories and ledgers only; the plan that chaos runs are drawn from is checked for keeping its numbers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest

from tests.chaos import ledger, report
from tests.chaos.evidence import Evidence
from tests.chaos.ledger import Kind, Line
from tests.chaos.notes import Notes
from tests.chaos.plan import Blow, Options, RunKind, draw
from tests.chaos.verdict import SAFETY_NET, Kill, Remains, Rule, RunRecord, State, Violation, judge

RUN = "11111111-1111-1111-1111-111111111111"
NOTHING = Remains()


def states(*names: str, message: str = "") -> tuple[State, ...]:
    types = {"AwaitingRetry": "SCHEDULED"}
    return tuple(
        State(type=types.get(name, name.upper()), name=name, message=message, at=1000.0 + at)
        for at, name in enumerate(names)
    )


def line(kind: Kind, at: float, *, execution: str = "a", pid: int = 10) -> Line:
    return Line(run_id=RUN, execution_id=execution, pid=pid, at=at, kind=kind)


def begin(at: float = 1.0, *, execution: str = "a", pid: int = 10) -> Line:
    return line(Kind.BEGIN, at, execution=execution, pid=pid)


def end(at: float = 2.0, *, execution: str = "a", pid: int = 10) -> Line:
    return line(Kind.END, at, execution=execution, pid=pid)


COMPLETED = states("Scheduled", "Pending", "Running", "Completed")
CRASHED = states("Scheduled", "Pending", "Running", "Crashed")
CANCELLED = states("Scheduled", "Pending", "Running", "Cancelling", "Cancelled")
MISTAKEN = states("Scheduled", "Pending", "Running", "Cancelling", "Crashed", "Cancelled")
KILL = Kill(execution_id="a", pid=10, at=1.5)


def a_run(
    history: Sequence[State] = COMPLETED,
    lines: Sequence[Line] = (begin(), end()),
    kills: Sequence[Kill] = (),
    *,
    cancelled: bool = False,
    met_outage: bool = False,
    kind: RunKind = RunKind.COMMAND,
) -> RunRecord:
    return RunRecord(
        run_id=RUN,
        kind=kind,
        states=tuple(history),
        lines=tuple(lines),
        kills=tuple(kills),
        cancelled=cancelled,
        met_outage=met_outage,
    )


GIVEN_BACK = states("Scheduled", "Pending", "Scheduled", "Pending", "Running", "Completed")
LATE = (replace(COMPLETED[0]), replace(COMPLETED[0], name="Late"), *COMPLETED[1:])

GOOD = {
    "ran once and completed": a_run(),
    "was late": a_run(LATE),
    "was given back before it began, and claimed again": a_run(
        GIVEN_BACK, [begin(execution="b"), end(execution="b")]
    ),
    "was killed and is reported": a_run(CRASHED, [begin()], [KILL]),
    "was killed after its work": a_run(COMPLETED, [begin(), end(1.4)], [KILL]),
    "was cancelled while it ran": a_run(CANCELLED, [begin()], cancelled=True),
    "was cancelled before it was claimed": a_run(states("Scheduled", "Cancelled"), [], cancelled=True),
    "was cancelled before it was launched": a_run(
        states("Scheduled", "Pending", "Cancelling", "Cancelled"), [], cancelled=True
    ),
    "had ended before it was cancelled": a_run(cancelled=True),
    "was cancelled and then killed": a_run(CANCELLED, [begin()], [KILL], cancelled=True),
    "was reported twice, by a killed daemon and by the next": a_run(
        (*CRASHED, CRASHED[-1]), [begin()], [KILL]
    ),
    "has an engine that lost its server": a_run(
        states("Scheduled", "Pending", "Crashed"), [], kind=RunKind.ENGINE, met_outage=True
    ),
    "has an engine that survived the loss of its server": a_run(kind=RunKind.ENGINE, met_outage=True),
    "began again after its first process was dead": a_run(
        states("Scheduled", "Pending", "Running", "AwaitingRetry", "Pending", "Running", "Crashed"),
        [begin(1.0), begin(1.6, execution="b", pid=11)],
        [KILL, Kill(execution_id="b", pid=11, at=1.9)],
    ),
}

BAD = {
    "is still running": (a_run(states("Scheduled", "Pending", "Running"), [begin()]), {Rule.ONE_FINAL_STATE}),
    "is still pending, killed": (
        a_run(states("Scheduled", "Pending"), [begin()], [KILL]),
        {Rule.ONE_FINAL_STATE},
    ),
    "hangs in cancelling": (a_run(CANCELLED[:-1], [begin()], cancelled=True), {Rule.ONE_FINAL_STATE}),
    "is unknown to the server": (a_run([], []), {Rule.ONE_FINAL_STATE}),
    "has two final states": (a_run((*CRASHED, COMPLETED[-1])), {Rule.ONE_FINAL_STATE}),
    "came back after its end": (
        a_run((*COMPLETED, COMPLETED[1])),
        {Rule.ONE_FINAL_STATE},
    ),
    "never began and is completed": (a_run(COMPLETED, []), {Rule.EXACTLY_ONCE}),
    "was left alone and crashed": (a_run(CRASHED, [begin()]), {Rule.EXACTLY_ONCE}),
    "was left alone, ended and crashed": (a_run(CRASHED), {Rule.EXACTLY_ONCE}),
    "was left alone and cancelled": (a_run(CANCELLED, [begin()]), {Rule.EXACTLY_ONCE}),
    "completed without having ended": (a_run(COMPLETED, [begin()]), {Rule.EXACTLY_ONCE}),
    "began twice in one execution": (
        a_run(lines=[begin(), end(), begin(3.0, pid=11)]),
        {Rule.ONCE_PER_CLAIM, Rule.EXACTLY_ONCE},
    ),
    "began twice in two executions": (
        a_run(
            GIVEN_BACK, [begin(), end(), begin(3.0, execution="b", pid=11), end(4.0, execution="b", pid=11)]
        ),
        {Rule.EXACTLY_ONCE},
    ),
    "was killed, and began more often than it was claimed": (
        a_run(CRASHED, [begin(), begin(3.0, execution="b", pid=11)], [KILL]),
        {Rule.ONCE_PER_CLAIM},
    ),
    "began beside itself": (
        a_run(
            GIVEN_BACK,
            [begin(), begin(1.5, execution="b", pid=11), end(2.0), end(3.0, execution="b", pid=11)],
        ),
        {Rule.NEVER_TWO, Rule.EXACTLY_ONCE},
    ),
    "began again before its first process was killed": (
        a_run(
            states("Scheduled", "Pending", "Running", "AwaitingRetry", "Pending", "Running", "Crashed"),
            [begin(1.0), begin(1.4, execution="b", pid=11)],
            [KILL],
        ),
        {Rule.NEVER_TWO},
    ),
    "found its lock taken": (
        a_run(
            GIVEN_BACK,
            [
                begin(),
                begin(1.5, execution="b", pid=11),
                line(Kind.BESIDE, 1.6, execution="b", pid=11),
                end(1.7, execution="b", pid=11),
            ],
        ),
        {Rule.NEVER_TWO, Rule.EXACTLY_ONCE},
    ),
    "was killed and is completed all the same": (a_run(COMPLETED, [begin()], [KILL]), {Rule.HONEST_KILL}),
    "was killed and is called cancelled": (a_run(CANCELLED, [begin()], [KILL]), {Rule.HONEST_KILL}),
    "was cancelled and is crashed": (a_run(CRASHED, [begin()], cancelled=True), {Rule.CANCELLED}),
    "has an engine that took its cancellation for a crash": (
        a_run(MISTAKEN, [begin()], cancelled=True, kind=RunKind.ENGINE),
        {Rule.ONE_FINAL_STATE},
    ),
    "was reported three times": (
        a_run((*CRASHED, CRASHED[-1], CRASHED[-1]), [begin()], [KILL]),
        {Rule.ONE_FINAL_STATE},
    ),
    "was reported twice, with different words": (
        a_run((*CRASHED, replace(CRASHED[-1], message="other")), [begin()], [KILL]),
        {Rule.ONE_FINAL_STATE},
    ),
    "was not cancelled by the driver, and went from crashed to cancelled": (
        a_run(MISTAKEN, [begin()], kind=RunKind.ENGINE),
        {Rule.ONE_FINAL_STATE, Rule.EXACTLY_ONCE},
    ),
    "was cancelled, crashed, cancelled and ran on": (
        a_run((*MISTAKEN, COMPLETED[2]), [begin()], cancelled=True, kind=RunKind.ENGINE),
        {Rule.ONE_FINAL_STATE},
    ),
    "was cancelled by nobody but the server": (
        a_run(
            (*CANCELLED[:-1], replace(CANCELLED[-1], message=f"{SAFETY_NET}; marked.")),
            [begin()],
            cancelled=True,
        ),
        {Rule.CANCELLED},
    ),
    "was given no execution id": (
        a_run(lines=[begin(execution=""), end(execution="")]),
        {Rule.LEDGER},
    ),
    "was ended by a process that never began it": (a_run(lines=[begin(), end(pid=12)]), {Rule.LEDGER}),
    "has an engine that lost its server and began twice in one execution": (
        a_run(CRASHED, [begin(), begin(3.0, pid=11)], kind=RunKind.ENGINE, met_outage=True),
        {Rule.ONCE_PER_CLAIM},
    ),
}


@pytest.mark.parametrize("run", GOOD.values(), ids=GOOD)
def test_a_run_that_went_well_breaks_no_rule(run: RunRecord) -> None:
    assert judge([run], NOTHING) == []


@pytest.mark.parametrize(("run", "rules"), BAD.values(), ids=BAD)
def test_a_run_that_went_wrong_is_named_with_the_rules_it_breaks(run: RunRecord, rules: set[Rule]) -> None:
    found = judge([a_run(), run], NOTHING)
    assert {violation.rule for violation in found} == rules
    assert {violation.run_id for violation in found} == {RUN}


def test_a_run_whose_claims_outnumber_its_beginnings_is_sound_but_not_the_reverse() -> None:
    run = a_run(GIVEN_BACK)
    assert judge([run], NOTHING) == []
    unclaimed = replace(run, states=tuple(state for state in run.states if state.type != "PENDING"))
    assert [violation.rule for violation in judge([unclaimed], NOTHING)] == [Rule.ONCE_PER_CLAIM]


def test_what_is_left_behind_is_a_violation_each() -> None:
    remains = Remains(
        processes=("pid 1: sleep",),
        directories=("/state/a/runs/x",),
        journal_entries=("a: run x", "b: run y"),
        slots=("a had 1 in flight",),
    )
    found = judge([a_run()], remains)
    assert [violation.rule for violation in found] == [Rule.NOTHING_LEFT] * 5
    assert {violation.run_id for violation in found} == {None}
    assert "pid 1: sleep" in found[0].text


def test_a_daemon_that_ended_badly_is_a_violation() -> None:
    found = judge([], Remains(bad_ends=("chaos-0 ended on SIGTERM with 1",)))
    assert found == [Violation(Rule.GOOD_END, "chaos-0 ended on SIGTERM with 1")]


def test_a_line_of_a_run_that_nobody_created_is_a_violation() -> None:
    (found,) = judge([], NOTHING, strangers=[begin()])
    assert found.rule is Rule.LEDGER
    assert found.run_id == RUN


@pytest.fixture
def pens(tmp_path: Path) -> Iterator[Callable[[str, str], ledger.Writer]]:
    """Writers of the ledger in `tmp_path`, by execution and run."""
    with ExitStack() as stack:

        def pen(execution: str, run_id: str = RUN) -> ledger.Writer:
            environment = {ledger.DIRECTORY: str(tmp_path), ledger.EXECUTION_ID: execution}
            return stack.enter_context(closing(ledger.Writer(environment, run_id=run_id)))

        yield pen


def test_the_ledger_gives_back_what_was_written(tmp_path: Path, pens: Callable[..., ledger.Writer]) -> None:
    writer = pens("a")
    before = ledger.boot_time()
    writer.begin()
    writer.end()
    first, last = ledger.read(tmp_path)
    assert (first.kind, last.kind) == (Kind.BEGIN, Kind.END)
    assert (first.run_id, first.execution_id) == (RUN, "a")
    assert before <= first.at <= last.at <= ledger.boot_time()


def test_a_second_pen_for_a_run_finds_its_lock_taken(
    tmp_path: Path, pens: Callable[..., ledger.Writer]
) -> None:
    first = pens("a")
    first.begin()
    pens("b").begin()
    pens("c", RUN.replace("1", "2")).begin()
    told = [(line.execution_id, line.kind) for line in ledger.read(tmp_path)]
    assert told == [("a", Kind.BEGIN), ("b", Kind.BEGIN), ("b", Kind.BESIDE), ("c", Kind.BEGIN)]


def test_a_run_whose_first_process_is_gone_is_free(
    tmp_path: Path, pens: Callable[..., ledger.Writer]
) -> None:
    first = pens("a")
    first.begin()
    first.close()
    pens("b").begin()
    assert [line.kind for line in ledger.read(tmp_path)] == [Kind.BEGIN, Kind.BEGIN]


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    whole = json.dumps(asdict(begin()))
    ledger.ledger_file(tmp_path).write_text(f"{whole}\n{whole[:20]}")
    assert ledger.read(tmp_path) == [begin()]


def test_there_is_no_ledger_before_the_first_run(tmp_path: Path) -> None:
    assert ledger.read(tmp_path) == []


@pytest.mark.parametrize(("runs", "kills"), [(12, 4), (25, 8), (1000, 200), (5, 0)])
def test_a_plan_has_as_many_runs_and_kills_as_were_asked_for(runs: int, kills: int) -> None:
    plan = draw(Options(runs=runs, kills=kills, engine_share=0.2), Random(1))
    assert [run.number for run in plan.runs] == list(range(runs))
    assert sum(run.kind is RunKind.ENGINE for run in plan.runs) == round(runs * 0.2)
    killing = {Blow.KILL_DAEMON, Blow.STOP_DAEMON, Blow.KILL_FLOW}
    assert sum(blow.blow in killing for blow in plan.blows) == kills
    if kills:
        assert {blow.blow for blow in plan.blows} == set(Blow)
    assert all(1 <= blow.after <= runs for blow in plan.blows)


def test_the_same_seed_draws_the_same_plan() -> None:
    options = Options(runs=50, kills=20)
    assert draw(options, Random(7)) == draw(options, Random(7))
    assert draw(options, Random(7)) != draw(options, Random(8))


def test_a_violation_is_told_with_the_story_of_its_run() -> None:
    run = a_run(states("Scheduled", "Pending", "Running", message="why"), [begin()], [KILL])
    event = {
        "event": "flow_run.launched",
        "flow_run_id": RUN,
        "worker": "chaos-1",
        "pid": 10,
        "timestamp": "1970-01-01T00:16:41.5Z",
    }
    notes = Notes(
        blows=[(1.7, Blow.CANCEL, f"run {RUN}, running"), (1.5, Blow.KILL_FLOW, f"run {RUN}, pid 10")],
        began=0.0,
        epoch=1001.2,
        settled=60.0,
    )
    remains = Remains(processes=("pid 1: sleep",))
    evidence = Evidence(runs=(run,), strangers=(), remains=remains, notes=notes, events=(event,))
    violations = judge([run], remains)
    head, *told, installation, left = report.complaints(evidence, violations).splitlines()
    assert (head, installation) == (f"run {RUN}", "the installation")
    assert Rule.ONE_FINAL_STATE.value in told[0]
    assert "pid 1: sleep" in left
    assert [text.split(maxsplit=3)[1:3] for text in told[1:]] == [
        ["server", "Scheduled:"],
        ["server", "Pending:"],
        ["chaos-1", "flow_run.launched"],
        ["server", "Running:"],
        ["ledger", "begin,"],
        ["driver", "SIGKILL"],
        ["driver", "cancel"],
    ]
    table = report.table(report.figures(evidence, Options(runs=1, kills=1), violations))
    assert "| runs that are Running | 1 |" in table
    assert "| violations | 2 |" in table


def test_the_figures_of_nothing_at_all_can_be_told() -> None:
    evidence = Evidence(runs=(), strangers=(), remains=NOTHING, notes=Notes(), events=())
    assert "| runs | 0 |" in report.table(report.figures(evidence, Options(runs=1, kills=0), []))
