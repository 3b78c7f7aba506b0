"""The few calls the demo makes to a Prefect server's API, as a user's own script would."""

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import httpx

Json = dict[str, Any]

FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# A server on SQLite answers 503 for moments while another writer has the database.
BUSY_TRIES = 20
BUSY_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Prefect:
    """A server's API."""

    http: httpx.Client

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the decoded answer, or None where there is none. Raises httpx.HTTPStatusError."""
        response = self.http.request(method, path, json=body)
        for _ in range(BUSY_TRIES):
            if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            time.sleep(BUSY_PAUSE)
            response = self.http.request(method, path, json=body)
        response.raise_for_status()
        return response.json() if response.content else None

    def is_up(self) -> bool:
        """Whether the server answers yet."""
        try:
            return self.http.get("/health").is_success
        except httpx.TransportError:
            return False

    def is_served(self, pool: str) -> bool:
        """Whether a worker of the pool is online."""
        workers: list[Json] = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        return any(worker["status"] == "ONLINE" for worker in workers)

    def deployment(self, full_name: str) -> Json:
        """A deployment by `flow/deployment`."""
        return self.call("GET", f"/deployments/name/{full_name}")

    def custom_run(self, deployment: Json, **fields: Any) -> str:
        """Create a run of a deployment with the body that the custom run form of Prefect's UI posts; its id."""
        state = {
            "type": "SCHEDULED",
            "message": "Run from the Prefect UI",
            "state_details": {"scheduled_time": datetime.now(UTC).isoformat()},
        }
        body: Json = {"state": state, "tags": [], "enforce_parameter_schema": True, **fields}
        run: Json = self.call("POST", f"/deployments/{deployment['id']}/create_flow_run", body)
        return str(run["id"])

    def automate(self, deployment: Json, *, event: str, job_variables: Json) -> None:
        """From now on, each `event` runs the deployment with these job variables."""
        trigger = {"type": "event", "posture": "Reactive", "expect": [event], "threshold": 1, "within": 0}
        action = {
            "type": "run-deployment",
            "source": "selected",
            "deployment_id": deployment["id"],
            "job_variables": job_variables,
        }
        self.call(
            "POST", "/automations/", {"name": f"run on {event}", "trigger": trigger, "actions": [action]}
        )

    def emit(self, event: str, *, resource: str, payload: Json) -> None:
        """Tell the server that something happened."""
        body = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": resource},
            "payload": payload,
        }
        self.call("POST", "/events", [body])

    def run(self, run_id: str) -> Json:
        """A flow run by id."""
        return self.call("GET", f"/flow_runs/{run_id}")

    def run_named(self, name: str) -> str | None:
        """The id of the run with this name, if there is one."""
        runs: list[Json] = self.call("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
        return str(runs[0]["id"]) if runs else None

    def automated_run(self) -> str | None:
        """The id of the run that an automation made, if there is one."""
        runs: list[Json] = self.call("POST", "/flow_runs/filter", {})
        made = [run for run in runs if run["created_by"] and run["created_by"]["type"] == "AUTOMATION"]
        return str(made[0]["id"]) if made else None

    def log_lines(self, run_id: str) -> list[str]:
        """What the run logged, as the server has it by now."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [str(line["message"]) for line in self.call("POST", "/logs/filter", body)]


def seconds_taken(run: Json) -> float:
    """From the time the run was due to its end."""
    due, end = (datetime.fromisoformat(run[field]) for field in ("expected_start_time", "end_time"))
    return (end - due).total_seconds()
