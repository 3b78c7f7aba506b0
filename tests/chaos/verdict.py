"""The verdict: what the records of a chaos run prove to have gone wrong. Pure, over plain values.

A run's two witnesses are independent of each other and of the daemons: its states on the server, and what its own
processes wrote into the ledger. What cannot be proven from them is not called a violation; what the driver did to a
run itself (killing its process, cancelling it, restarting the server under its engine) is taken into account.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.ledger import Kind, Line
from tests.chaos.plan import RunKind

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
# The server ends by itself what nobody has cancelled for 300 s (PROTOCOL 5.1); a worker must not need that.
SAFETY_NET = "Flow run cancellation timed out"


class Rule(StrEnum):
    """What must hold; each violation names the one it breaks."""

    ONE_FINAL_STATE = "every run ends in exactly one final state"
    EXACTLY_ONCE = "a run that was left alone runs exactly once, and completes"
    ONCE_PER_CLAIM = "a claim begins a run at most once"
    NEVER_TWO = "a run never has two living processes"
    HONEST_KILL = "a killed run does not complete, unless it had done its work"
    CANCELLED = "a cancelled run is Cancelled by its worker, or had ended before"
    LEDGER = "every line of the ledger belongs to a run and to a claim"
    NOTHING_LEFT = "nothing is left behind"
    GOOD_END = "a daemon ends only when told to, with exit code 0"


@dataclass(frozen=True, slots=True)
class State:
    """One state of a run's history; `at` in seconds since the epoch, by the server's clock."""

    type: str
    name: str
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL, sent by the driver to a living process of this execution; `at` in seconds since boot."""

    execution_id: str
    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that is known of one run. `states` and `lines` are in the order of time.

    `cancelled`: the server took the driver's cancellation. `met_outage`: the run has an engine, and the server was
    restarted while it was starting or running; engines do not survive that at every moment.
    """

    run_id: str
    kind: RunKind
    states: tuple[State, ...]
    lines: tuple[Line, ...] = ()
    kills: tuple[Kill, ...] = ()
    cancelled: bool = False
    met_outage: bool = False

    @property
    def final(self) -> str | None:
        """The type of the final state the run is in."""
        return self.states[-1].type if self.states and self.states[-1].type in FINAL else None

    @property
    def told_twice(self) -> bool:
        """Whether the server took the same final state twice, word by word.

        A daemon that is killed while a slow server works on its last report is succeeded by one that sees the run as it
        was before, and says the same. SQLite lets both through when they overlap; it is one end all the same.
        """
        last = [(state.type, state.message) for state in self.states[-2:]]
        return len(last) == 2 and last[0] == last[1] and last[0][0] in FINAL

    def said(self, kind: Kind) -> list[Line]:
        return [line for line in self.lines if line.kind is kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What was found when all was over, described; and how daemons ended that should have ended with 0."""

    processes: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    journal_entries: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    bad_ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule; `run_id` is None when it is not about one run."""

    rule: Rule
    text: str
    run_id: str | None = None


def judge(runs: Sequence[RunRecord], remains: Remains, *, strangers: Sequence[Line] = ()) -> list[Violation]:
    """Every violation. `strangers` are ledger lines of runs that nobody created."""
    found = [violation for run in runs for violation in _judge_run(run)]
    found += [
        Violation(
            Rule.LEDGER, f"pid {line.pid} wrote {line.kind.value!r} for a run nobody created", line.run_id
        )
        for line in strangers
    ]
    for what, things in (
        ("process", remains.processes),
        ("directory", remains.directories),
        ("journal entry", remains.journal_entries),
        ("slot", remains.slots),
    ):
        found += [Violation(Rule.NOTHING_LEFT, f"{what} left: {thing}") for thing in things]
    return found + [Violation(Rule.GOOD_END, text) for text in remains.bad_ends]


def _judge_run(run: RunRecord) -> Iterable[Violation]:
    for rule, complaints in (
        (Rule.ONE_FINAL_STATE, _final_state(run)),
        (Rule.ONCE_PER_CLAIM, _once_per_claim(run)),
        (Rule.NEVER_TWO, _never_two(run)),
        (Rule.LEDGER, _ledger(run)),
        _conduct(run),
    ):
        for text in complaints:
            yield Violation(rule, text, run.run_id)


def _conduct(run: RunRecord) -> tuple[Rule, list[str]]:
    """How it must have ended, from what was done to it. A run that has not ended is judged by other rules."""
    if run.final is None:
        return Rule.ONE_FINAL_STATE, []
    if run.cancelled:
        return Rule.CANCELLED, _cancelled(run)
    if run.kills:
        return Rule.HONEST_KILL, _killed(run)
    if run.met_outage and run.final != "COMPLETED":
        return Rule.EXACTLY_ONCE, []
    return Rule.EXACTLY_ONCE, _exactly_once(run)


def _final_state(run: RunRecord) -> Iterable[str]:
    if not run.states:
        yield "the server does not know it"
        return
    finals = [state.name for state in run.states if state.type in FINAL]
    if run.told_twice:
        finals.pop()
    if run.final is None:
        yield f"it is still {run.states[-1].name}"
    if finals and (len(finals) > 1 or run.final is None):
        yield f"it went on after its end: {' -> '.join(state.name for state in run.states)}"


def _once_per_claim(run: RunRecord) -> Iterable[str]:
    begins = Counter(line.execution_id for line in run.said(Kind.BEGIN))
    for execution_id, count in begins.items():
        if count > 1:
            yield f"execution {execution_id!r} began {count} times"
    claims = sum(state.type == "PENDING" for state in run.states)
    if run.states and begins.total() > claims:
        yield f"it began {begins.total()} times with {claims} claims"


def _never_two(run: RunRecord) -> Iterable[str]:
    for line in run.said(Kind.BESIDE):
        yield f"pid {line.pid} began while another process held the run's lock"
    # A process certainly lived from its first line to its last, and when the driver killed it.
    lives: dict[tuple[str, int], list[float]] = {}
    for line in run.lines:
        lives.setdefault((line.execution_id, line.pid), []).append(line.at)
    for kill in run.kills:
        lives.setdefault((kill.execution_id, kill.pid), []).append(kill.at)
    spans = sorted((min(times), max(times), pid) for (_, pid), times in lives.items())
    latest, holder = 0.0, 0
    for began, ended, pid in spans:
        if began < latest:
            yield f"pid {pid} began {latest - began:.3f} s before pid {holder} was through"
        latest, holder = max((latest, holder), (ended, pid))


def _ledger(run: RunRecord) -> Iterable[str]:
    begun = {(line.execution_id, line.pid) for line in run.said(Kind.BEGIN)}
    for line in run.lines:
        if not line.execution_id:
            yield f"pid {line.pid} had no execution id"
        elif (line.execution_id, line.pid) not in begun:
            yield f"pid {line.pid} wrote {line.kind.value!r} without a beginning"


def _exactly_once(run: RunRecord) -> list[str]:
    complaints = [
        f"{count} times {kind.value!r} in the ledger"
        for kind in (Kind.BEGIN, Kind.END)
        if (count := len(run.said(kind))) != 1
    ]
    if run.final != "COMPLETED":
        complaints.append(f"it is {run.states[-1].name}: {run.states[-1].message}")
    return complaints


def _killed(run: RunRecord) -> list[str]:
    if run.final == "CRASHED" or (run.final == "COMPLETED" and run.said(Kind.END)):
        return []
    return [f"it was killed before it had ended, and is {run.states[-1].name}: {run.states[-1].message}"]


def _cancelled(run: RunRecord) -> list[str]:
    last = run.states[-1]
    if last.message.startswith(SAFETY_NET):
        return [f"no worker cancelled it: {last.message}"]
    if run.final == "CANCELLED" or (run.final == "COMPLETED" and run.said(Kind.END)):
        return []
    return [f"it was cancelled, and is {last.name}: {last.message}"]
