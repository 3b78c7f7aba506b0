"""What is measured: the figures, how they read, and the targets they are held to."""

from dataclasses import dataclass
from enum import StrEnum

from bench.server import Database
from bench.workers import Candidate


class Metric(StrEnum):
    """A figure of one candidate."""

    START = "start to online"
    IDLE_PSS = "idle memory, all processes"
    IDLE_PSS_WORKER = "idle memory, worker alone"
    IDLE_PSS_FORK_SERVER = "idle memory, fork server alone"
    IDLE_CPU = "idle CPU"
    IDLE_REQUESTS = "requests per idle minute"
    RUN_REQUESTS = "requests per run"
    SCHEDULED_PENDING = "Scheduled to Pending"
    PENDING_RUNNING = "Pending to Running"
    SCHEDULED_RUNNING = "Scheduled to Running"
    COLD_PENDING_RUNNING = "Pending to Running, cold start"
    LATENESS = "lateness"
    BURST = "burst"
    RUN_CPU = "CPU time per run"
    FLOW_PSS = "memory per running flow"
    GROWTH = "growth of the worker alone"
    GROWTH_FORK_SERVER = "growth of the fork server"
    CANCEL = "cancel: request to Cancelled"
    CANCEL_GONE = "cancel: request to process gone"
    STOP_IDLE = "stop, idle: SIGTERM to exit"
    STOP_BUSY = "stop, with a 5 s flow running: SIGTERM to exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a metric is written: its unit, whether more is better, how many decimals.

    `ratio` is false where a ratio says nothing: values around zero, or times that measure different things.
    """

    unit: str
    ratio: bool = True
    more_is_better: bool = False
    decimals: int = 2


STYLES = {
    Metric.START: Style(unit="s"),
    Metric.IDLE_PSS: Style(unit="MB", decimals=1),
    Metric.IDLE_PSS_WORKER: Style(unit="MB", decimals=1),
    Metric.IDLE_PSS_FORK_SERVER: Style(unit="MB", decimals=1),
    Metric.IDLE_CPU: Style(unit="%"),
    Metric.IDLE_REQUESTS: Style(unit="", decimals=0),
    Metric.RUN_REQUESTS: Style(unit="", decimals=1),
    Metric.SCHEDULED_PENDING: Style(unit="s"),
    Metric.PENDING_RUNNING: Style(unit="s"),
    Metric.SCHEDULED_RUNNING: Style(unit="s"),
    Metric.COLD_PENDING_RUNNING: Style(unit="s"),
    Metric.LATENESS: Style(unit="s", ratio=False),
    Metric.BURST: Style(unit="runs/min", more_is_better=True, decimals=1),
    Metric.RUN_CPU: Style(unit="s"),
    Metric.FLOW_PSS: Style(unit="MB", decimals=1),
    Metric.GROWTH: Style(unit="MB", ratio=False),
    Metric.GROWTH_FORK_SERVER: Style(unit="MB", ratio=False),
    Metric.CANCEL: Style(unit="s"),
    Metric.CANCEL_GONE: Style(unit="s"),
    Metric.STOP_IDLE: Style(unit="s"),
    Metric.STOP_BUSY: Style(unit="s", ratio=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A target relative to stock: how many times better, at least."""

    metric: Metric
    case: str = ""
    against: Candidate
    times: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A target in the metric's own unit: how much, at most."""

    metric: Metric
    case: str = ""
    most: float


Target = Factor | Ceiling


def burst_case(limit: int, database: Database = Database.SQLITE) -> str:
    """The case of a burst at this limit, on this database of the server's."""
    return f"limit {limit}" if database is Database.SQLITE else f"limit {limit}, {database}"


def flows_case(count: int) -> str:
    """The case of so many concurrent flows."""
    return f"{count} flows"


def growth_case(runs: int) -> str:
    """The case of growth over so many runs."""
    return f"{runs:,} runs"


TARGETS: tuple[Target, ...] = (
    Factor(metric=Metric.SCHEDULED_RUNNING, against=Candidate.STOCK, times=30),
    Factor(metric=Metric.SCHEDULED_RUNNING, against=Candidate.TUNED, times=15),
    Factor(metric=Metric.PENDING_RUNNING, against=Candidate.STOCK, times=18),
    *(
        Factor(metric=Metric.BURST, case=burst_case(limit), against=Candidate.TUNED, times=7)
        for limit in (2, 4, 8)
    ),
    Factor(metric=Metric.FLOW_PSS, case=flows_case(10), against=Candidate.STOCK, times=2.3),
    Factor(metric=Metric.FLOW_PSS, case=flows_case(50), against=Candidate.STOCK, times=3),
    Factor(metric=Metric.START, against=Candidate.STOCK, times=5),
    Ceiling(metric=Metric.IDLE_PSS_WORKER, most=45),
    Ceiling(metric=Metric.IDLE_CPU, most=0.5),
    Ceiling(metric=Metric.GROWTH, case=growth_case(2000), most=2),
    Factor(metric=Metric.COLD_PENDING_RUNNING, against=Candidate.STOCK, times=1.5),
)
