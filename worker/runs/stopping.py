"""What becomes of the runs that the daemon's end cuts short."""

from dataclasses import dataclass
from enum import StrEnum


class Stop(StrEnum):
    """CRASH: ended and reported Crashed; RESCHEDULE: ended and scheduled again; DETACH: left to the next daemon."""

    CRASH = "crash"
    RESCHEDULE = "reschedule"
    DETACH = "detach"


@dataclass(slots=True)
class Stopping:
    """The way chosen, set before the executions are cancelled; one for the daemon's life.

    Whatever ends the daemon without having chosen leaves the flows alone.
    """

    how: Stop = Stop.DETACH
