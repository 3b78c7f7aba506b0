"""The tests' flow project: deploying it by raw API, and reading what its flows wrote down."""

import json
import uuid
from pathlib import Path
from typing import Any

from tests.support.api import Json, PrefectApi
from tests.support.wait import wait_for

FLOWS = Path(__file__).parent / "flows"
# A pull step leaves the run directory and goes to the sources; `path` would copy them into it.
PULL_STEPS = [{"prefect.deployments.steps.set_working_directory": {"directory": str(FLOWS)}}]


class Project:
    """The flows of `probe.py` on one pool, and the directory where they write their facts."""

    def __init__(self, *, api: PrefectApi, pool: str, out: Path) -> None:
        self.api = api
        self.pool = pool
        self.out = out

    def deploy(
        self, flow: str = "probe", *, file: str = "probe.py", parameters: Json | None = None, **fields: Any
    ) -> str:
        """A deployment of this flow of `file`, its facts going to `out`; its id."""
        if "path" not in fields:
            fields.setdefault("pull_steps", PULL_STEPS)
        return self.api.create_deployment(
            pool=self.pool,
            entrypoint=f"{file}:{flow}",
            flow=flow.replace("_", "-"),
            parameters={"out": str(self.out), **(parameters or {})},
            **fields,
        )

    def run(self, flow: str = "probe", *, run: Json | None = None, **fields: Any) -> str:
        """Deploy and start one run of it at once; the run's id. `run` are the fields of the run."""
        return self.api.create_flow_run(self.deploy(flow, **fields), **(run or {}))

    def facts(self, run_id: str, kind: str) -> list[Json]:
        """What the run's flow wrote down of this kind so far."""
        return [json.loads(path.read_text()) for path in sorted(self.out.glob(f"{run_id}.{kind}.*.json"))]

    def wait_for_fact(self, run_id: str, kind: str, *, timeout: float = 120.0) -> Json:
        return wait_for(
            lambda: next(iter(self.facts(run_id, kind)), None),
            timeout=timeout,
            description=lambda: f"fact {kind}: {self.api.story(run_id)}",
        )

    def all_facts(self, kind: str) -> list[Json]:
        return [json.loads(path.read_text()) for path in sorted(self.out.glob(f"*.{kind}.*.json"))]

    def seen(self, run_id: str) -> Json:
        """Wait until the run is completed; what its one attempt of `probe` saw."""
        self.api.wait_for_state(run_id, "COMPLETED")
        (seen,) = self.facts(run_id, "seen")
        return seen

    def gate(self) -> Path:
        """A file that does not exist yet, for `waits_for_file`."""
        return self.out / f"gate-{uuid.uuid4().hex[:8]}"
