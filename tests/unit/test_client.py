import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.fake_prefect import api_settings
from worker.api.client import PrefectClient
from worker.api.errors import InvalidRequest, NotAnApi, NotFound, Unauthorized
from worker.api.models import StateType
from worker.api.records import LogRecord, WorkerEvent

pytestmark = pytest.mark.anyio

URL = "http://prefect.test/api"
CLOUD = "https://api.prefect.cloud/api/accounts/a/workspaces/w"
ID = UUID("6c5b9a0e-2a8b-4a37-9f25-1d4a6f0f9f31")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Route = Callable[[Any], httpx.Response] | httpx.Response


class Server:
    """Answers by "METHOD /path"; remembers method, raw path and body of every request but the CSRF one."""

    def __init__(self, routes: dict[str, Route]) -> None:
        self.routes = routes
        self.asked: list[tuple[str, Any]] = []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        where = request.url.raw_path.decode().removeprefix(httpx.URL(URL).path)
        where = where.removeprefix("/accounts/a/workspaces/w")
        if where.startswith("/csrf-token"):
            return httpx.Response(422, json={"detail": "CSRF protection is disabled."})
        body = json.loads(request.content) if request.content else None
        self.asked.append((f"{request.method} {where}", body))
        self.requests.append(request)
        route = self.routes.get(self.asked[-1][0], httpx.Response(404, json={"detail": "Not Found"}))
        return route if isinstance(route, httpx.Response) else route(body)


@asynccontextmanager
async def talking_to(
    routes: dict[str, Route], *, url: str = URL, worker_name: str | None = "w 1"
) -> AsyncGenerator[tuple[PrefectClient, Server]]:
    server = Server(routes)
    key = SecretStr("pnu_key") if url == CLOUD else None

    async def no_sleep(_: float) -> None:
        raise AssertionError("nothing here is worth a second try")

    client = PrefectClient(
        settings=api_settings(url, key=key),
        worker_name=worker_name,
        random=lambda: 0.0,
        transport=httpx.MockTransport(server),
        sleep=no_sleep,
    )
    async with client:
        yield client, server


def ok(value: Any) -> httpx.Response:
    return httpx.Response(200, json=value)


NOTHING = httpx.Response(204)
POOL: dict[str, Any] = {
    "id": str(ID),
    "name": "p",
    "type": "process",
    "base_job_template": {},
    "status": "READY",
}


def runs(*ids: UUID, **fields: Any) -> list[dict[str, Any]]:
    return [{"id": str(run_id), **fields} for run_id in ids]


# work pools


async def test_a_pool_is_read_by_its_encoded_name() -> None:
    async with talking_to({"GET /work_pools/caf%C3%A9%20%231%3F": ok(POOL)}) as (client, server):
        assert (await client.read_work_pool("café #1?")).type == "process"
        assert server.requests[0].headers["X-Prefect-Worker-Name"] == "w 1"


async def test_a_missing_pool_and_a_wrong_url_are_told_apart() -> None:
    missing = httpx.Response(404, json={"detail": 'Work pool "p" not found.'})
    async with talking_to({"GET /work_pools/p": missing}) as (client, _):
        with pytest.raises(NotFound, match=r"Work pool .p. not found"):
            await client.read_work_pool("p")
    async with talking_to({}) as (client, _):
        with pytest.raises(NotAnApi, match=r"does it end with /api\?"):
            await client.read_work_pool("p")


async def test_a_pool_is_created_and_updated() -> None:
    routes: dict[str, Route] = {
        "POST /work_pools/": httpx.Response(201, json=POOL),
        "PATCH /work_pools/p": NOTHING,
    }
    async with talking_to(routes) as (client, server):
        await client.create_work_pool("p", "process", {"variables": {}})
        await client.update_work_pool("p", base_job_template={"a": 1})
        assert [body for _, body in server.asked] == [
            {"name": "p", "type": "process", "base_job_template": {"variables": {}}},
            {"base_job_template": {"a": 1}},
        ]


async def test_a_reserved_pool_name_is_refused_at_once_even_after_success() -> None:
    reserved = httpx.Response(403, json={"detail": "Worker pools starting with 'Prefect' are reserved."})
    async with talking_to({"GET /work_pools/p": ok(POOL), "POST /work_pools/": reserved}) as (client, _):
        await client.read_work_pool("p")
        with pytest.raises(Unauthorized, match="reserved"):
            await client.create_work_pool("prefect-x", "process", {})


# heartbeats


HEARTBEAT = "POST /work_pools/p/workers/heartbeat"


async def test_a_heartbeat_asks_a_self_hosted_server_for_nothing_back() -> None:
    async with talking_to({HEARTBEAT: NOTHING}) as (client, server):
        assert await client.send_heartbeat("p", "w", 30) is None
        assert server.asked == [(HEARTBEAT, {"name": "w", "heartbeat_interval_seconds": 30})]


async def test_cloud_tells_the_workers_id_and_hears_it_from_then_on() -> None:
    async with talking_to({HEARTBEAT: ok(str(ID))}, url=CLOUD) as (client, server):
        assert await client.send_heartbeat("p", "w", 30) == str(ID)
        await client.send_heartbeat("p", "w", 30)
        assert server.asked[0][1]["return_id"] is True
        assert "X-Prefect-Worker-Id" not in server.requests[0].headers
        assert server.requests[1].headers["X-Prefect-Worker-Id"] == str(ID)


async def test_a_cloud_that_cannot_tell_is_not_asked_again() -> None:
    def strict(body: Any) -> httpx.Response:
        return httpx.Response(422, json={"detail": []}) if "return_id" in body else NOTHING

    async with talking_to({HEARTBEAT: strict}, url=CLOUD) as (client, server):
        assert await client.send_heartbeat("p", "w", 30) is None
        assert await client.send_heartbeat("p", "w", 30) is None
        assert len(server.asked) == 3


async def test_another_refusal_of_a_heartbeat_is_raised() -> None:
    async with talking_to({HEARTBEAT: httpx.Response(400, json={"detail": "no"})}, url=CLOUD) as (client, _):
        with pytest.raises(InvalidRequest):
            await client.send_heartbeat("p", "w", 30)


async def test_signing_off_twice_is_fine() -> None:
    gone = httpx.Response(404, json={"detail": "Worker not found."})
    async with talking_to({"DELETE /work_pools/p/workers/w%201": gone}) as (client, server):
        await client.delete_worker("p", "w 1")
        assert len(server.asked) == 1


# queues


async def test_queues_by_name_and_all_of_them() -> None:
    def queues(body: Any) -> httpx.Response:
        return ok(
            [] if body.get("offset") else [{"id": str(ID), "name": "q", "priority": 2, "is_paused": True}]
        )

    where = "POST /work_pools/p/queues/filter"
    async with talking_to({where: queues}) as (client, server):
        (queue,) = await client.filter_work_queues("p", {"q", "a"})
        assert (queue.name, queue.priority, queue.is_paused) == ("q", 2, True)
        assert server.asked[0][1] == {"work_queues": {"name": {"any_": ["a", "q"]}}, "offset": 0}
        await client.filter_work_queues("p")
        assert server.asked[-1][1] == {"offset": 1}
        (queue,) = await client.first_work_queues("p", {"q", "a"})
        assert queue.name == "q"
        assert server.asked[-1][1] == {"work_queues": {"name": {"any_": ["a", "q"]}}}
        await client.first_work_queues("p")
        assert server.asked[-1][1] == {}


# finding runs


async def test_a_poll_says_only_what_was_asked() -> None:
    where = "POST /work_pools/p/get_scheduled_flow_runs"
    async with talking_to({where: ok([])}) as (client, server):
        assert await client.get_scheduled_flow_runs("p", [], NOW) == []
        assert server.asked[-1][1] == {"scheduled_before": NOW.isoformat()}
        await client.get_scheduled_flow_runs("p", ["b", "a"], NOW, limit=3, scheduled_after=NOW)
        assert server.asked[-1][1] == {
            "scheduled_before": NOW.isoformat(),
            "scheduled_after": NOW.isoformat(),
            "work_queue_names": ["b", "a"],
            "limit": 3,
        }


async def test_one_unreadable_run_is_named_and_left_out() -> None:
    good, bad = uuid4(), uuid4()
    answer = ok(
        [
            {"flow_run": {"id": str(bad), "state_type": "hush"}},
            {"flow_run": {"id": str(good), "job_variables": "malformed"}},
            {"work_pool_id": str(ID)},
            None,
        ]
    )
    async with talking_to({"POST /work_pools/p/get_scheduled_flow_runs": answer}) as (client, _):
        with capture_logs() as logs:
            found = await client.get_scheduled_flow_runs("p", [], NOW)
    assert [run.id for run in found] == [good]
    assert [(line["event"], line["log_level"], line["id"]) for line in logs] == [
        ("api.item_unreadable", "warning", str(bad)),
        ("api.item_unreadable", "warning", "None"),
        ("api.item_unreadable", "warning", "None"),
    ]
    assert "hush" not in repr(logs)


@pytest.mark.parametrize("answer", [{"flow_runs": []}, "text", 3, None])
async def test_a_list_that_is_none_is_no_api_answer(answer: Any) -> None:
    async with talking_to({"POST /work_pools/p/get_scheduled_flow_runs": ok(answer)}) as (client, _):
        with pytest.raises(NotAnApi):
            await client.get_scheduled_flow_runs("p", [], NOW)


def paged(stored: list[dict[str, Any]], size: int) -> Callable[[Any], httpx.Response]:
    return lambda body: ok(stored[body["offset"] : body["offset"] + size])


async def test_runs_of_a_pool_are_read_to_the_last_page() -> None:
    stored = runs(*(uuid4() for _ in range(5)), state_type="RUNNING")
    async with talking_to({"POST /flow_runs/filter": paged(stored, 2)}) as (client, server):
        found = await client.flow_runs_in_pool("p", [StateType.RUNNING, StateType.PENDING], ["q"])
        assert [str(run.id) for run in found] == [run["id"] for run in stored]
        assert server.asked[0][1] == {
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
            "work_pools": {"name": {"any_": ["p"]}},
            "work_pool_queues": {"name": {"any_": ["q"]}},
            "sort": "ID_DESC",
            "offset": 0,
        }
        await client.flow_runs_in_pool("p", [StateType.RUNNING])
        assert "work_pool_queues" not in server.asked[-1][1]


async def test_a_run_on_two_pages_is_read_once() -> None:
    twice = uuid4()
    pages = iter([runs(twice), runs(twice), []])
    async with talking_to({"POST /flow_runs/filter": lambda _: ok(next(pages))}) as (client, _):
        assert len(await client.flow_runs_in_pool("p", [StateType.RUNNING])) == 1


async def test_runs_that_are_ending_are_asked_for_in_pieces() -> None:
    stored = wanted = [*runs(uuid4(), state_type="CANCELLING"), *runs(uuid4(), state_type="COMPLETED")]
    ids = [UUID(run["id"]) for run in stored] + [uuid4() for _ in range(448)]

    def matching(body: Any) -> httpx.Response:
        asked = set(body["flow_runs"]["id"]["any_"])
        assert len(asked) <= 200
        return paged([run for run in stored if run["id"] in asked], 200)(body)

    async with talking_to({"POST /flow_runs/filter": matching}) as (client, server):
        found = await client.flow_runs_ending(ids)
        assert {str(run.id) for run in found} == {run["id"] for run in wanted}
        asked = {tuple(body["flow_runs"]["id"]["any_"]) for _, body in server.asked}
        assert sorted(len(chunk) for chunk in asked) == [50, 200, 200]
        server.asked.clear()
        assert await client.flow_runs_ending([]) == []
        assert server.asked == []


# states


async def test_a_claim_carries_its_id() -> None:
    def accept(body: Any) -> httpx.Response:
        return httpx.Response(201, json={"status": "ACCEPT", "state": {**body["state"], "id": str(ID)}})

    async with talking_to({f"POST /flow_runs/{ID}/set_state": accept}) as (client, server):
        mine = uuid4()
        answer = await client.set_state(ID, type=StateType.PENDING, name="Pending", transition_id=mine)
        assert answer.accepted
        assert answer.transition_id == mine
        assert server.asked[-1][1] == {
            "state": {"type": "PENDING", "name": "Pending", "state_details": {"transition_id": str(mine)}},
            "force": False,
        }
        await client.set_state(
            ID, type=StateType.SCHEDULED, message="nul \x00byte", scheduled_time=NOW, force=True
        )
        sent = server.asked[-1][1]
        assert sent["force"] is True
        assert sent["state"]["message"] == "nul byte"
        assert sent["state"]["state_details"]["scheduled_time"] == NOW.isoformat()
        assert UUID(sent["state"]["state_details"]["transition_id"]) != mine


async def test_an_unknown_answer_to_a_proposal_is_no_api_answer() -> None:
    async with talking_to({f"POST /flow_runs/{ID}/set_state": ok({"status": "MAYBE"})}) as (client, _):
        with pytest.raises(NotAnApi, match=f"set flow run {ID} to Crashed: .*unknown form"):
            await client.set_state(ID, type=StateType.CRASHED)


async def test_a_run_is_updated() -> None:
    async with talking_to({f"PATCH /flow_runs/{ID}": NOTHING}) as (client, server):
        await client.update_flow_run(ID, infrastructure_pid="host:1")
        await client.update_flow_run(ID, infrastructure_pid=None)
        assert [body for _, body in server.asked] == [
            {"infrastructure_pid": "host:1"},
            {"infrastructure_pid": None},
        ]


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        (NOTHING, True),
        (httpx.Response(404, json={"detail": "Not Found"}), False),
        (httpx.Response(405, json={"detail": "Method Not Allowed"}), False),
    ],
)
async def test_labels_are_left_out_where_there_are_none(answer: httpx.Response, written: bool) -> None:
    async with talking_to({f"PATCH /flow_runs/{ID}/labels": answer}) as (client, _):
        assert await client.update_flow_run_labels(ID, {"a": "b", "n": 1, "f": 1.5, "t": True}) is written


async def test_a_deleted_run_is_not_a_missing_endpoint() -> None:
    gone = httpx.Response(404, json={"detail": "Flow run not found"})
    async with talking_to({f"PATCH /flow_runs/{ID}/labels": gone}) as (client, _):
        with pytest.raises(NotFound):
            await client.update_flow_run_labels(ID, {})


async def test_a_nested_label_never_leaves() -> None:
    nested: Any = {"a": {"b": "c"}}
    async with talking_to({f"PATCH /flow_runs/{ID}/labels": NOTHING}) as (client, server):
        with pytest.raises(InvalidRequest, match="label 'a' is neither text, number nor boolean"):
            await client.update_flow_run_labels(ID, nested)
        assert server.asked == []


# what a run is made of


async def test_what_a_run_is_made_of() -> None:
    document = {"id": str(ID), "name": "n", "data": {"value": "secret"}}
    routes: dict[str, Route] = {
        f"GET /flow_runs/{ID}": ok({"id": str(ID), "state": {"type": "RUNNING"}}),
        f"GET /deployments/{ID}": ok({"id": str(ID), "entrypoint": "f.py:f", "novel": 1}),
        f"GET /flows/{ID}": ok({"id": str(ID), "name": "f"}),
        f"GET /block_documents/{ID}?include_secrets=true": ok(document),
        "GET /block_types/slug/secret/block_documents/name/a%20b?include_secrets=true": ok(document),
        "GET /variables/name/v": ok({"name": "v", "value": {"any": ["json"]}}),
        "GET /variables/name/n": ok({"name": "n", "value": None}),
    }
    async with talking_to(routes) as (client, _):
        run = await client.read_flow_run(ID)
        assert run.state is not None
        assert run.state.type is StateType.RUNNING
        deployment = await client.read_deployment(ID)
        assert deployment.entrypoint == "f.py:f"
        assert deployment.raw["novel"] == 1
        assert (await client.read_flow(ID)).name == "f"
        assert await client.read_block_document(ID) == document
        assert await client.read_block_document_by_name("secret", "a b") == document
        assert await client.read_variable("v") == {"any": ["json"]}
        assert await client.read_variable("n") is None


async def test_an_object_without_its_id_is_no_api_answer() -> None:
    async with talking_to({f"GET /flows/{ID}": ok({"name": "f"})}) as (client, _):
        with pytest.raises(NotAnApi, match="unknown form"):
            await client.read_flow(ID)


# logs, events, version


async def test_nothing_to_send_is_not_sent() -> None:
    async with talking_to({}) as (client, server):
        await client.create_logs([])
        await client.create_events([])
        assert server.asked == []


async def test_logs_and_events_are_sent_in_one_call() -> None:
    routes: dict[str, Route] = {"POST /logs/": httpx.Response(201, json=None), "POST /events": NOTHING}
    async with talking_to(routes) as (client, server):
        await client.create_logs(
            [LogRecord(name="n", level=20, message=str(n), timestamp=NOW) for n in range(3)]
        )
        event = WorkerEvent(id=ID, occurred=NOW, event="e", resource={"prefect.resource.id": "r"})
        await client.create_events([event])
        assert [record["message"] for record in server.asked[0][1]] == ["0", "1", "2"]
        assert server.asked[1][1] == [event.to_json()]


async def test_events_are_found() -> None:
    event = {
        "id": str(ID),
        "event": "e",
        "occurred": NOW.isoformat(),
        "resource": {"a": "b"},
        "follows": None,
    }
    answer = ok({"events": [event, {"id": "?"}], "total": 2, "next_page": None})
    async with talking_to({"POST /events/filter": answer}) as (client, server):
        with capture_logs() as logs:
            (found,) = await client.filter_events({"id": {"id": [str(ID)]}}, 5)
        assert (found.event, found.resource, found.follows) == ("e", {"a": "b"}, None)
        assert server.asked[0][1] == {"filter": {"id": {"id": [str(ID)]}}, "limit": 5}
        assert [line["event"] for line in logs] == ["api.item_unreadable"]


@pytest.mark.parametrize(
    ("answer", "version"),
    [(ok("3.8.8"), "3.8.8"), (httpx.Response(404, json={"detail": "Not Found"}), None), (ok({"v": 1}), None)],
)
async def test_the_servers_version_where_it_tells_one(answer: httpx.Response, version: str | None) -> None:
    async with talking_to({"GET /admin/version": answer}) as (client, _):
        assert client.last_success is None
        assert client.url == URL
        assert await client.read_server_version() == version
