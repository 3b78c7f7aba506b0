"""Gathering what a chaos run has left to be judged: the runs' histories, the ledger, what remains.

Owns putting the witnesses of one run together. Judges nothing.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.chaos import ledger
from tests.chaos.driver import Driver
from tests.chaos.ledger import Line
from tests.chaos.notes import Created, Notes
from tests.chaos.plan import RunKind
from tests.chaos.remains import held_slots, journal_entries, left_directories, left_processes
from tests.chaos.verdict import FINAL, Kill, Remains, RunRecord, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything there is; `strangers` are ledger lines of runs that nobody created, `events` the daemons' logs."""

    runs: tuple[RunRecord, ...]
    strangers: tuple[Line, ...]
    remains: Remains
    notes: Notes
    events: tuple[dict[str, Any], ...]


def gather(driver: Driver) -> Evidence:
    """Taken once, when all daemons have been stopped and the server still runs."""
    notes = driver.notes
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for line in ledger.read(driver.ledger):
        lines[line.run_id].append(line)
    kills: defaultdict[str, list[Kill]] = defaultdict(list)
    for run_id, kill in notes.kills:
        kills[run_id].append(kill)
    runs = tuple(
        _record(
            one,
            states=_states(driver, one.run_id),
            lines=lines.pop(one.run_id, []),
            kills=kills[one.run_id],
            notes=notes,
        )
        for one in notes.created.values()
    )
    return Evidence(
        runs=runs,
        strangers=tuple(line for rest in lines.values() for line in rest),
        remains=Remains(
            processes=left_processes(driver.fleet),
            directories=left_directories(driver.fleet.state_root),
            journal_entries=journal_entries(driver.fleet.state_root),
            slots=held_slots(driver.fleet, active_slots=driver.api.pool(driver.pool)["active_slots"]),
            bad_ends=tuple(driver.fleet.bad_ends),
        ),
        notes=notes,
        events=tuple(driver.fleet.log_events()),
    )


def _record(
    one: Created,
    *,
    states: tuple[State, ...],
    lines: Sequence[Line],
    kills: Sequence[Kill],
    notes: Notes,
) -> RunRecord:
    claimed = next((state.at for state in states if state.type == "PENDING"), None)
    over = states[-1].at if states and states[-1].type in FINAL else math.inf
    met_outage = claimed is not None and any(
        claimed <= ended and began <= over for began, ended in notes.outages
    )
    return RunRecord(
        run_id=one.run_id,
        kind=one.planned.kind,
        states=states,
        lines=tuple(sorted(lines, key=lambda line: line.at)),
        kills=tuple(kills),
        cancelled=one.run_id in notes.cancelled,
        met_outage=met_outage and one.planned.kind is RunKind.ENGINE,
    )


def _states(driver: Driver, run_id: str) -> tuple[State, ...]:
    return tuple(
        State(
            type=state["type"],
            name=state["name"],
            message=state["message"] or "",
            at=datetime.fromisoformat(state["timestamp"]).timestamp(),
        )
        for state in driver.api.states(run_id)
    )
