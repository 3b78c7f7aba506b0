"""What the driver notes while it works: which runs it created, and what it did to whom and when."""

from dataclasses import dataclass, field

from tests.chaos.plan import Blow, PlannedRun
from tests.chaos.verdict import Kill


@dataclass(frozen=True, slots=True)
class Created:
    """A run of the plan, and its id on the server."""

    run_id: str
    planned: PlannedRun


@dataclass(slots=True)
class Notes:
    """Outages are in seconds since the epoch, as the server's states are; all other times in seconds since boot.

    `epoch` is `began` since the epoch. `cancelled` holds the runs whose cancellation the server took, `blows` what was struck and whom it hit.
    """

    created: dict[str, Created] = field(default_factory=dict[str, Created])
    kills: list[tuple[str, Kill]] = field(default_factory=list[tuple[str, Kill]])
    cancelled: set[str] = field(default_factory=set[str])
    blows: list[tuple[float, Blow, str]] = field(default_factory=list[tuple[float, Blow, str]])
    outages: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    began: float = 0.0
    epoch: float = 0.0
    settled: float = 0.0
