"""A flow whose process lives on after the flow has ended."""

import atexit
import os
import time
from pathlib import Path

from prefect import flow
from probe import note


def _wait(gate: str) -> None:
    while not Path(gate).exists():
        time.sleep(0.05)


@flow
def lingers(out: str, gate: str) -> None:
    """End at once, but leave the process only when the test has created the file `gate`."""
    atexit.register(_wait, gate)
    note(out, "attempt", pid=os.getpid())
