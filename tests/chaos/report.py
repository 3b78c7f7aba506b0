"""What a chaos run is told as: a table of figures, and each violation with the story of its run.

Owns counting and wording. Every figure comes from the driver's notes, the server, the ledger or the daemons' logs,
and its name says which.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.chaos.evidence import Evidence
from tests.chaos.ledger import Kind
from tests.chaos.plan import Blow, Options, RunKind
from tests.chaos.verdict import RunRecord, Violation

Figure = tuple[str, object]
COUNTED_EVENTS = (
    "flow_run.claimed",
    "flow_run.launched",
    "flow_run.adopted",
    "flow_run.detached",
    "flow_run.given_back",
    "flow_run.recovered",
    "flow_run.reported",
    "flow_run.unreported",
    "flow_run.error",
)
# A broken daemon breaks many runs in the same way; these tell enough.
MOST_STORIES = 20
_UNTOLD = {"event", "timestamp", "level", "worker", "work_pool", "flow_run_id", "flow_run"}


def figures(evidence: Evidence, options: Options, violations: Sequence[Violation]) -> list[Figure]:
    """Every figure, in the order of the table."""
    runs, notes = evidence.runs, evidence.notes
    blows = Counter(blow for _, blow, _ in notes.blows)
    kinds = Counter(run.kind for run in runs)
    took = notes.settled - notes.began
    events = Counter(str(event["event"]) for event in evidence.events)
    found: list[Figure] = [
        ("seed", options.seed),
        ("daemons, each with limit", f"{options.daemons}, {options.limit}"),
        ("runs", len(runs)),
        *((f"runs of kind {kind.value}", kinds[kind]) for kind in RunKind),
        ("kills", sum(blows[blow] for blow in (Blow.KILL_DAEMON, Blow.STOP_DAEMON, Blow.KILL_FLOW))),
        *((blow.value, blows[blow]) for blow in Blow if blow is not Blow.CANCEL),
        ("runs cancelled by the driver", len(notes.cancelled)),
        (
            "final states that the server took twice, word by word",
            sum(run.told_twice for run in runs),
        ),
        ("engine runs that met a restart of the server", sum(run.met_outage for run in runs)),
        (
            "of these, neither killed nor cancelled, and not Completed",
            sum(run.met_outage and run.final != "COMPLETED" for run in _left_alone(runs)),
        ),
        *_states(runs),
        *((f"ledger: {kind.value}", sum(len(run.said(kind)) for run in runs)) for kind in Kind),
        ("runs neither killed nor cancelled", len(_left_alone(runs))),
        ("of these, one begin, one end, Completed", sum(_once(run) for run in _left_alone(runs))),
        *((f"logged: {name}", events[name]) for name in COUNTED_EVENTS),
        ("seconds from first run to all settled", f"{took:.0f}"),
        ("runs per minute", f"{60 * len(runs) / took:.1f}" if took else "-"),
        ("seconds from due to Running", _spread(_waits(runs))),
        ("seconds from a flow's SIGKILL to its final state", _spread(_settling(evidence))),
        ("violations", len(violations)),
    ]
    return found


def table(rows: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def complaints(evidence: Evidence, violations: Sequence[Violation]) -> str:
    """Every violation, grouped by run, with the stories of the first runs."""
    runs = {run.run_id: run for run in evidence.runs}
    by_run: defaultdict[str | None, list[Violation]] = defaultdict(list)
    for violation in violations:
        by_run[violation.run_id].append(violation)
    parts: list[str] = []
    stories = 0
    for run_id, found in by_run.items():
        parts.append(f"run {run_id}" if run_id else "the installation")
        parts += [f"  VIOLATED {one.rule.value}: {one.text}" for one in found]
        if run_id in runs and stories < MOST_STORIES:
            parts += [f"    {line}" for line in story(runs[run_id], evidence)]
            stories += 1
    return "\n".join(parts)


def story(run: RunRecord, evidence: Evidence) -> list[str]:
    """Everything known about a run, in the order of time."""
    # Both clocks run alike; what one was at a time of the other is known well enough to sort by.
    offset = _epoch_of_boot(evidence)
    told = [(state.at, f"server  {state.name}: {state.message}") for state in run.states]
    told += [
        (line.at + offset, f"ledger  {line.kind.value}, pid {line.pid}, execution {line.execution_id}")
        for line in run.lines
    ]
    told += [(kill.at + offset, f"driver  SIGKILL of pid {kill.pid}") for kill in run.kills]
    told += [
        (at + offset, f"driver  {blow.value}: {hit}")
        for at, blow, hit in evidence.notes.blows
        if run.run_id in hit and blow is not Blow.KILL_FLOW
    ]
    told += [
        (_time(event), f"{event.get('worker')}  {event['event']} {_fields(event)}")
        for event in evidence.events
        if event.get("flow_run_id") == run.run_id
    ]
    return [f"{_clock(at)} {text}" for at, text in sorted(told)]


def _states(runs: Sequence[RunRecord]) -> list[Figure]:
    names = Counter(run.states[-1].name if run.states else "unknown to the server" for run in runs)
    return [(f"runs that are {name}", count) for name, count in sorted(names.items())]


def _left_alone(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return [run for run in runs if not run.kills and not run.cancelled]


def _once(run: RunRecord) -> bool:
    return len(run.said(Kind.BEGIN)) == 1 == len(run.said(Kind.END)) and run.final == "COMPLETED"


def _waits(runs: Sequence[RunRecord]) -> list[float]:
    began = [(run, next((state.at for state in run.states if state.type == "RUNNING"), None)) for run in runs]
    return [at - run.states[0].at for run, at in began if at is not None]


def _settling(evidence: Evidence) -> list[float]:
    offset = _epoch_of_boot(evidence)
    return [
        run.states[-1].at - (kill.at + offset)
        for run in evidence.runs
        if run.final == "CRASHED"
        for kill in run.kills
    ]


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return ", ".join(
        f"{name} {ordered[round(share * last)]:.1f}"
        for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
    )


def _epoch_of_boot(evidence: Evidence) -> float:
    return evidence.notes.epoch - evidence.notes.began


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]


def _fields(event: dict[str, Any]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in event.items() if name not in _UNTOLD)
