"""Which runs made by a schedule are not worth running any more: `--max-late` and `--only-latest`.

Owns the judgement of one poll answer and the words that a skipped run ends with. Asking the server, claiming
and reporting are `serving`'s and the executions' business. With neither option nothing is ever skipped.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from worker.api.models import FlowRun, StateType

AWAITING_SLOT = "AwaitingConcurrencySlot"
_UNTOUCHED = ("Scheduled", "Late")
STANDING = frozenset(StateType) - {StateType.CANCELLED, StateType.CANCELLING}
"""States in which a run stands for the earlier ones of its schedule: once it has begun, they are as stale as before."""

SUPERSEDED = "Skipped: a later run of its schedule is due (--only-latest)."


@dataclass(frozen=True, slots=True)
class Series:
    """Runs of which the latest stands for the earlier ones: one schedule of one deployment, in one queue.

    Two schedules of a deployment may have different parameters, so a run of one is no substitute for a run of
    the other. A queue may be paused or served by others, so a run in it may not start when one in another would.
    """

    deployment_id: UUID
    schedule_id: UUID | None
    work_queue_id: UUID | None


@dataclass(frozen=True, slots=True)
class Due:
    """A run that a schedule made, and the time it was made for, which has come.

    `missed`: nobody has begun or moved it since, so that lateness may be a reason to skip it.
    """

    flow_run: FlowRun
    series: Series
    time: datetime
    missed: bool


@dataclass(frozen=True, slots=True)
class Skip:
    """A run to be cancelled instead of started, and why."""

    flow_run: FlowRun
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the runs of a poll answer, each list in the server's order."""

    starts: Sequence[FlowRun]
    skips: Sequence[Skip]


def due(flow_run: FlowRun, *, now: datetime) -> Due | None:
    """The run as one whose time has come by its schedule; None for all others.

    Those are the runs made by users, automations or other flows, and the ones ahead of their time. A run that
    has begun before (retried, resumed, rescheduled) is not missed, nor is one that somebody has moved: then the
    time it is scheduled for is not the one it was made for. A run that waits for a concurrency slot of its
    deployment is moved by the server again and again; it is as late as the time it was made for (PROTOCOL 2.6).
    """
    time = flow_run.expected_start_time
    if not flow_run.auto_scheduled or flow_run.deployment_id is None or time is None or time > now:
        return None
    waits = flow_run.state_name == AWAITING_SLOT
    unmoved = flow_run.state_name in _UNTOUCHED and flow_run.next_scheduled_start_time == time
    schedule = flow_run.created_by
    return Due(
        flow_run=flow_run,
        series=Series(flow_run.deployment_id, schedule.id if schedule else None, flow_run.work_queue_id),
        time=time,
        missed=flow_run.state_type is StateType.SCHEDULED and flow_run.run_count == 0 and (waits or unmoved),
    )


def all_due(flow_runs: Iterable[FlowRun], *, now: datetime) -> list[Due]:
    """Those of the runs whose time has come by their schedule."""
    return [one for flow_run in flow_runs if (one := due(flow_run, now=now)) is not None]


def latest_of_each(found: Iterable[Due]) -> dict[Series, Due]:
    """The latest run of each series; of two due at the same time everybody picks the same one."""
    latest: dict[Series, Due] = {}
    for one in found:
        known = latest.get(one.series)
        if known is None or _order(one) > _order(known):
            latest[one.series] = one
    return latest


def plan(
    flow_runs: Collection[FlowRun],
    *,
    now: datetime,
    max_late: timedelta | None = None,
    latest: Mapping[Series, Due] | None = None,
    stand_in: bool = True,
) -> Plan:
    """Sort the runs of a poll answer into those to start and those to skip.

    `max_late`: how long after its time a missed run is still started; None is for ever. `latest`: the latest run
    of each series, for only-latest; None keeps all. A missed run of a series that is not in `latest` is neither
    started nor skipped: the next poll knows more. An answer holds the oldest runs first and is cut off by the
    server and by limits of the pool and its queues (PROTOCOL 2.3), so the latest run may not be in it: with
    `stand_in` it takes the place of the first one it supersedes, and need not wait until a backlog is gone.
    """
    starts: dict[UUID, FlowRun] = {}
    skips: list[Skip] = []
    present = {flow_run.id for flow_run in flow_runs}
    for flow_run in flow_runs:
        one = due(flow_run, now=now)
        if one is None or not one.missed:
            starts[flow_run.id] = flow_run
        elif max_late is not None and now - one.time > max_late:
            skips.append(Skip(flow_run, _overdue(now - one.time, max_late)))
        elif latest is None:
            starts[flow_run.id] = flow_run
        elif (kept := latest.get(one.series)) is not None:
            if _order(one) >= _order(kept):
                starts[flow_run.id] = flow_run
                continue
            skips.append(Skip(flow_run, SUPERSEDED))
            if stand_in and kept.missed and kept.flow_run.id not in present:
                starts.setdefault(kept.flow_run.id, kept.flow_run)
    return Plan(tuple(starts.values()), tuple(skips))


def _order(one: Due) -> tuple[datetime, UUID]:
    return one.time, one.flow_run.id


def _overdue(late: timedelta, max_late: timedelta) -> str:
    return f"Skipped: it was due {_roughly(late)} ago, more than --max-late {_option(max_late)}."


def _roughly(span: timedelta) -> str:
    """The two largest units, such as "3 h 12 min" or "45 s"."""
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    first = next((position for position, (count, _) in enumerate(units) if count), None)
    if first is None:
        return "less than a second"
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2] if count)


def _option(span: timedelta) -> str:
    """The duration as the option takes it, in the largest unit that leaves no fraction."""
    seconds = span.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and not seconds % size:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
