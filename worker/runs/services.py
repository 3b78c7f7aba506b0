"""What every execution uses, made once by the daemon and shared."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from worker.api.client import PrefectClient
from worker.api.models import FlowRun
from worker.metrics import Metrics
from worker.processes.control import ControlChannel
from worker.processes.launcher import Launcher
from worker.processes.output import Mask
from worker.runs.claim_gate import ClaimGate
from worker.runs.claims import Claims
from worker.runs.hooks import HookRunner
from worker.runs.in_flight import InFlight
from worker.runs.journal import Journal
from worker.runs.lookahead import Leads
from worker.runs.outbox import Outbox
from worker.runs.preparation import Preparation
from worker.runs.readying import Readying
from worker.runs.states import States
from worker.runs.stopping import Stopping
from worker.runs.worker_events import WorkerEvents


@dataclass(frozen=True, slots=True)
class Services:
    """The daemon's services as an execution sees them.

    `kill_grace` is in seconds, `output_limit` in bytes, `python` the interpreter that flows run in.
    """

    client: PrefectClient
    metrics: Metrics
    claims: Claims
    states: States
    preparation: Preparation
    launcher: Launcher
    readying: Readying
    control: ControlChannel
    journal: Journal
    gate: ClaimGate
    stopping: Stopping
    in_flight: InFlight
    leads: Leads
    outbox: Outbox
    events: WorkerEvents
    hooks: HookRunner
    python: str
    now: Callable[[], datetime]
    worker_name: str
    hostname: str
    runs_directory: Path
    kill_grace: float
    output_limit: int
    print_output: Callable[[FlowRun, str], None]
    mask: Mask
