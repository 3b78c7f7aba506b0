"""When to have a server collect its garbage: before many runs are begun, so that it does not while they are.

A transaction on SQLite that fails with "database is locked" leaves a cursor behind which only Python's collector frees.
If the collector comes by in the server's event loop while that cursor's connection waits for somebody else's write, the
server stands still for a minute (docs/performance.md). A full collection of a Prefect server is rare, and after many
failures the next one is dangerous, unless it takes place while nobody writes: so it is brought about in a quiet moment.

Owns the judgement that there may be such garbage, that the moment is quiet, and that the server has collected. Does not
own how a server is made to (`worker.api.client`), what makes transactions fail (`late_marking`, `arrivals`), and what
waits meanwhile (`poller`, `serving`).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from worker.api.errors import ApiError
from worker.api.models import FlowRun

# With fewer runs than that to begin, nothing is done: they are over soon.
MANY = 8
# So many failed transactions are reason enough.
FAILURES = 2
# How long after a collection the server may need another one, in seconds: two hundred runs a minute, and the marking of a
# hundred, were seen to bring about one in eight.
APART = 3.5
# For how long nothing is begun before a collection, in seconds, so that what goes on is over: runs that have begun, which
# are not waited for longer as they may go on for hours, and those that are starting. A collection that meets one of them
# is what it is to prevent.
QUIET = 2.0
LONGEST_QUIET = 3.0
STEP = 0.05
# An answer that took this share of the longest one had a full collection in it: 0.4 s, and 0.005 s without. About seven
# requests bring one about.
NOTICED = 0.5
MOST_REQUESTS = 10

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Garbage:
    """What is known at one moment, in seconds of one clock.

    `failures`: transactions of the server that are likely to have failed since it `collected`, which we saw to. `needed`
    is since when there has been a reason to collect; None while there is none. `backlog`: many runs can be begun.
    """

    failures: int = 0
    needed: float | None = None
    backlog: bool = False
    collected: float = NEVER


def judge(garbage: Garbage, *, failures: int, marking: bool, now: float) -> Garbage:
    """As of now so many more transactions have failed, and runs are being marked as Late, or not."""
    failures += garbage.failures
    if not marking and failures < FAILURES:
        return replace(garbage, failures=failures, needed=None)
    return replace(garbage, failures=failures, needed=now if garbage.needed is None else garbage.needed)


def hold(garbage: Garbage, *, in_flight: int, starting: int, now: float) -> float | None:
    """For how many seconds nothing should be begun so that the server can collect then; None when it need not."""
    if garbage.needed is None or not garbage.backlog:
        return None
    waited = now - max(garbage.needed, garbage.collected + APART)
    if waited < 0:
        return None
    unquiet = (in_flight and waited < QUIET) or (starting and waited < LONGEST_QUIET)
    return STEP if unquiet else 0.0


class Tidying:
    """The garbage of one server; one for the daemon's life.

    `collect` brings the server nearer to a collection. `marking` says whether it marks many runs as Late, `in_flight` and
    `starting` how many runs there are of ours; `monotonic` is a clock in seconds.
    """

    def __init__(
        self,
        *,
        collect: Callable[[], Awaitable[None]],
        marking: Callable[[], bool],
        in_flight: Callable[[], int],
        starting: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._collect = collect
        self._marking = marking
        self._in_flight = in_flight
        self._starting = starting
        self._monotonic = monotonic
        self._garbage = Garbage()
        self._looked = False
        # How long the answer took that had a collection in it, in seconds.
        self._longest: float | None = None
        self._log = structlog.get_logger()

    def failed(self, times: int = 1) -> None:
        """So many of the server's transactions are likely to have failed."""
        self._garbage = judge(self._garbage, failures=times, marking=self._marking(), now=self._monotonic())

    def look(self, flow_runs: Sequence[FlowRun], *, now: datetime) -> None:
        """These runs of ours wait now."""
        due = [one for one in flow_runs if (one.next_scheduled_start_time or now) <= now]
        # At first: those that were marked before our time.
        late = 0 if self._looked else sum(one.state_name == "Late" for one in due)
        self._looked = True
        self._garbage = replace(self._garbage, backlog=len(due) >= MANY)
        self.failed(late)

    def pause(self) -> float:
        """For how many seconds nothing should be begun, so that there is a quiet moment to collect in; 0 for none."""
        return self._hold() or 0.0

    async def tidy(self) -> None:
        """Have the server collect, if it had better, and this is the time; many runs are about to be begun."""
        if self._hold() != 0.0:
            return
        began, requests = self._monotonic(), 0
        try:
            if self._longest is None:
                requests += await self._collect_once()
            requests += await self._collect_once()
        except ApiError as error:
            self._log.debug("server.not_tidied", reason=str(error))
        else:
            self._log.debug("server.tidied", seconds=round(self._monotonic() - began, 3), requests=requests)
        self._garbage = replace(self._garbage, failures=0, needed=None, collected=self._monotonic())
        self.failed(0)

    async def _collect_once(self) -> int:
        """Go on until the server is seen to collect; how many requests that took.

        As long as it is not known how long that takes, so many requests are made that it must have collected.
        """
        longest = 0.0
        for number in range(1, MOST_REQUESTS + 1):
            asked = self._monotonic()
            await self._collect()
            seconds = self._monotonic() - asked
            if self._longest is not None and seconds >= NOTICED * self._longest:
                return number
            longest = max(longest, seconds)
        self._longest = longest
        return MOST_REQUESTS

    def _hold(self) -> float | None:
        return hold(
            self._garbage, in_flight=self._in_flight(), starting=self._starting(), now=self._monotonic()
        )
