"""One bad run hurts no other and never the daemon: what a run needs is deleted, at each moment of its life.

Between the daemon and the real server stands an interceptor, so that "after the claim" is not a matter of luck: the
deletion happens while the daemon's request, or the answer to it, is on its way.
"""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.support.api import FINAL, Json, PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.isolation import Jobs, assert_all_is_free
from tests.support.server import PrefectServer
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

SLOTS = 2


class Moment(StrEnum):
    """When something is deleted, in the life of a run."""

    BEFORE_CLAIM = "it was polled, and is about to be claimed"
    AFTER_CLAIM = "it is claimed, and the daemon does not know yet"
    READING = "it is claimed, and its deployment is about to be read"
    LAUNCHED = "its process is there, and the server is about to be told where"


def moment_before(method: str, path: str, body: bytes) -> Moment | None:
    """The moment that this request is; `AFTER_CLAIM` follows the answer to the one that claims."""
    if method == "POST" and path.endswith("/set_state"):
        return Moment.BEFORE_CLAIM if json.loads(body)["state"]["type"] == "PENDING" else None
    if method == "PATCH" and b'"infrastructure_pid"' in body:
        return Moment.LAUNCHED
    return None


@dataclass(slots=True)
class Interceptor:
    """Passes everything on to the server, and does what was asked for when a run reaches a moment.

    `planned` is by deployment, as a run's id is not known before it is there to be claimed. It runs in threads of its
    own; an action that fails ends up in `failures`.
    """

    server: PrefectServer
    api: PrefectApi
    planned: dict[tuple[str, Moment], Callable[[str], None]] = field(
        default_factory=dict[tuple[str, Moment], Callable[[str], None]]
    )
    failures: list[str] = field(default_factory=list[str])

    def handle(self, request: BaseHTTPRequestHandler) -> tuple[int, str, bytes]:
        """Status, content type and body of the answer to one request, whatever happens on the way."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        moment = moment_before(request.command, request.path, body)
        if moment is not None:
            self._reached(moment, request.path)
        if request.command == "GET" and "/deployments/" in request.path:
            self._reading(request.path.partition("/deployments/")[2])
        answer = self._forward(request, body)
        if moment is Moment.BEFORE_CLAIM:
            self._reached(Moment.AFTER_CLAIM, request.path)
        return answer

    def _reached(self, moment: Moment, path: str) -> None:
        run_id = path.partition("/flow_runs/")[2].partition("/")[0]
        found = self.api.request("GET", f"/flow_runs/{run_id}")
        if found.status_code == HTTPStatus.NOT_FOUND:
            return
        self._act(self.planned.pop((found.json()["deployment_id"], moment), None), run_id)

    def _reading(self, deployment_id: str) -> None:
        """The deployment is read beside the claim: wait for that, or its run would be deleted with it."""
        action = self.planned.pop((deployment_id, Moment.READING), None)
        if action is not None:
            (run,) = self.api.runs_of_deployment(deployment_id)
            self.api.wait_for_state(run["id"], "PENDING")
            self._act(action, run["id"])

    def _act(self, action: Callable[[str], None] | None, run_id: str) -> None:
        if action is None:
            return
        try:
            action(run_id)
        except AssertionError as error:
            self.failures.append(str(error))

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        if request.headers.get("Upgrade"):
            return HTTPStatus.NOT_FOUND, "text/plain", b"no websockets here"
        dropped = {"connection", "accept-encoding"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", "application/json"), answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def interceptor(prefect_server: PrefectServer, api: PrefectApi) -> Iterator[tuple[Interceptor, str]]:
    """The interceptor, and the URL of the API seen through it."""
    interceptor = Interceptor(prefect_server, api)

    class Handler(BaseHTTPRequestHandler):
        timeout = 120

        def answer(self) -> None:
            status, kind, body = interceptor.handle(self)
            try:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                # Whoever asked has been ended meanwhile.
                return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing: pytest shows the daemon's side."""

    for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, name="interceptor")
    thread.start()
    path = urlsplit(prefect_server.api_url).path
    try:
        yield interceptor, f"http://127.0.0.1:{listener.server_port}{path}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


@pytest.fixture(scope="module")
def jobs(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(api=api, pool=api.create_pool(), directory=tmp_path_factory.mktemp("deletions"))


@pytest.fixture(scope="module")
def worker(module_daemon: StartWorker, jobs: Jobs, interceptor: tuple[Interceptor, str]) -> Worker:
    _, url = interceptor
    return module_daemon(pool=jobs.pool, args=("--limit", str(SLOTS)), env={"PREFECT_API_URL": url})


def delete_run(api: PrefectApi, run_id: str) -> None:
    api.call("DELETE", f"/flow_runs/{run_id}")


def delete_deployment(api: PrefectApi, run_id: str) -> None:
    api.delete_deployment(api.flow_run(run_id)["deployment_id"])


def delete_flow(api: PrefectApi, run_id: str) -> None:
    api.call("DELETE", f"/flows/{api.flow_run(run_id)['flow_id']}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is deleted when; how the run ends (None: it is gone, with all that was known of it), and what is said."""

    delete: Callable[[PrefectApi, str], None]
    moment: Moment
    ends: str | None
    words: str = ""


CASES = {
    # Deleting a deployment deletes those of its runs that are still Scheduled (PROTOCOL 2.4).
    "deployment before the claim": Case(delete=delete_deployment, moment=Moment.BEFORE_CLAIM, ends=None),
    "deployment after the claim": Case(
        delete=delete_deployment, moment=Moment.READING, ends="CANCELLED", words="no longer exists"
    ),
    "deployment while running": Case(delete=delete_deployment, moment=Moment.LAUNCHED, ends="COMPLETED"),
    "run while Scheduled": Case(delete=delete_run, moment=Moment.BEFORE_CLAIM, ends=None),
    "run while Pending": Case(delete=delete_run, moment=Moment.AFTER_CLAIM, ends=None),
    "run while running": Case(delete=delete_run, moment=Moment.LAUNCHED, ends=None),
    "flow after the claim": Case(delete=delete_flow, moment=Moment.AFTER_CLAIM, ends=None),
    "flow while running": Case(delete=delete_flow, moment=Moment.LAUNCHED, ends=None),
}


@pytest.mark.parametrize("name", CASES)
def test_deleted_under_the_daemon(
    name: str, worker: Worker, jobs: Jobs, interceptor: tuple[Interceptor, str]
) -> None:
    case, (intercepted, _) = CASES[name], interceptor
    gate, deleted = jobs.gate(), threading.Event()

    def act(run_id: str) -> None:
        case.delete(jobs.api, run_id)
        deleted.set()

    # A flow of its own, so that deleting the flow deletes nobody else's runs.
    deployment_id = jobs.deploy(jobs.gated(gate), flow=f"flow-of-{gate.name}")
    healthy = jobs.start(jobs.gated(gate))
    jobs.api.wait_for_state(healthy, "RUNNING")
    intercepted.planned[deployment_id, case.moment] = act
    run_id = jobs.api.create_flow_run(deployment_id)
    wait_for(deleted.is_set, description=lambda: f"the deletion {intercepted.failures}")
    gate.touch()
    wait_for(
        lambda: ended_as(case, jobs.api, run_id), description=lambda: f"{case.ends}: {seen(jobs.api, run_id)}"
    )
    jobs.api.wait_for_state(healthy, "COMPLETED")
    assert_all_is_free(worker, jobs, slots=SLOTS)


def seen(api: PrefectApi, run_id: str) -> Json | None:
    found = api.request("GET", f"/flow_runs/{run_id}")
    return None if found.status_code == HTTPStatus.NOT_FOUND else found.json()


def ended_as(case: Case, api: PrefectApi, run_id: str) -> bool:
    run = seen(api, run_id)
    if run is not None and run["state_type"] in FINAL:
        assert run["state_type"] == case.ends, api.story(run_id)
        assert case.words in (run["state"]["message"] or ""), api.story(run_id)
        return True
    return run is None and case.ends is None


@pytest.mark.parametrize("again", ["by somebody", "by the daemon"])
def test_the_pool_is_deleted_and_made_again(again: str, daemon: StartWorker, jobs: Jobs) -> None:
    """What was running goes on and is reported; runs of the new pool are found."""
    own = replace(jobs, pool=jobs.api.create_pool())
    worker = daemon(
        pool=own.pool, args=("--limit", str(SLOTS)), env={"PREFECT_WORKER_HEARTBEAT_SECONDS": "1"}
    )
    gate = own.gate()
    running = own.start(own.gated(gate))
    own.api.wait_for_state(running, "RUNNING")
    own.api.call("DELETE", f"/work_pools/{own.pool}")
    if again == "by somebody":
        own.api.request("POST", "/work_pools/", {"name": own.pool, "type": "process"})
    wait_for_pool(own)
    gate.touch()
    own.api.wait_for_state(running, "COMPLETED")
    assert_all_is_free(worker, own, slots=SLOTS)


def wait_for_pool(jobs: Jobs) -> None:
    wait_for(
        lambda: jobs.api.request("GET", f"/work_pools/{jobs.pool}").status_code == HTTPStatus.OK,
        description="the pool is there again",
    )


def test_the_pool_is_deleted_between_claim_and_launch(
    daemon: StartWorker, jobs: Jobs, interceptor: tuple[Interceptor, str]
) -> None:
    intercepted, url = interceptor
    own = replace(jobs, pool=jobs.api.create_pool())
    worker = daemon(
        pool=own.pool,
        args=("--limit", str(SLOTS)),
        env={"PREFECT_API_URL": url, "PREFECT_WORKER_HEARTBEAT_SECONDS": "1"},
    )
    deployment_id = own.deploy()
    intercepted.planned[deployment_id, Moment.AFTER_CLAIM] = lambda _: own.api.call(
        "DELETE", f"/work_pools/{own.pool}"
    )
    run_id = own.api.create_flow_run(deployment_id)
    # The pool as last read is good enough for a run that is ours already.
    own.api.wait_for_state(run_id, "COMPLETED")
    assert intercepted.failures == []
    wait_for_pool(own)
    assert_all_is_free(worker, own, slots=SLOTS)
