"""A run with a real engine, deployed by the driver; imported by the engine from this directory."""

import os
import time

import ledger
from prefect import flow
from prefect.runtime import flow_run


@flow
def chaos() -> None:
    """Begin, work, end; the engine tells the server."""
    writer = ledger.Writer(os.environ, run_id=str(flow_run.id))
    writer.begin()
    time.sleep(float(os.environ[ledger.SECONDS]))
    writer.end()
