"""A Prefect server in memory, which answers the requests that are rehearsed before a fork.

Owns: the answers, and the streams that httpcore takes for connections. Does not own: who asks (`warmth_rehearsal`).
"""

from __future__ import annotations

import json
import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ID = str(uuid.UUID(int=1))
NOW = "2000-01-01T00:00:00.000000Z"
_STATE: dict[str, Any] = {
    "id": ID,
    "type": "PENDING",
    "name": "Pending",
    "timestamp": NOW,
    "message": None,
    "data": None,
    "state_details": {"flow_run_id": ID, "deferred": False, "untrackable_result": False},
}
_FLOW_RUN: dict[str, Any] = {
    "id": ID,
    "created": NOW,
    "updated": NOW,
    "name": "run",
    "flow_id": ID,
    "deployment_id": ID,
    "deployment_version": "1",
    "work_queue_id": ID,
    "work_queue_name": "default",
    "work_pool_id": ID,
    "work_pool_name": "pool",
    "parameters": {"name": "value"},
    "tags": ["tag"],
    "labels": {"prefect.flow.id": ID},
    "state": _STATE,
    "state_id": ID,
    "state_type": "PENDING",
    "state_name": "Pending",
    "empirical_policy": {"max_retries": 0, "retries": 0, "retry_delay": 0},
    "context": {},
    "job_variables": {},
    "run_count": 0,
    "start_time": None,
    "expected_start_time": NOW,
    "estimated_run_time": 0.0,
    "total_run_time": 0.0,
    "auto_scheduled": False,
    "created_by": {"id": ID, "type": "DEPLOYMENT", "display_value": "deployment"},
}
_STEP: dict[str, Any] = {"prefect.deployments.steps.set_working_directory": {"directory": "/"}}
_DEPLOYMENT: dict[str, Any] = {
    "id": ID,
    "created": NOW,
    "updated": NOW,
    "name": "deployment",
    "flow_id": ID,
    "entrypoint": "flow.py:flow",
    "path": "/",
    "version": "1",
    "description": None,
    "pull_steps": [_STEP],
    "parameters": {},
    "parameter_openapi_schema": {"type": "object", "title": "Parameters", "properties": {}},
    "enforce_parameter_schema": True,
    "tags": [],
    "labels": {},
    "schedules": [],
    "job_variables": {"env": {}},
    "work_pool_name": "pool",
    "work_queue_id": ID,
    "work_queue_name": "default",
    "status": "READY",
    "paused": False,
    "storage_document_id": None,
    "infrastructure_document_id": None,
}


class Stream:
    """A connection to the server, as httpcore's connection pool uses one."""

    def __init__(self) -> None:
        self._request = b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """The request, or a part of it."""
        del timeout
        self._request += buffer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The whole answer to what was written."""
        del max_bytes, timeout
        request, self._request = self._request, b""
        head, _, body = request.partition(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        status, content = _answer(method, path, body)
        text = b"" if content is None else json.dumps(content).encode()
        return b"\r\n".join(
            (
                b"HTTP/1.1 " + status.encode(),
                b"date: Sat, 01 Jan 2000 00:00:00 GMT",
                b"server: none",
                b"content-length: %d" % len(text),
                b"content-type: application/json",
                b"",
                text,
            )
        )

    def close(self) -> None:
        """Nothing is open."""

    def get_extra_info(self, info: str) -> Any:
        """No socket, and no TLS."""
        del info


class AsyncStream:
    """The same for httpcore's asynchronous pool."""

    def __init__(self) -> None:
        self._stream = Stream()
        self.get_extra_info = self._stream.get_extra_info

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """The request, or a part of it."""
        self._stream.write(buffer, timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The whole answer to what was written."""
        return self._stream.read(max_bytes, timeout)

    async def aclose(self) -> None:
        """Nothing is open."""


class Network:
    """A network on which every address is this server."""

    def connect_tcp(self, *_: Any, **__: Any) -> Stream:
        """A connection, whatever the address."""
        return Stream()


class AsyncNetwork:
    """The same for httpcore's asynchronous pool."""

    async def connect_tcp(self, *_: Any, **__: Any) -> AsyncStream:
        """A connection, whatever the address."""
        return AsyncStream()


def _answer(method: str, path: str, body: bytes) -> tuple[str, Any]:
    """What a Prefect server answers to these requests of a flow's."""
    if path.partition("?")[0].endswith("/csrf-token"):
        return "422 Unprocessable Entity", {"detail": "CSRF protection is disabled."}
    if path.endswith("/set_state"):
        state = {**json.loads(body)["state"], "id": ID, "timestamp": NOW}
        return "201 Created", {"state": state, "status": "ACCEPT", "details": {"type": "accept_details"}}
    if "/deployments/" in path:
        return "200 OK", _DEPLOYMENT
    if method == "PATCH":
        return "204 No Content", None
    return "200 OK", _FLOW_RUN
