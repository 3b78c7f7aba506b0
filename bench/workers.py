"""The candidates: which workers are compared, and how each is started."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from bench.environment import BIN
from bench.processes import Service


class Candidate(StrEnum):
    """A worker, with the settings it is measured with."""

    STOCK = "stock"
    """`prefect worker start` as shipped."""
    TUNED = "stock-tuned"
    """`prefect worker start` that polls every second, and saves the requests it can be told to save."""
    OURS = "headrace"
    """`headrace start` as shipped."""
    COLD = "headrace-cold"
    """`headrace start --start-method cold`."""


TITLES = {
    Candidate.STOCK: "stock, as shipped",
    Candidate.TUNED: "stock, tuned",
    Candidate.OURS: "headrace",
    Candidate.COLD: "headrace, cold start",
}

# What Prefect's settings offer a process worker that should start runs sooner.
TUNING = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
}


def argv(candidate: Candidate, *, pool: str, name: str, limit: int, state: Path) -> list[str]:
    """The command line; `state` is a directory for those that want one."""
    flags = ["--pool", pool, "--name", name, "--limit", str(limit)]
    match candidate:
        case Candidate.STOCK | Candidate.TUNED:
            return [str(BIN / "prefect"), "worker", "start", "--type", "process", *flags]
        case Candidate.OURS:
            return [str(BIN / "headrace"), "start", "--type", "process", *flags, "--state-dir", str(state)]
        case Candidate.COLD:
            ours = argv(Candidate.OURS, pool=pool, name=name, limit=limit, state=state)
            return [*ours, "--start-method", "cold"]
        case _:
            assert_never(candidate)


def settings(candidate: Candidate) -> dict[str, str]:
    """The environment variables that make the candidate what it is."""
    return TUNING if candidate is Candidate.TUNED else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker that is online. `start_seconds` is from its start until the server had it ONLINE."""

    candidate: Candidate
    pool: str
    service: Service
    start_seconds: float
