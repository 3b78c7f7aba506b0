"""`headrace explain` as a user runs it: a process of its own, with the environment of a client or of a daemon."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.daemons import Worker


@dataclass(frozen=True, slots=True)
class Explained:
    """What it printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def explain(*arguments: str, environment: Mapping[str, str], cwd: Path) -> Explained:
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "explain", *arguments],
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Explained(done.returncode, done.stdout, done.stderr)


def explain_as(worker: Worker, *arguments: str, mode: str = "layered") -> Explained:
    """In the environment and the directory of a running daemon, with the flags it was started with."""
    return explain(
        *("--python", sys.executable, "--name", worker.name, "--job-variables", mode, *arguments),
        environment=environment_of(worker.pid),
        cwd=Path(f"/proc/{worker.pid}/cwd").readlink(),
    )


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with (proc(5))."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)
