"""Log lines and events on their way: batched, bounded, and never in the way of a run."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.canned import CannedServer
from worker.api.client import PrefectClient
from worker.api.models import Deployment, Flow, FlowRun, WorkPool
from worker.runs import outbox
from worker.runs.outbox import Outbox, RunLog
from worker.runs.worker_events import Subject, WorkerEvents, slug

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN_ID = uuid4()
POOL = WorkPool.read({"id": str(uuid4()), "name": "p", "type": "process"})


def make(client: PrefectClient, *, enabled: bool = True, max_message: int = 1_000_000) -> Outbox:
    return Outbox(
        client=client,
        now=lambda: NOW,
        redact=lambda text: text.replace("s3cr3t", "***"),
        enabled=enabled,
        max_message=max_message,
    )


async def test_lines_arrive_in_order_and_in_batches() -> None:
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    async with server.client() as client:
        box = make(client)
        run_log = RunLog(RUN_ID, box)
        for number in range(450):
            run_log.info(str(number))
        run_log.error("last")
        await box.flush_once()
        await box.flush_once()
    bodies = server.bodies("POST", "/logs/")
    assert [len(body) for body in bodies] == [200, 200, 51]
    assert [record["message"] for body in bodies for record in body] == [*map(str, range(450)), "last"]
    assert bodies[-1][-1] == {
        "name": "prefect.flow_runs.worker",
        "level": 40,
        "message": "last",
        "timestamp": NOW.isoformat(),
        "flow_run_id": str(RUN_ID),
    }


async def test_labels_wait_until_nothing_is_in_flight_or_their_run_goes_on() -> None:
    server = CannedServer()
    runs = [uuid4() for _ in range(3)]
    for run in runs:
        server.on("PATCH", f"/flow_runs/{run}/labels", None, status=204)
    calm, clock = False, 0.0

    def sent() -> list[str]:
        return [path for method, path, _ in server.received if method == "PATCH"]

    async with server.client() as client:
        box = Outbox(client=client, now=lambda: NOW, redact=str, calm=lambda: calm, monotonic=lambda: clock)
        for run in runs:
            box.label(run, {"a": "1"})
        await box.flush_once()
        assert sent() == []
        box.hurry_labels(runs[1])
        await box.flush_once()
        assert sent() == [f"/flow_runs/{runs[1]}/labels"]
        calm = True
        await box.flush_once()
        assert len(sent()) == 3
        calm = False
        box.label(runs[0], {"b": "2"})
        await box.flush_once()
        assert len(sent()) == 3
        clock = 300.0
        await box.flush_once()
        assert len(sent()) == 4, "not for ever"


async def test_labels_wait_for_half_a_minute_on_a_server_with_many_writers() -> None:
    server = CannedServer()
    server.on("PATCH", f"/flow_runs/{RUN_ID}/labels", None, status=204)
    clock = 0.0

    async with server.client() as client:
        box = Outbox(
            client=client,
            now=lambda: NOW,
            redact=str,
            calm=lambda: False,
            many_writers=lambda: True,
            monotonic=lambda: clock,
        )
        box.label(RUN_ID, {"a": "1"})
        clock = 29.0
        await box.flush_once()
        assert not server.received
        clock = 30.0
        await box.flush_once()
        assert len(server.received) == 1


async def test_nothing_is_sent_while_the_server_is_left_alone_but_for_the_last_time() -> None:
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    async with server.client() as client:
        box = Outbox(client=client, now=lambda: NOW, redact=str, hold=lambda: 1.0)
        RunLog(RUN_ID, box).info("line")
        assert 0 < await box.flush_once() < 1
        assert not server.bodies("POST", "/logs/")
        await box.flush_once(last=True)
    assert len(server.bodies("POST", "/logs/")) == 1


async def test_secrets_do_not_leave_for_the_server() -> None:
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    async with server.client() as client:
        box = make(client)
        RunLog(RUN_ID, box).error("the token is s3cr3t")
        await box.flush_once()
    assert server.bodies("POST", "/logs/")[0][0]["message"] == "the token is ***"


async def test_batches_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_BATCH_BYTES", 25)
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    async with server.client() as client:
        box = make(client)
        for _ in range(5):
            RunLog(RUN_ID, box).info("x" * 10)
        RunLog(RUN_ID, box).info("x" * 100)
        await box.flush_once()
    assert [len(body) for body in server.bodies("POST", "/logs/")] == [2, 2, 1, 1]


async def test_users_can_switch_logs_off() -> None:
    async with CannedServer().client() as client:
        box = make(client, enabled=False)
        RunLog(RUN_ID, box).warning("unheard")
        await box.flush_once()


async def test_a_long_line_is_cut() -> None:
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    async with server.client() as client:
        box = make(client, max_message=2000)
        RunLog(RUN_ID, box).info("é" * 5000)
        await box.flush_once()
    message = server.bodies("POST", "/logs/")[0][0]["message"]
    assert message.endswith("... [truncated]")
    assert len(message.encode()) < 2000


async def test_what_the_server_refuses_is_dropped_with_one_warning() -> None:
    server = CannedServer()
    server.on("POST", "/logs/", {"exception_message": "Invalid request received."}, status=422)
    with capture_logs() as logs:
        async with server.client() as client:
            box = make(client)
            for _ in range(3):
                RunLog(RUN_ID, box).info("x")
                await box.flush_once()
            server.on("POST", "/logs/", None, status=201)
            RunLog(RUN_ID, box).info("x")
            await box.flush_once()
    told = [(entry["log_level"], entry["event"]) for entry in logs if entry["log_level"] != "debug"]
    assert told == [("warning", "outbox.dropped"), ("info", "outbox.recovered")]


async def test_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_QUEUE_LIMIT", 3)
    server = CannedServer()
    server.on("POST", "/logs/", None, status=201)
    with capture_logs() as logs:
        async with server.client() as client:
            box = make(client)
            for number in range(5):
                RunLog(RUN_ID, box).info(str(number))
            await box.flush_once()
    assert [record["message"] for record in server.bodies("POST", "/logs/")[0]] == ["2", "3", "4"]
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["outbox.dropped"]


async def test_labels_are_sent_even_if_a_run_is_gone() -> None:
    server = CannedServer()
    gone = uuid4()
    server.on("PATCH", f"/flow_runs/{gone}/labels", {"detail": "Flow run not found"}, status=404)
    server.on("PATCH", f"/flow_runs/{RUN_ID}/labels", None, status=204)
    with capture_logs() as logs:
        async with server.client() as client:
            box = make(client)
            box.label(gone, {"a": "1"})
            box.label(RUN_ID, {"a": "1"})
            await box.flush_once()
    assert server.bodies("PATCH", f"/flow_runs/{RUN_ID}/labels") == [{"a": "1"}]
    assert not [entry for entry in logs if entry["log_level"] == "warning"]


async def test_events_look_like_those_of_prefects_worker() -> None:
    server = CannedServer()
    server.on("POST", "/events", None, status=204)
    flow_run = FlowRun.read({"id": str(RUN_ID), "name": "amber", "tags": ["b", "a"]})
    flow = Flow.read({"id": str(uuid4()), "name": "etl", "tags": ["flow-tag"]})
    deployment = Deployment.read({"id": str(uuid4()), "name": "nightly", "tags": ["a"]})
    subject = Subject(flow_run=flow_run, flow=flow, deployment=deployment, work_pool=POOL)
    async with server.client() as client:
        box = make(client)
        events = WorkerEvents(outbox=box, worker_name="Worker One", version="9")
        events.started(POOL)
        submitted = events.submitted(subject)
        events.executed(subject, pid=7, status_code=-9, submitted=submitted)
        events.stopped(POOL)
        await box.flush_once()
    started, first, last, stopped = server.bodies("POST", "/events")[0]
    assert [event["event"] for event in (started, first, last, stopped)] == [
        "prefect.worker.started",
        "prefect.worker.submitted-flow-run",
        "prefect.worker.executed-flow-run",
        "prefect.worker.stopped",
    ]
    assert started["resource"] == {
        "prefect.resource.id": "prefect.worker.process.worker-one",
        "prefect.resource.name": "Worker One",
        "prefect.version": "9",
        "prefect.worker-type": "process",
    }
    assert stopped["follows"] == started["id"]
    assert last["follows"] == first["id"]
    roles = [resource["prefect.resource.role"] for resource in first["related"]]
    assert roles == ["deployment", "flow", "flow-run", "tag", "tag", "tag", "work-pool"]
    run = next(one for one in last["related"] if one["prefect.resource.role"] == "flow-run")
    assert run["prefect.infrastructure.identifier"] == "7"
    assert run["prefect.infrastructure.status-code"] == "-9"


@pytest.mark.parametrize(
    ("name", "expected"), [("ProcessWorker 1", "processworker-1"), ("--Ä  b", "b"), ("a.b_c", "a-b-c")]
)
def test_slugs(name: str, expected: str) -> None:
    assert slug(name) == expected
