"""When a run is to be claimed so that it begins when it is due, and when to look for the next one.

Pure decisions and what they need to remember: how long starts have taken (`Leads`), when the next question is due
(`Agenda`). Asking and waiting are the poller's, claiming is `serving`'s. Decisions about runs always come from a fresh answer; what
is remembered here only says when to ask.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from uuid import UUID

from worker.api.models import FlowRun, StateType
from worker.runs.conclusion import IN_PROCESS_RETRY
from worker.runs.lateness import AWAITING_SLOT

# Starts remembered of each deployment, and deployments remembered.
SAMPLES = 9
DEPLOYMENTS = 256
# Before anything was measured, in seconds: a start that is quick. Who expects too little is late by little.
FIRST_LEAD = 0.25
# A server marks queues and deployments as not ready that nobody has asked about for 60 s (PROTOCOL 2.2). The interval
# is spread by 30 %.
LONGEST_INTERVAL = 45.0
# The setting may say 0 seconds.
SHORTEST_INTERVAL = 0.1
# After a hint: an event can be published before what it tells of is committed (PROTOCOL 5.3).
PAUSES_AFTER_HINT = (0.15, 0.5)
# Before the first question, in seconds, so that it does not meet that commit: on SQLite, the two writes would wait for each
# other. What is read ahead meanwhile takes longer on a slow server, and is waited for.
PAUSE_BEFORE_QUESTION = 0.02
# The scheduler makes the runs of a changed deployment in its next round: every 5 s.
SCHEDULER_ROUND = 6.0
# Waiting is not exact; a moment later is surely not too early.
AFTER_DUE = 0.005


class Leads:
    """How long before its due time each run is to be claimed: as long as starts of its deployment take.

    That is from the claim until the engine connects, just before it proposes Running; pull steps and imports of the
    deployment are in it. The shortest of the last few counts, so that hardly any run is early: the server takes a
    proposal up to 0.5 s before the due time at once, and the flow of midnight would begin on the day before; a
    proposal still earlier is told to wait for whole seconds, rounded, which can end 0.5 s before or after
    (PROTOCOL 2.6). Being late by the little that this start took longer than the quickest costs less than either.

    `most` bounds a lead, in seconds (`--prefetch-seconds`); with 0 no run is claimed before it is due. `fixed`: all
    runs are claimed as early as that.
    """

    def __init__(self, *, most: float, fixed: bool = False) -> None:
        self._most = most
        self._fixed = fixed
        self._all: deque[float] = deque(maxlen=SAMPLES)
        self._of: OrderedDict[UUID, deque[float]] = OrderedDict()

    def measured(self, deployment_id: UUID | None, seconds: float) -> None:
        """A run of this deployment took so long to start."""
        self._all.append(seconds)
        if deployment_id is None:
            return
        self._of.setdefault(deployment_id, deque(maxlen=SAMPLES)).append(seconds)
        self._of.move_to_end(deployment_id)
        if len(self._of) > DEPLOYMENTS:
            self._of.popitem(last=False)

    def of(self, deployment_id: UUID | None) -> timedelta:
        """How long before its due time a run of this deployment is claimed."""
        samples = (self._of.get(deployment_id) if deployment_id else None) or self._all
        return self._bounded(min(samples, default=FIRST_LEAD))

    @property
    def longest(self) -> timedelta:
        """The longest lead of all: no run that is due later than this is claimed now."""
        return max([self.of(None), *(self._bounded(min(samples)) for samples in self._of.values())])

    def _bounded(self, seconds: float) -> timedelta:
        return timedelta(seconds=self._most if self._fixed else min(self._most, seconds))


def start_time(flow_run: FlowRun, leads: Leads) -> datetime | None:
    """When the run is to be claimed; None for one without a time: at once.

    One that waits for a concurrency slot of its deployment is claimed only once due: sooner the server would refuse
    the slot again (PROTOCOL 2.6).
    """
    due = flow_run.next_scheduled_start_time
    if due is None or flow_run.state_name == AWAITING_SLOT:
        return due
    return due - leads.of(flow_run.deployment_id)


def unclaimable(flow_run: FlowRun, *, now: datetime, in_flight: bool, leads: Leads) -> str | None:
    """Why a run that was handed out must not be claimed now; None when it may be.

    Servers before 3.1.3 hand out runs whose live process waits to retry (PROTOCOL 9).
    """
    if in_flight:
        return "its previous attempt is still ending here"
    if flow_run.state_type is not StateType.SCHEDULED:
        return f"its state is {flow_run.state_name}"
    if flow_run.retry_type == IN_PROCESS_RETRY:
        return "its own process will retry it"
    time = start_time(flow_run, leads)
    if time is not None and time > now:
        return "it is not due yet"
    return None


def later(flow_runs: Iterable[FlowRun], *, now: datetime, leads: Leads) -> list[datetime]:
    """When those of the runs are to be claimed that are not to be claimed yet."""
    times = (start_time(flow_run, leads) for flow_run in flow_runs)
    return [time for time in times if time is not None and time > now]


class Agenda:
    """When to ask the server again, and how far ahead; the memory of one poller.

    Every `interval` seconds, spread by 30 % either way so that daemons do not ask in step (PROTOCOL 8), a look ahead:
    up to the next such look. In between, when a run found by a look is to be claimed, and some times after a hint, the
    last of which is a look ahead, too.
    `monotonic` is a clock in seconds, `random` gives numbers in [0, 1).
    """

    def __init__(
        self, *, interval: float, random: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._interval = max(SHORTEST_INTERVAL, min(interval, LONGEST_INTERVAL))
        self._random = random
        self._monotonic = monotonic
        self._next_look = monotonic()
        self._look_owed = False
        self._timers: set[datetime] = set()
        self._looks: int | None = None
        self._hints = 0

    @property
    def reach(self) -> timedelta:
        """How far a look ahead has to see, leads aside: until the next one has been answered."""
        return timedelta(seconds=1.3 * self._interval + 1.0)

    @property
    def hinted(self) -> bool:
        """Whether the next question is the first one after a hint."""
        return self._looks == 0

    @property
    def question_is_due(self) -> bool:
        """Whether the interval has passed, so that a question is to be put, if only for the server's sake."""
        return self._monotonic() >= self._next_look

    @property
    def look_is_due(self) -> bool:
        """Whether the next question is to be a look ahead."""
        return self._look_owed or self.question_is_due

    @property
    def one_hint(self) -> bool:
        """Whether there was one hint, and none before it that is not answered yet."""
        return self._hints == 1

    def is_time(self, *, now: datetime) -> bool:
        """Whether a run that was found before is to be claimed now."""
        return any(time <= now for time in self._timers)

    def hint(self) -> bool:
        """There may be a run to claim. Whether to ask now; not when a question comes soon in any case.

        So a flood of hints is no flood of questions.
        """
        rings = self._looks is None or self._looks > 1
        self._looks = 0
        self._hints += 1
        return rings

    def expect(self) -> None:
        """The server's scheduler may soon make runs: look ahead when it has."""
        self._next_look = min(self._next_look, self._monotonic() + SCHEDULER_ROUND)

    def begin(self, *, now: datetime) -> None:
        """A question is about to be put; a hint that comes after this wants another one."""
        self._looks = None if self._looks is None else self._looks + 1
        if self._looks is not None and self._looks > len(PAUSES_AFTER_HINT):
            # What was heard of was not to be claimed yet, or was somebody else's.
            self._looks, self._hints = None, 0
            self._next_look = min(self._next_look, self._monotonic())
        self._timers = {time for time in self._timers if time > now}

    def looked(self) -> None:
        """A look ahead has been answered; the times that it found are to be noted after this."""
        self._look_owed = False
        self._put_off()
        self._timers.clear()

    def asked_for_nothing(self) -> None:
        """The question of the interval was put without asking for runs: the look is made up for when there is room."""
        self._look_owed = True
        self._put_off()

    def _put_off(self) -> None:
        self._next_look = self._monotonic() + self._interval * (0.7 + 0.6 * self._random())

    def note(self, times: Iterable[datetime]) -> None:
        """Ask again at these times."""
        self._timers.update(times)

    def found(self, runs: int) -> None:
        """So many runs were claimed: once it is as many as hints were heard, these have been answered."""
        self._hints = max(0, self._hints - runs)
        if not self._hints:
            self.rest()

    def answered(self) -> None:
        """The one hint has been answered without a question; one that comes after this wants its own."""
        self._looks, self._hints = None, 0

    def rest(self) -> None:
        """Nothing more is to be learnt from asking after the hints so far."""
        if self._looks:
            self._looks, self._hints = None, 0

    def delay(self, *, now: datetime) -> float:
        """Seconds until the next question."""
        delay = self._next_look - self._monotonic()
        if self._looks is not None:
            delay = min(delay, PAUSES_AFTER_HINT[max(0, self._looks - 1)])
        if self._timers:
            delay = min(delay, (min(self._timers) - now).total_seconds() + AFTER_DUE)
        return max(0.0, delay)
