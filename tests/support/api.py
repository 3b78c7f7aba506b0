"""The tests' own eyes on a Prefect server: raw REST calls, independent of `worker.api`.

Owns the requests the tests make themselves and the waiting for states of runs. Answers are plain JSON.
"""

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.wait import wait_for

Json = dict[str, Any]

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
RUN_TIMEOUT = 150.0
# A SQLite server answers 503 while another writer holds the database (PROTOCOL 1.5).
_BUSY_TIMEOUT = 150.0
# A write can wait a minute for the database before the server gives up; a POST is not to be sent twice.
_ANSWER_TIMEOUT = 120.0


class PrefectApi:
    """One client of one server. Opens a connection per request, so that it never holds a descriptor."""

    def __init__(self, api_url: str, *, auth_string: str | None = None, csrf: bool = False) -> None:
        self.api_url = api_url
        self._csrf_client = str(uuid.uuid4()) if csrf else None
        self._csrf_headers: dict[str, str] = {}
        user, _, password = (auth_string or "").partition(":")
        self._http = httpx.Client(
            base_url=api_url,
            auth=httpx.BasicAuth(user, password) if auth_string else None,
            timeout=_ANSWER_TIMEOUT,
            follow_redirects=True,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # requests -------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """One call, repeated while the server says it is busy; any other answer is returned as it is."""

        if self._csrf_client is not None and not self._csrf_headers:
            token = self._http.get("/csrf-token", params={"client": self._csrf_client}).json()["token"]
            self._csrf_headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": self._csrf_client}

        def answer() -> httpx.Response | None:
            try:
                response = self._http.request(method, path, json=body, headers=self._csrf_headers)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                return None
            return None if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE else response

        return wait_for(
            answer, timeout=_BUSY_TIMEOUT, interval=0.2, description=f"an answer to {method} {path}"
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call that must succeed; its JSON, or None when the answer has no body."""
        response = self.request(method, path, body)
        if response.is_error:
            raise AssertionError(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.call("POST", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body)

    # work pools and queues ------------------------------------------------------------------------------

    def default_template(self) -> Json:
        """The template Prefect's UI gives a new process pool (PROTOCOL 2.1 b)."""
        views = self.get("/collections/views/aggregate-worker-metadata")
        return views["prefect"]["process"]["default_base_job_configuration"]

    def template(
        self, *, defaults: Mapping[str, Any] | None = None, configuration: Mapping[str, Any] | None = None
    ) -> Json:
        """The default template with other defaults of variables, or other entries of its configuration."""
        template = self.default_template()
        for name, value in (defaults or {}).items():
            template["variables"]["properties"].setdefault(name, {})["default"] = value
        template["job_configuration"].update(configuration or {})
        return template

    def create_pool(
        self, name: str | None = None, *, kind: str = "process", template: Json | None = None, **fields: Any
    ) -> str:
        """A new work pool with the default template unless another one is given; its name."""
        name = name or f"pool-{uuid.uuid4().hex[:8]}"
        body = {
            "name": name,
            "type": kind,
            "base_job_template": self.default_template() if template is None else template,
            **fields,
        }
        return self.post("/work_pools/", body)["name"]

    def pool(self, name: str) -> Json:
        return self.get(f"/work_pools/{name}")

    def update_pool(self, name: str, **fields: Any) -> None:
        self.patch(f"/work_pools/{name}", fields)

    def workers(self, pool: str) -> list[Json]:
        return self.post(f"/work_pools/{pool}/workers/filter", {})

    def create_queue(self, pool: str, name: str, **fields: Any) -> Json:
        return self.post(f"/work_pools/{pool}/queues", {"name": name, **fields})

    def update_queue(self, pool: str, name: str, **fields: Any) -> None:
        self.patch(f"/work_pools/{pool}/queues/{name}", fields)

    # flows, deployments, runs ---------------------------------------------------------------------------

    def create_flow(self, name: str) -> str:
        return self.post("/flows/", {"name": name})["id"]

    def create_deployment(
        self,
        *,
        pool: str,
        entrypoint: str,
        name: str | None = None,
        flow: str | None = None,
        **fields: Any,
    ) -> str:
        """A deployment of `file.py:flow_function` on `pool`; its id. `path` or `pull_steps` say where."""
        flow_name = flow or entrypoint.rpartition(":")[2].replace("_", "-")
        body = {
            "name": name or f"deployment-{uuid.uuid4().hex[:8]}",
            "flow_id": self.create_flow(flow_name),
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            **fields,
        }
        return self.post("/deployments/", body)["id"]

    def deployment(self, deployment_id: str) -> Json:
        return self.get(f"/deployments/{deployment_id}")

    def deployment_by_name(self, flow: str, deployment: str) -> Json:
        return self.get(f"/deployments/name/{flow}/{deployment}")

    def delete_deployment(self, deployment_id: str) -> None:
        self.call("DELETE", f"/deployments/{deployment_id}")

    def create_flow_run(self, deployment_id: str, **fields: Any) -> str:
        """A run of the deployment, due now, as the UI's custom run posts it; its id."""
        body = {"state": {"type": "SCHEDULED"}, **fields}
        return self.post(f"/deployments/{deployment_id}/create_flow_run", body)["id"]

    def flow_run(self, run_id: str) -> Json:
        return self.get(f"/flow_runs/{run_id}")

    def flow_runs(self, **filters: Any) -> list[Json]:
        """Runs by a `/flow_runs/filter` body given as keywords."""
        return self.post("/flow_runs/filter", {"limit": 200, "sort": "ID_DESC", **filters})

    def runs_of_deployment(self, deployment_id: str) -> list[Json]:
        return self.flow_runs(deployments={"id": {"any_": [deployment_id]}})

    def states(self, run_id: str) -> list[Json]:
        """The run's states, oldest first."""
        found: list[Json] = self.get(f"/flow_run_states/?flow_run_id={run_id}")
        return sorted(found, key=lambda state: state["timestamp"])

    def state_names(self, run_id: str) -> list[str]:
        return [state["name"] for state in self.states(run_id)]

    def set_state(self, run_id: str, state_type: str, *, name: str | None = None, **fields: Any) -> Json:
        body: Json = {"state": {"type": state_type, **fields}, "force": False}
        if name is not None:
            body["state"]["name"] = name
        return self.post(f"/flow_runs/{run_id}/set_state", body)

    def cancel(self, run_id: str) -> Json:
        return self.set_state(run_id, "CANCELLING")

    def resume(self, run_id: str) -> Json:
        return self.post(f"/flow_runs/{run_id}/resume", {})

    # waiting --------------------------------------------------------------------------------------------

    def wait_for_state(
        self, run_id: str, *wanted: str, timeout: float = RUN_TIMEOUT, strict: bool = True
    ) -> Json:
        """Wait until the run's state has one of these types or names; the run.

        With `strict` a final state that is not wanted fails at once instead of at the time-out.
        """

        def reached() -> Json | None:
            run = self.flow_run(run_id)
            if {run["state_type"], run["state_name"]} & set(wanted):
                return run
            if strict and run["state_type"] in FINAL:
                raise AssertionError(f"wanted {wanted}, but {self.story(run_id)}")
            return None

        return wait_for(
            reached,
            timeout=timeout,
            interval=0.2,
            description=lambda: f"{' or '.join(wanted)}: {self.story(run_id)}",
        )

    def wait_for_label(self, run_id: str, key: str) -> Any:
        """Wait until the run has this label; its value."""
        return wait_for(
            lambda: self.flow_run(run_id)["labels"].get(key),
            interval=0.2,
            description=f"the label {key} of run {run_id}",
        )

    def wait_for_final(self, run_id: str, *, timeout: float = RUN_TIMEOUT) -> Json:
        """Wait until the run is in a terminal state, whichever; the run."""
        return self.wait_for_state(run_id, *FINAL, timeout=timeout)

    def wait_for_all(
        self, run_ids: Collection[str], wanted: str = "COMPLETED", *, timeout: float = RUN_TIMEOUT
    ) -> list[Json]:
        """Wait for each of these runs in turn; they run at the same time."""
        return [self.wait_for_state(run_id, wanted, timeout=timeout) for run_id in run_ids]

    def story(self, run_id: str) -> str:
        """The run's states with messages and its log, for a failure's message."""
        lines = [f"run {run_id}:"]
        lines += [
            f"  {state['timestamp']} {state['type']} {state['name']!r}: {state['message']}"
            for state in self.states(run_id)
        ]
        lines += [f"  [{log['name']}] {log['message']}" for log in self.logs(run_id)]
        return "\n".join(lines)

    # logs and events ------------------------------------------------------------------------------------

    def logs(self, run_id: str) -> list[Json]:
        """The run's log, oldest first."""
        body = {
            "logs": {"flow_run_id": {"any_": [run_id]}},
            "sort": "TIMESTAMP_ASC",
            "limit": 200,
        }
        return self.post("/logs/filter", body)

    def log_messages(self, run_id: str, *, logger: str | None = None) -> list[str]:
        return [log["message"] for log in self.logs(run_id) if logger is None or log["name"] == logger]

    def wait_for_log(
        self, run_id: str, matches: Callable[[str], bool], *, description: str, timeout: float = 60
    ) -> str:
        """Wait until a message of the run's log satisfies `matches`; that message."""
        return wait_for(
            lambda: next(filter(matches, self.log_messages(run_id)), None),
            timeout=timeout,
            interval=0.3,
            description=lambda: f"{description}: {self.story(run_id)}",
        )

    def events(self, *, any_resource: str | None = None, names: Sequence[str] = ()) -> list[Json]:
        """Persisted events, oldest first; they are written with a few seconds' delay (PROTOCOL 2.10)."""
        filters: Json = {"order": "ASC"}
        if any_resource is not None:
            filters["any_resource"] = {"id": [any_resource]}
        if names:
            filters["event"] = {"name": list(names)}
        return self.post("/events/filter", {"filter": filters, "limit": 50})["events"]

    def wait_for_event(self, run_id: str, name: str, *, timeout: float = 60) -> Json:
        """Wait until an event of this name about this run is persisted; the first one."""

        def found() -> Json | None:
            return next(iter(self.events(any_resource=f"prefect.flow-run.{run_id}", names=[name])), None)

        return wait_for(found, timeout=timeout, interval=0.5, description=f"event {name} of run {run_id}")

    def emit(self, name: str, *, resource: Mapping[str, str], payload: Any = None) -> str:
        """Emit one event that occurs now; its id."""
        event_id = str(uuid.uuid4())
        self.post(
            "/events",
            [
                {
                    "id": event_id,
                    "occurred": datetime.now(UTC).isoformat(),
                    "event": name,
                    "resource": dict(resource),
                    "related": [],
                    "payload": payload or {},
                }
            ],
        )
        return event_id

    # blocks and variables -------------------------------------------------------------------------------

    def create_variable(self, name: str, value: Any) -> None:
        self.post("/variables/", {"name": name, "value": value, "tags": []})

    def create_secret(self, name: str, value: Any) -> str:
        """A Secret block; its document's id."""
        block_type = self.get("/block_types/slug/secret")
        schemas = self.post(
            "/block_schemas/filter",
            {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}},
        )
        body = {
            "name": name,
            "data": {"value": value},
            "block_type_id": block_type["id"],
            "block_schema_id": schemas[0]["id"],
        }
        return self.post("/block_documents/", body)["id"]


def pretty(value: Any) -> str:
    """JSON for a failure's message."""
    return json.dumps(value, indent=1, sort_keys=True, default=str)
