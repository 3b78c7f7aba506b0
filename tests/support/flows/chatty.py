"""A flow that prints on request: a line for every one the test writes to a file."""

import time
from pathlib import Path

from prefect import flow


@flow
def chatty(out: str, script: str) -> None:
    """Print what is added to `script`, until a line says "end"."""
    told = 0
    while True:
        lines = Path(script).read_text().splitlines() if Path(script).exists() else []
        for line in lines[told:]:
            if line == "end":
                return
            print(line, flush=True)
        told = len(lines)
        time.sleep(0.05)
