"""What the command line asked a daemon for, checked. Owns no checking: that is `start`'s."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.api.models import FlowRun
from worker.processes.output import Mask
from worker.runs.job_variables_mode import JobVariablesMode
from worker.sd_notify import Address
from worker.state_directory import StateDirectory


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for, checked; the settings carry the rest."""

    pool: str
    name: str
    work_queues: tuple[str, ...]
    prefetch_seconds: float
    limit: int | None
    run_once: bool
    with_healthcheck: bool
    create_pool: bool
    base_job_template: Mapping[str, Any] | None
    job_variables: JobVariablesMode
    python: str
    state: StateDirectory
    # What the flows' processes inherit: the daemon's own environment (PROTOCOL 4.2).
    environment: Mapping[str, str]
    print_output: Callable[[FlowRun, str], None]
    # Keeps a secret out of every log line and every line of output from now on.
    hide: Callable[[str], None]
    # Masks what is hidden, in text that leaves for the server.
    redact: Callable[[str], str]
    # The same, for output: it also knows how long a secret can be.
    mask: Mask
    # Prints the two lines scripts wait for (PROTOCOL 8).
    announce: Callable[[str], None]
    # The service manager that started us, if one did.
    notify: Address | None
