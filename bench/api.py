"""What the benchmark itself says to the Prefect server: pools, deployments, runs, and the states they went through."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import httpx

from bench.processes import BenchError

Json = dict[str, Any]

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# A write can wait a minute for the database, and another for the next stand-still; a server on SQLite answers 503 while another writer has it.
_ANSWER_SECONDS = 600.0
_BUSY_TRIES = 120
_BUSY_PAUSE = 0.5
_PAGE = 200


@dataclass(frozen=True, slots=True)
class History:
    """When a run first was in each type of state, in seconds since the epoch by the server's clock."""

    entered: Mapping[str, float]

    def between(self, first: str, second: str) -> float:
        """Seconds from the one type of state to the other. Raises BenchError when the run was never in one of them."""
        missing = [state for state in (first, second) if state not in self.entered]
        if missing:
            raise BenchError(f"the run was never {missing[0]}; its states: {', '.join(self.entered)}")
        return self.entered[second] - self.entered[first]


class Api:
    """A client of the server's REST API. Safe to share between threads."""

    def __init__(self, api_url: str) -> None:
        self._http = httpx.Client(base_url=api_url, timeout=_ANSWER_SECONDS, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the decoded answer, or None where there is none. Raises BenchError on any other than success."""
        for _ in range(_BUSY_TRIES):
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                raise BenchError(f"{method} {path}: {type(error).__name__} {error}") from error
            if response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            time.sleep(_BUSY_PAUSE)
        else:
            raise BenchError(f"{method} {path}: the server was busy for {_BUSY_TRIES * _BUSY_PAUSE:.0f} s")
        if response.is_error:
            raise BenchError(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    # pools and workers

    def create_pool(self, name: str, template: Json) -> None:
        """A process work pool with this base job template."""
        self.call("POST", "/work_pools/", {"name": name, "type": "process", "base_job_template": template})

    def worker_online_since(self, pool: str, name: str) -> float | None:
        """When the server first heard of this worker, if it has it ONLINE."""
        found: list[Json] = self.call("POST", f"/work_pools/{pool}/workers/filter", {})
        for worker in found:
            if worker["name"] == name and worker["status"] == "ONLINE":
                return timestamp(worker["created"])
        return None

    # deployments and runs

    def create_deployment(self, name: str, *, pool: str, path: str, entrypoint: str, **fields: Any) -> str:
        """A deployment of the flow at this entrypoint; its id."""
        flow: Json = self.call("POST", "/flows/", {"name": entrypoint.rpartition(":")[2]})
        step = {"prefect.deployments.steps.set_working_directory": {"directory": path}}
        body = {
            "name": name,
            "flow_id": flow["id"],
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "path": path,
            "pull_steps": [step],
            **fields,
        }
        return str(self.call("POST", "/deployments/", body)["id"])

    def delete_deployment(self, deployment: str) -> None:
        """Forget the deployment, its unfinished runs first."""
        for flow_run in list(self.runs(deployment)):
            if flow_run["state_type"] not in FINAL:
                self.call("DELETE", f"/flow_runs/{flow_run['id']}")
        self.call("DELETE", f"/deployments/{deployment}")

    def create_run(
        self, deployment: str, *, due: datetime | None = None, parameters: Json | None = None
    ) -> str:
        """A run, due now unless told otherwise; its id."""
        state: Json = {"type": "SCHEDULED"}
        if due is not None:
            state["state_details"] = {"scheduled_time": due.isoformat()}
        body = {"state": state, "parameters": parameters or {}, "enforce_parameter_schema": False}
        return str(self.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> Json:
        """A flow run by id."""
        return self.call("GET", f"/flow_runs/{run_id}")

    def runs(self, deployment: str) -> Iterator[Json]:
        """All runs of a deployment."""
        offset = 0
        while True:
            body = {
                "deployments": {"id": {"any_": [deployment]}},
                "sort": "ID_DESC",
                "limit": _PAGE,
                "offset": offset,
            }
            page: list[Json] = self.call("POST", "/flow_runs/filter", body)
            yield from page
            if len(page) < _PAGE:
                return
            offset += _PAGE

    def count(self, deployment: str, *states: str) -> int:
        """How many runs of the deployment are in a state of one of these types."""
        body = {
            "deployments": {"id": {"any_": [deployment]}},
            "flow_runs": {"state": {"type": {"any_": list(states)}}},
        }
        return int(self.call("POST", "/flow_runs/count", body))

    def history(self, run_id: str) -> History:
        """The run's states, from the server's record of them."""
        states: list[Json] = self.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        entered: dict[str, float] = {}
        for state in sorted(states, key=lambda state: timestamp(state["timestamp"])):
            entered.setdefault(state["type"], timestamp(state["timestamp"]))
        return History(entered)

    def cancel(self, run_id: str) -> None:
        """Ask for cancellation, as the UI does."""
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        answer: Json = self.call("POST", f"/flow_runs/{run_id}/set_state", body)
        if answer["status"] != "ACCEPT":
            raise BenchError(f"the server did not accept the cancellation: {answer['status']}")


def timestamp(text: str) -> float:
    """Seconds since the epoch of an ISO 8601 time."""
    return datetime.fromisoformat(text).timestamp()
