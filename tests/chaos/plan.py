"""What a chaos run is going to do, drawn beforehand from a seeded generator: the same seed, the same plan.

Owns numbers and their order. At whom a blow is aimed is decided when it falls, among those who are there then.
"""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

SHORTEST_RUN = 0.3
USUAL_RUN = 3.0
# Some runs outlive a daemon's absence and its start: those are there to be adopted.
LONG_SHARE = 0.3
LONGEST_RUN = 15.0
MEAN_PAUSE = 0.4
KILLS_PER_SERVER_RESTART = 25
RUNS_PER_CANCEL = 12


class RunKind(StrEnum):
    """ENGINE: a flow in Prefect's engine; COMMAND: a small program that reports its own states."""

    ENGINE = "engine"
    COMMAND = "command"


class Blow(StrEnum):
    """What is done to the installation; the first three are the kills that are asked for."""

    KILL_DAEMON = "SIGKILL of a daemon"
    STOP_DAEMON = "SIGTERM of a daemon"
    KILL_FLOW = "SIGKILL of a flow"
    RESTART_SERVER = "restart of the server"
    CANCEL = "cancel of a run"


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for; `limit` is that of each daemon, `patience` the seconds without progress that end the waiting."""

    runs: int
    kills: int
    daemons: int = 3
    limit: int = 4
    seed: int = 0
    engine_share: float = 0.25
    patience: float = 150.0


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that works for `seconds`, created `pause` seconds after the one before it."""

    number: int
    kind: RunKind
    seconds: float
    pause: float


@dataclass(frozen=True, slots=True)
class PlannedBlow:
    """Falls once `after` runs have been created, or as soon after that as there is something to hit."""

    after: int
    blow: Blow


@dataclass(frozen=True, slots=True)
class Plan:
    """Runs in the order of their creation, blows in the order in which they become due."""

    runs: tuple[PlannedRun, ...]
    blows: tuple[PlannedBlow, ...]


def draw(options: Options, random: Random) -> Plan:
    """The plan of these options."""
    engines = round(options.runs * options.engine_share)
    kinds = [RunKind.ENGINE] * engines + [RunKind.COMMAND] * (options.runs - engines)
    random.shuffle(kinds)
    runs = tuple(
        PlannedRun(
            number=number,
            kind=kind,
            seconds=_seconds(random),
            pause=random.expovariate(1 / MEAN_PAUSE),
        )
        for number, kind in enumerate(kinds)
    )
    blows = [
        PlannedBlow(after=random.randint(1, options.runs), blow=blow)
        for blow, count in _counts(options).items()
        for _ in range(count)
    ]
    random.shuffle(blows)
    return Plan(runs=runs, blows=tuple(sorted(blows, key=lambda one: one.after)))


def _seconds(random: Random) -> float:
    if random.random() < LONG_SHARE:
        return round(random.uniform(USUAL_RUN, LONGEST_RUN), 2)
    return round(random.uniform(SHORTEST_RUN, USUAL_RUN), 2)


def _counts(options: Options) -> dict[Blow, int]:
    flows, stops = options.kills * 3 // 10, options.kills // 4
    return {
        Blow.KILL_DAEMON: options.kills - flows - stops,
        Blow.STOP_DAEMON: stops,
        Blow.KILL_FLOW: flows,
        Blow.RESTART_SERVER: -(-options.kills // KILLS_PER_SERVER_RESTART),
        Blow.CANCEL: options.runs // RUNS_PER_CANCEL,
    }
