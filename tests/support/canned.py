"""A server of canned answers behind the real client: the transport is replaced, never the client.

For unit tests of what the daemon does with answers. What only a real server knows is tested on one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from worker.api.client import PrefectClient
from worker.settings import load_settings

API_URL = "http://prefect.test/api"
Handler = Callable[[Any], tuple[int, Any]]


@dataclass(slots=True)
class CannedServer:
    """Answers by method and path; whatever is not expected fails the test."""

    handlers: dict[tuple[str, str], Handler] = field(default_factory=dict[tuple[str, str], Handler])
    received: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])

    def on(self, method: str, path: str, answer: Any = None, *, status: int = 200) -> None:
        """Answer that request with a JSON value."""
        self.handlers[method, path] = lambda _: (status, answer)

    def on_call(self, method: str, path: str, handler: Handler) -> None:
        """Answer that request with the status and JSON value that a function of its body returns."""
        self.handlers[method, path] = handler

    def bodies(self, method: str, path: str) -> list[Any]:
        """The JSON bodies received for that request, oldest first."""
        return [body for got, where, body in self.received if (got, where) == (method, path)]

    def client(self) -> PrefectClient:
        """The real client, talking to this server."""
        settings = load_settings(environ={"PREFECT_API_URL": API_URL}, cwd=Path("/nonexistent"))
        return PrefectClient(
            settings=settings.api,
            worker_name="w",
            random=lambda: 0.5,
            transport=httpx.MockTransport(self._answer),
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api")
        if path == "/csrf-token":
            return httpx.Response(422, json={"detail": "CSRF protection is disabled."})
        body = json.loads(request.content) if request.content else None
        self.received.append((request.method, path, body))
        handler = self.handlers.get((request.method, path))
        if handler is None:
            raise AssertionError(f"unexpected request: {request.method} {path}")
        status, answer = handler(body)
        return httpx.Response(status) if answer is None else httpx.Response(status, json=answer)
