"""The flows that are measured: one that does nothing, one that waits."""

import os
import time
from pathlib import Path

from prefect import flow


@flow
def noop() -> None:
    """Nothing: all the time it takes is the machinery's."""


@flow
def sleeper(seconds: float, pid_file: str | None = None) -> None:
    """Sleep, after writing down by whom."""
    if pid_file is not None:
        partial = Path(f"{pid_file}.partial")
        partial.write_text(str(os.getpid()))
        partial.rename(pid_file)
    time.sleep(seconds)
