"""Runs whose hooks write down that they were run (`flows/hooked.py`), under a daemon."""

import json
from typing import Any

from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.wait import wait_for

PATIENCE = 240.0


def start(project: Project, flow: str, **fields: Any) -> tuple[str, int]:
    """A run of this flow that sleeps, and its pid."""
    run_id = project.run(flow, file="hooked.py", **fields)
    pid = project.wait_for_fact(run_id, "sleeping", timeout=PATIENCE)["pid"]
    project.api.wait_for_state(run_id, "RUNNING")
    return run_id, pid


def told_at_the_end(project: Project, worker: Worker, run_id: str) -> list[dict[str, Any]]:
    """What the run's hooks wrote down, once the daemon is done with the run."""
    worker.wait_for_event("flow_run.reported", flow_run_id=run_id, timeout=PATIENCE)
    wait_for(
        lambda: not list(worker.state_dir.rglob(f"runs/{run_id}*")),
        timeout=PATIENCE,
        description=lambda: f"the end of the attempt: {project.api.story(run_id)}",
    )
    path = project.out / f"{run_id}.hooks"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
