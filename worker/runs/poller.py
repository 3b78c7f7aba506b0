"""Asks the server for due runs, when and for as many as there is reason to.

What is started, skipped or left of an answer is `serving`'s, the words of the question are `questions`', and when the
next one is due is `lookahead`'s judgement.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from uuid import UUID

import structlog

from worker.api.models import FlowRun
from worker.runs.in_flight import InFlight
from worker.runs.lookahead import PAUSE_BEFORE_QUESTION, Agenda, Leads, later
from worker.runs.questions import Questions
from worker.runs.serving import Served, Serving
from worker.runs.shortcut import Shortcut
from worker.runs.wake import Wake

# How many more runs are asked for than there is room for: some claims are lost to other workers. A server refuses a
# limit above its own (200 unless configured), so a large one is left to it.
SPARE = 8
MOST_LIMITED = 50
# How long a poll that is to be the only one waits while nothing may be claimed, before it looks again, in seconds.
RUN_ONCE_PAUSE = 1.0


class Poller:
    """Asks, and has each answer served.

    `agenda` says when to ask, `leads` how long before its due time a run is claimed. With `run_once` one step serves
    all that is found. `wake` is for the loop that calls `poll_once`: rung when the next question cannot wait.
    `may_claim` is asked before each question: None, or why nothing is to be claimed now. `pause`: for how many seconds
    the server is to be left alone. `settled` waits for what is being asked about runs that were heard of: a server that
    is slow to answer that may be making more of them. `shortcut` finds a run without the question.
    """

    def __init__(
        self,
        *,
        questions: Questions,
        serving: Serving,
        agenda: Agenda,
        leads: Leads,
        in_flight: InFlight,
        wake: Wake,
        may_claim: Callable[[], str | None],
        pause: Callable[[], float],
        now: Callable[[], datetime],
        run_once: bool = False,
        sleep: Callable[[float], Awaitable[None]],
        settled: Callable[[], Awaitable[None]],
        shortcut: Shortcut,
    ) -> None:
        self._questions = questions
        self._serving = serving
        self._agenda = agenda
        self._leads = leads
        self._in_flight = in_flight
        self._wake = wake
        self._may_claim = may_claim
        self._pause = pause
        self._now = now
        self._run_once = run_once
        self._sleep = sleep
        self._settled = settled
        self._shortcut = shortcut
        self._log = structlog.get_logger()
        # Whether the question was due by the interval.
        self._looked = True
        self._idle = False
        self._ended = False

    def hint(self, flow_run_id: UUID | None = None) -> None:
        """Somebody heard that a run of our pool may have become claimable, or may have missed hearing it."""
        self._idle = False
        self._shortcut.heard(flow_run_id)
        if self._agenda.hint():
            self._wake.set()

    @property
    def ended(self) -> bool:
        """Whether nothing is asked any more."""
        return self._ended

    def end(self) -> None:
        """Nothing is asked any more: the daemon claims no further run."""
        self._ended = True

    @property
    def idle(self) -> bool:
        """Whether no run was to be claimed by the last answer, and none has been heard of since."""
        return self._idle

    @property
    def would_start(self) -> bool:
        """Whether a run that was found now would be started at once, as far as is known."""
        return not self._ended and self._in_flight.room > 0 and not self._pause()

    @property
    def last_polled(self) -> datetime | None:
        """When the server last answered the question; None when it has not yet."""
        return self._questions.last_answered

    def expect_scheduler(self, _flow_run_id: UUID | None = None) -> None:
        """A deployment has changed: runs may be claimable now, and others when the server's scheduler made them."""
        self._agenda.expect()
        self.hint()

    async def poll_once(self) -> float:
        """Ask, skip what has become too late, claim what can start; returns the seconds until the next question.

        Without room for another run, or when nothing may be claimed, a question that is due is still put, for no
        runs at all: it keeps the queues READY (PROTOCOL 2.2).
        """
        while pause := self._pause():
            self._in_flight.want(wanted=True)
            if not self._run_once:
                return pause
            await self._sleep(pause)
        withheld = self._may_claim()
        if withheld is None and await self._start_rest():
            return self._pause() or self._agenda.delay(now=self._now())
        if self._agenda.hinted and (delay := await self._attend_to_hint(withheld)) is not None:
            return delay
        self._agenda.begin(now=self._now())
        if withheld is not None or self._in_flight.room == 0:
            await self._ask_for_nothing(withheld)
            return self._agenda.delay(now=self._now())
        self._in_flight.want(wanted=False)
        self._looked = self._agenda.look_is_due
        self._shortcut.asked()
        answer, limit = await self._ask_for_startable()
        served = await self._serve(answer)
        cut_short = served.cut_off or served.skipped or served.left
        complete = limit is None or len(answer) < limit
        self._shortcut.answered(clear=complete and not cut_short and not self._questions.refused)
        if not cut_short and not complete and self._in_flight.room:
            # Nearly nothing of it could be claimed; there may be more behind it.
            served = await self._serve(await self._questions.ask(lead=self._leads.longest, limit=None))
        if self._run_once:
            await self._serve_rest(served)
        if served.cut_off or served.skipped:
            return 0.0
        return self._pause() or self._agenda.delay(now=self._now())

    async def _attend_to_hint(self, withheld: str | None) -> float | None:
        """Start the run that was heard of without a question, or wait for the moment to put it.

        Returns the seconds until the next question; None when it is to be put now.
        """
        began = self._now()
        found = await self._find_heard() if withheld is None else None
        if found is not None:
            return self._pause() or await self._serve_heard(found)
        await self._sleep(max(0.0, PAUSE_BEFORE_QUESTION - (self._now() - began).total_seconds()))
        await self._settled()
        return None if self._run_once else self._pause() or None

    async def _find_heard(self) -> FlowRun | None:
        """A run that can be claimed without the question, which is not owed for another reason."""
        owed = not self._agenda.one_hint or self._agenda.look_is_due or self._agenda.is_time(now=self._now())
        if owed or self._serving.judges or self._run_once or self._in_flight.room == 0:
            return None
        return await self._shortcut.find()

    async def _serve_heard(self, flow_run: FlowRun) -> float:
        """Start the one run that there is; returns the seconds until the next question."""
        self._in_flight.want(wanted=False)
        self._shortcut.taken()
        self._agenda.answered()
        served = await self._serving.serve([flow_run], looked=False, asked=False)
        self._idle = False
        self._agenda.note(served.ahead)
        if not served.started and not served.ahead:
            # Whatever it is, the server's answer tells.
            self.hint()
        return self._agenda.delay(now=self._now())

    async def _start_rest(self) -> bool:
        """Start runs of the last answer that there was no room for; True when there is no room again.

        Only while there is no news, and each is looked at again: that is kinder to the server than a question, which
        makes it write (PROTOCOL 2.3).
        """
        rest = self._serving.forget_rest()
        stale = self._serving.judges or self._agenda.hinted or self._agenda.look_is_due
        if not rest or stale or self._in_flight.room == 0:
            return False
        served = await self._serving.start_rest(rest)
        self._agenda.found(served.started)
        return served.left

    async def _serve_rest(self, served: Served) -> None:
        """Go on until everything that was found is served, or the slots are used up: there is no other poll."""
        while (served.left or served.cut_off) and self._in_flight.free != 0:
            pause = self._pause() or (RUN_ONCE_PAUSE if self._may_claim() is not None else 0.0)
            if pause:
                await self._sleep(pause)
            elif not self._in_flight.room:
                await self._in_flight.wait_for_change()
            else:
                served = await self._serve(await self._questions.ask(lead=self._leads.longest, limit=None))

    async def _ask_for_nothing(self, withheld: str | None) -> None:
        self._in_flight.want(wanted=True)
        self._agenda.rest()
        if self._agenda.question_is_due:
            await self._questions.ask(lead=self._leads.longest, limit=0)
            self._agenda.asked_for_nothing()
            self._log.debug("poll.done", found=0, in_flight=len(self._in_flight), withheld=withheld)

    async def _ask_for_startable(self) -> tuple[list[FlowRun], int | None]:
        """The runs that may be claimed now, asking no more of the server than is needed; and the limit set to them.

        The server puts priority before time and cuts the answer off, so runs that are not due yet can push out runs
        that are: an answer with any of those is no answer to what can start (PROTOCOL 2.3).
        """
        if self._agenda.look_is_due:
            runs = await self._questions.ask(lead=self._leads.longest + self._agenda.reach, limit=None)
            self._agenda.looked()
            ahead = later(runs, now=self._now(), leads=self._leads)
            self._agenda.note(ahead)
            if not ahead:
                return runs, None
        enough = self._in_flight.room + SPARE
        limit = None if self._serving.judges or self._run_once or enough > MOST_LIMITED else enough
        return await self._questions.ask(lead=self._leads.longest, limit=limit), limit

    async def _serve(self, runs: Sequence[FlowRun]) -> Served:
        served = await self._serving.serve(runs, looked=self._looked)
        self._agenda.note(served.ahead)
        self._agenda.found(served.started)
        self._idle = served.idle
        return served
