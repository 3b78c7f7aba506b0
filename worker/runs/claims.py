"""Winning a flow run: Scheduled to Pending, exactly once among all workers (PROTOCOL 2.6).

Owns the judgement whether a run is ours when answers are lost, late or refused. A finished run accepts
Pending, so a claim is never repeated on the strength of an old poll answer: after any try that was not
answered, the run is read again, and the claim goes on only if nobody has touched it.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, assert_never
from uuid import UUID, uuid4

import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotFound
from worker.api.models import FlowRun, SetStateAnswer, State, StateType
from worker.metrics import ClaimResult

# How often one claim is proposed before the run is left to a later poll, and how long to wait in between:
# SQLite servers refuse writes for milliseconds (PROTOCOL 1.5).
TRIES = 6
FIRST_PAUSE = 0.1
# How long the answer to a claim tells how the run stands, in seconds.
LONGEST_SINCE_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Claim:
    """A flow run that is ours: the server moved it from Scheduled to Pending on our proposal.

    `cancelling`: the run is known to be cancelled since.
    """

    flow_run: FlowRun
    transition_id: UUID
    cancelling: bool = False
    result: ClassVar = ClaimResult.WON


@dataclass(frozen=True, slots=True)
class Lost:
    """A flow run that is not ours to run, and why."""

    reason: str
    result: ClassVar = ClaimResult.LOST


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A claim of which nobody knows whether the server has taken it, or will still, and why not."""

    reason: str
    result: ClassVar = ClaimResult.UNANSWERED


@dataclass(frozen=True, slots=True)
class Orphaned:
    """A flow run nobody can ever claim, because its deployment is gone."""

    result: ClassVar = ClaimResult.ORPHANED


class Standing(StrEnum):
    """How a run stands towards a claim of ours whose answer is not known."""

    UNTOUCHED = "nobody has claimed it"
    OURS = "our claim has been accepted"
    OURS_CANCELLING = "our claim has been accepted, and the run is being cancelled"
    THEIRS = "it is another worker's, or over"
    GONE = "the run no longer exists"
    UNKNOWN = "the server does not say"


class Claims:
    """Claims runs and finds out what became of a claim; one for the daemon's life.

    `sleep` waits between two tries, in seconds.
    """

    def __init__(self, *, client: PrefectClient, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._client = client
        self._sleep = sleep
        self._log = structlog.get_logger()
        self.contested = False
        """Whether the last claim was lost, or nobody knows: what is done for the next one may be in vain."""

    async def claim(
        self, flow_run: FlowRun, *, transition_id: UUID | None = None
    ) -> Claim | Lost | Orphaned | Unanswered:
        """Claim a run. Raises nothing the server can cause."""
        answer = await self._claim(flow_run, transition_id or uuid4())
        self.contested = not isinstance(answer, Claim)
        return answer

    async def _claim(self, flow_run: FlowRun, transition_id: UUID) -> Claim | Lost | Orphaned | Unanswered:
        """Propose Pending, under this name only: under another one two workers could both win.

        The transition id is the same at every try. A try is sent once; whatever goes wrong with it, the
        run itself tells how things stand before the next one.
        """
        pause = FIRST_PAUSE
        reason = "it was not proposed"
        for attempt in range(1, TRIES + 1):
            try:
                answer = await self._client.set_state(
                    flow_run.id,
                    type=StateType.PENDING,
                    name="Pending",
                    transition_id=transition_id,
                    max_tries=1,
                )
            except NotFound:
                return Lost(Standing.GONE.value)
            except ApiError as error:
                self._log.debug("flow_run.claim_unanswered", reason=str(error), attempt=attempt)
                reason = str(error)
            else:
                judged = judge_claim(answer, flow_run=flow_run, transition_id=transition_id)
                if isinstance(judged, Lost) and _is_scheduled(answer):
                    return await self._why_refused(flow_run, judged)
                return judged
            standing = await self.standing(flow_run, transition_id)
            match standing:
                case Standing.OURS | Standing.OURS_CANCELLING:
                    # A cancellation is the execution's to carry out.
                    cancelling = standing is Standing.OURS_CANCELLING
                    return Claim(flow_run=flow_run, transition_id=transition_id, cancelling=cancelling)
                case Standing.THEIRS | Standing.GONE:
                    return Lost(standing.value)
                case Standing.UNKNOWN:
                    return Unanswered(reason)
                case Standing.UNTOUCHED:
                    await self._sleep(pause)
                    pause *= 2
                case _:
                    assert_never(standing)
        return Unanswered(reason)

    async def _why_refused(self, flow_run: FlowRun, lost: Lost) -> Lost | Orphaned:
        """A run that the server will not give to anybody may have lost its deployment (PROTOCOL 2.6)."""
        try:
            if flow_run.deployment_id is not None:
                await self._client.read_deployment(flow_run.deployment_id)
        except NotFound:
            return Orphaned()
        except ApiError as error:
            self._log.debug("flow_run.refusal_unexplained", reason=str(error))
        return lost

    async def standing(self, flow_run: FlowRun, transition_id: UUID, *, held: bool = False) -> Standing:
        """Ask the server how a run stands that we have proposed to claim; waits out an unreachable server.

        `held`: the claim is known to have been accepted, so whoever cancels the run now cancels our claim.
        """
        try:
            current = await self._client.read_flow_run(flow_run.id)
            history: Sequence[State] = ()
            if current.state_type is StateType.CANCELLING:
                if held:
                    return Standing.OURS_CANCELLING
                history = await self._client.read_flow_run_states(flow_run.id)
        except NotFound:
            return Standing.GONE
        except ApiError as error:
            # An answer that even patience does not get.
            self._log.debug("flow_run.standing_unknown", reason=str(error))
            return Standing.UNKNOWN
        return judge_standing(polled=flow_run, current=current, history=history, transition_id=transition_id)

    async def settled(self, flow_run: FlowRun, transition_id: UUID, *, answered: bool) -> Standing:
        """How a run stands that we have proposed to claim, and will not start.

        With the answer to our claim still on its way, the same claim is made again: what that says is certain.
        """
        standing = await self.standing(flow_run, transition_id, held=answered)
        if answered or standing is not Standing.UNTOUCHED:
            return standing
        match await self.claim(flow_run, transition_id=transition_id):
            case Claim():
                return Standing.OURS
            case Lost() | Orphaned():
                return Standing.THEIRS
            case Unanswered():
                return Standing.UNKNOWN


def judge_claim(answer: SetStateAnswer, *, flow_run: FlowRun, transition_id: UUID) -> Claim | Lost:
    """Did we win? Accepted, or the current Pending state carries our id."""
    state = answer.state
    if state is None:
        return Lost(f"the server answered {answer.status.value} without a state")
    if state.type is StateType.PENDING and answer.accepted:
        return Claim(flow_run=flow_run, transition_id=transition_id)
    return Lost(answer.reason or f"the run is now {state.name or state.type.value}")


def _is_scheduled(answer: SetStateAnswer) -> bool:
    return answer.state is not None and answer.state.type is StateType.SCHEDULED


def judge_standing(
    *, polled: FlowRun, current: FlowRun, history: Sequence[State], transition_id: UUID
) -> Standing:
    """How the run stands, from what was polled, what is now, and (for a cancelled one) what has been."""
    state = current.state
    if state is not None and state.type is StateType.PENDING:
        ours = state.state_details.transition_id == transition_id
        return Standing.OURS if ours else Standing.THEIRS
    if current.state_type is StateType.SCHEDULED:
        unchanged = polled.state_id is None or current.state_id == polled.state_id
        return Standing.UNTOUCHED if unchanged else Standing.THEIRS
    if current.state_type is StateType.CANCELLING and last_claim(history) == transition_id:
        return Standing.OURS_CANCELLING
    return Standing.THEIRS


def last_claim(history: Sequence[State]) -> UUID | None:
    """The transition id of the run's latest claim, from all states it has had."""
    claims = [one for one in history if one.type is StateType.PENDING]
    last = max(claims, key=_time, default=None)
    return last and last.state_details.transition_id


def _time(state: State) -> float:
    return state.timestamp.timestamp() if state.timestamp else 0.0
