import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict
from wsproto.events import CloseConnection

from tests.support.fake_prefect import api_settings
from tests.support.websockets import Broken, OtherEnd, Silence, Step, accepting
from worker.api.errors import Unreachable
from worker.api.events import (
    ANNOUNCED_FAILURES,
    NO_POOL_SECONDS,
    STEADY_SECONDS,
    EventStream,
    Heard,
    decoded,
    passing,
    pause,
    subscription,
    token,
)
from worker.api.transport import Transport

pytestmark = pytest.mark.anyio

URL = "http://prefect.test/api"
CLOUD = "https://api.prefect.cloud/api/accounts/a/workspaces/w"
POOL, OTHER_POOL = UUID(int=1), UUID(int=2)
CANCELLING, SCHEDULED = "prefect.flow-run.Cancelling", "prefect.flow-run.Scheduled"
KEY, AUTH = "pnu_very-secret", "user:very-secret"  # made up

Answer = OtherEnd | int | httpx.Response | Exception


def event(name: str, run: object = "r", related: object = ()) -> str:
    resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
    return json.dumps({"type": "event", "event": {"event": name, "resource": resource, "related": related}})


def _of(deployment: object) -> dict[str, str]:
    return {
        "prefect.resource.id": f"prefect.deployment.{deployment}",
        "prefect.resource.role": "deployment",
    }


@dataclass
class Bench:
    """An event stream whose connections are `answers`, one after the other, and what it did."""

    answers: deque[Answer]
    stream: EventStream
    transport: Transport
    logs: list[EventDict]
    pool: UUID | None = POOL
    now: float = 0.0
    rings: list[str] = field(default_factory=list[str])
    heard: list[Heard] = field(default_factory=list[Heard])
    requests: list[httpx.Request] = field(default_factory=list[httpx.Request])

    def told(self) -> list[tuple[str, str]]:
        """What an operator sees, with its level."""
        return [(entry["log_level"], entry["event"]) for entry in self.logs if entry["log_level"] != "debug"]

    def reasons(self) -> list[str]:
        return [entry["reason"] for entry in self.logs if entry["event"] == "push.disconnected"]


@asynccontextmanager
async def bench(*answers: Answer, url: str = URL, **settings: Any) -> AsyncGenerator[Bench]:
    def answer(request: httpx.Request) -> httpx.Response:
        found.requests.append(request)
        match step := found.answers.popleft():
            case OtherEnd():
                return accepting(request, step)
            case int():
                return httpx.Response(step)
            case httpx.Response():
                return step
            case _:
                raise step

    def scheduled(heard: Heard) -> None:
        found.rings.append("scheduled")
        found.heard.append(heard)

    configured = api_settings(url, **settings)

    async def no_time(_: float) -> None:
        await anyio.lowlevel.checkpoint()

    transport = Transport(
        settings=configured,
        random=lambda: 0.5,
        transport=httpx.MockTransport(answer),
        sleep=no_time,
        monotonic=lambda: found.now,
    )
    with capture_logs() as logs:
        stream = EventStream(
            transport=transport,
            settings=configured,
            work_pool_id=lambda: found.pool,
            bells={
                CANCELLING: lambda _: found.rings.append("cancelling"),
                SCHEDULED: scheduled,
            },
            random=lambda: 0.5,
            monotonic=lambda: found.now,
        )
        found = Bench(answers=deque(answers), stream=stream, transport=transport, logs=logs)
        async with transport:
            yield found


def saying(*steps: Step) -> OtherEnd:
    """A server that accepts our credentials, says this, and cuts the connection."""
    return OtherEnd(deque([*steps, Broken()]))


# what it says and hears


async def test_it_authenticates_subscribes_and_rings_once_because_something_may_have_been_missed() -> None:
    other = saying()
    async with bench(other) as found:
        await found.stream.listen_once()
    (request,) = found.requests
    assert str(request.url) == f"{URL}/events/out"
    assert request.headers["Sec-WebSocket-Protocol"] == "prefect"
    auth, asked = map(json.loads, other.said)
    assert auth == {"type": "auth", "token": None}
    assert asked == {
        "type": "filter",
        "filter": {
            "occurred": {"until": "2100-01-01T00:00:00Z"},
            "event": {"name": [CANCELLING, SCHEDULED]},
            "any_resource": {"id": [f"prefect.work-pool.{POOL}"]},
        },
        "backfill": False,
    }
    assert found.rings == ["cancelling", "scheduled"]
    assert other.closed


async def test_an_event_rings_its_own_bell_and_one_we_did_not_ask_for_none() -> None:
    async with bench(
        saying(event(CANCELLING), event("prefect.flow-run.Running"), event(SCHEDULED), event(CANCELLING))
    ) as found:
        await found.stream.listen_once()
    assert found.rings[2:] == ["cancelling", "scheduled", "cancelling"]


RUN, DEPLOYMENT = UUID(int=3), UUID(int=4)


RELATED: list[tuple[object, object, Heard]] = [
    (RUN, [{"prefect.resource.id": "prefect.flow.1"}, _of(DEPLOYMENT)], Heard(RUN, DEPLOYMENT)),
    (RUN, [], Heard(RUN)),
    (RUN, [_of("no-id")], Heard(RUN)),
    (RUN, None, Heard(RUN)),
    (RUN, ["text", 1, {}], Heard(RUN)),
    ("no-id", [_of(DEPLOYMENT)], Heard(None, DEPLOYMENT)),
]


@pytest.mark.parametrize(("run", "related", "heard"), RELATED)
async def test_a_bell_is_told_the_run_and_its_deployment_as_far_as_the_event_names_them(
    run: object, related: object, heard: Heard
) -> None:
    async with bench(saying(event(SCHEDULED, run, related))) as found:
        await found.stream.listen_once()
    assert found.heard == [Heard(), heard]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "[" * 100_000,
        '{"type": "event"}',
        '{"type": "event", "event": {"event": 1}}',
    ],
)
async def test_what_cannot_be_read_may_have_been_anything(text: str) -> None:
    async with bench(saying(text, event(CANCELLING))) as found:
        await found.stream.listen_once()
    assert found.rings[2:] == ["cancelling", "scheduled", "cancelling"]


async def test_nothing_is_rung_before_the_credentials_are_accepted() -> None:
    other = OtherEnd(deque[Step]([event(CANCELLING)]), greets=False)
    async with bench(other) as found:
        await found.stream.listen_once()
    assert not found.rings
    assert len(other.said) == 1
    assert found.reasons() == ["the credentials were answered with something else"]


async def test_a_server_that_never_answers_the_credentials_is_left() -> None:
    other = OtherEnd(greets=False)
    async with bench(other, request_timeout=0.01) as found:
        await found.stream.listen_once()
    assert found.reasons() == ["no answer to the credentials within 0.01 s"]
    assert other.closed


async def test_an_answer_of_many_reads_is_waited_for() -> None:
    other = OtherEnd(deque[Step]([Silence(), '{"type": "auth_success"}', Broken()]), greets=False)
    async with bench(other) as found:
        await found.stream.listen_once()
    assert len(other.said) == 2
    assert found.rings == ["cancelling", "scheduled"]


async def test_without_a_pool_there_is_nothing_to_listen_to() -> None:
    async with bench() as found:
        found.pool = None
        assert await found.stream.listen_once() == NO_POOL_SECONDS
    assert not found.requests


async def test_a_pool_made_anew_is_subscribed_to_at_once() -> None:
    first, second = OtherEnd(), saying()
    delays: list[float] = []
    async with bench(first, second) as found:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                delays.append(await found.stream.listen_once())

            tasks.start_soon(listen)
            while len(first.said) < 2:
                await anyio.lowlevel.checkpoint()
            found.pool = OTHER_POOL
            first.then(event(CANCELLING))
        assert delays == [0.0]
        assert first.closes == [1000]
        await found.stream.listen_once()
    assert json.loads(second.said[1])["filter"]["any_resource"]["id"] == [f"prefect.work-pool.{OTHER_POOL}"]


async def test_whoever_is_cancelled_leaves_at_once() -> None:
    other = OtherEnd()
    async with bench(other) as found:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(found.stream.listen_once)
            while not found.rings:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert (other.closes, other.closed) == ([1000], True)


# when it ends


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (saying(), "ReadError"),
        (OtherEnd(deque[Step]([Silence(), Silence()])), "no answer to a ping within 20 s"),
        (
            OtherEnd(deque[Step]([CloseConnection(code=1012, reason="restart")])),
            "closed with code 1012: restart",
        ),
        (503, "the answer to the websocket handshake is HTTP 503"),
        (httpx.ConnectError("refused"), "ConnectError: refused"),
        (httpx.ReadTimeout(""), "ReadTimeout: no answer in time (PREFECT_API_REQUEST_TIMEOUT)"),
    ],
)
async def test_a_lost_connection_is_tried_again_soon_and_nobody_is_told(answer: Answer, reason: str) -> None:
    async with bench(answer) as found:
        delay = await found.stream.listen_once()
    assert 0.1 < delay < 1
    assert found.reasons() == [reason]
    assert not found.told()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (404, "HTTP 404"),
        (403, "HTTP 403"),
        (401, "HTTP 401"),
        (307, "HTTP 307"),
        (200, "HTTP 200"),
        (
            OtherEnd(deque[Step]([CloseConnection(code=1008, reason="Invalid token")]), greets=False),
            "closed with code 1008: Invalid token",
        ),
        (
            OtherEnd(deque[Step]([CloseConnection(code=1002, reason="Invalid filter")])),
            "closed with code 1002: Invalid filter",
        ),
    ],
)
async def test_a_server_that_will_not_have_us_is_told_once_and_tried_rarely(
    answer: Answer, reason: str
) -> None:
    async with bench(answer, 404) as found:
        assert 200 < await found.stream.listen_once() < 400
        assert 200 < await found.stream.listen_once() < 400
    assert found.told() == [("info", "push.unavailable")]
    assert reason in found.reasons()[0]


async def test_a_websocket_that_never_stays_is_told_once_and_its_recovery_once() -> None:
    async with bench(*(saying() for _ in range(ANNOUNCED_FAILURES + 2))) as found:
        delays = [await found.stream.listen_once() for _ in range(ANNOUNCED_FAILURES - 1)]
        assert not found.told()
        await found.stream.listen_once()
        await found.stream.listen_once()
        assert found.told() == [("info", "push.unavailable")]
        assert delays == sorted(delays)

        steady = OtherEnd()
        found.answers = deque([steady, saying()])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(found.stream.listen_once)
            while len(steady.said) < 2:
                await anyio.lowlevel.checkpoint()
            found.now += STEADY_SECONDS
            steady.then(event(CANCELLING), Broken())
        assert found.told() == [("info", "push.unavailable"), ("info", "push.recovered")]
        assert await found.stream.listen_once() <= delays[1]


async def test_during_an_outage_of_the_rest_api_nothing_more_is_said() -> None:
    async with bench() as found:
        found.answers.extend(httpx.ConnectError("refused") for _ in range(20))
        with pytest.raises(Unreachable):
            await found.transport.request("GET", "/health", operation="look", patience={"max_tries": 20})
        assert found.told() == [("warning", "api.unreachable")]

        found.answers.extend(httpx.ConnectError("refused") for _ in range(3 * ANNOUNCED_FAILURES))
        for _ in range(2 * ANNOUNCED_FAILURES):
            await found.stream.listen_once()
        found.answers.appendleft(httpx.Response(200, json=True))
        await found.transport.request("GET", "/health", operation="look")
        for _ in range(ANNOUNCED_FAILURES - 1):
            await found.stream.listen_once()
        assert found.told() == [("warning", "api.unreachable"), ("info", "api.recovered")]


async def test_credentials_are_in_no_log_and_no_error() -> None:
    refusing = OtherEnd(deque[Step]([CloseConnection(code=1008, reason="Invalid token")]), greets=False)
    async with bench(refusing, 401, httpx.ConnectError("refused"), auth_string=SecretStr(AUTH)) as found:
        for _ in range(3):
            await found.stream.listen_once()
    assert json.loads(refusing.said[0])["token"] == AUTH
    assert "very-secret" not in json.dumps(found.logs)


# the pure parts


@pytest.mark.parametrize(
    ("failures", "for_good", "low", "high"),
    [
        (1, False, 0.4, 0.8),
        (2, False, 0.8, 1.6),
        (5, False, 6.4, 12.8),
        (50, False, 15, 30),
        (1, True, 225, 375),
    ],
)
def test_pauses(failures: int, for_good: bool, low: float, high: float) -> None:
    def after(random: Callable[[], float]) -> float:
        return pause(failures, for_good=for_good, random=random)

    assert after(lambda: 0.0) == pytest.approx(low)
    assert after(lambda: 1.0) == pytest.approx(high)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(408, True), (425, True), (429, True), (500, True), (502, True), (503, True)]
    + [(status, False) for status in (200, 204, 301, 307, 400, 401, 403, 404, 405, 426)],
)
def test_which_answers_pass(status: int, expected: bool) -> None:
    assert passing(status) is expected


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        (URL, {}, None),
        (URL, {"auth_string": SecretStr(f" {AUTH}\n")}, AUTH),
        (URL, {"key": SecretStr(KEY)}, KEY),
        (URL, {"auth_string": SecretStr(AUTH), "key": SecretStr(KEY)}, AUTH),
        (CLOUD, {"auth_string": SecretStr(AUTH), "key": SecretStr(f"{KEY}\n")}, KEY),
        (CLOUD, {"auth_string": SecretStr(AUTH)}, AUTH),
        ("http://user:very%2Dsecret@prefect.test/api", {}, AUTH),
    ],
)
def test_the_token_is_the_credential_of_the_rest_calls_in_the_clear(
    url: str, settings: dict[str, Any], expected: str | None
) -> None:
    assert token(api_settings(url, cloud_api_url="https://api.prefect.cloud/api", **settings)) == expected


def test_a_subscription_names_every_event_and_one_pool() -> None:
    asked = subscription(POOL, names=(CANCELLING,))
    assert asked["filter"]["event"]["name"] == [CANCELLING]
    assert asked["filter"]["any_resource"]["id"] == [f"prefect.work-pool.{POOL}"]


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1}', {"a": 1}), ("", None), ("{", None), ("[" * 100_000, None)]
)
def test_text_that_is_no_json_is_nothing(text: str, value: Any) -> None:
    assert decoded(text) == value
