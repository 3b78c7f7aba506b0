"""Runs of `bare_job.py`, a command that reports for itself and keeps a ledger: starting them, reading the ledger."""

import shlex
import sys
from pathlib import Path

from tests.support import bare_job
from tests.support.project import Project
from tests.support.wait import wait_for


class BareJobs:
    """Runs of a command that reports for itself and keeps a ledger."""

    def __init__(self, project: Project, directory: Path) -> None:
        self.project = project
        self.ledger = directory / "ledger"
        self.gate = directory / "gate"

    def run(self, *, gated: bool = False) -> str:
        words = [sys.executable, bare_job.__file__, str(self.ledger), *([str(self.gate)] if gated else [])]
        return self.project.run(job_variables={"command": shlex.join(words)})

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []

    def begun(self, run_id: str) -> list[str]:
        """The executions that began this run."""
        return [execution for run, execution, _, what in self.lines() if (run, what) == (run_id, "begin")]

    def wait_begun(self, run_id: str) -> None:
        wait_for(lambda: self.begun(run_id), description=f"run {run_id} begins")
