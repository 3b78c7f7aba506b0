import tracemalloc
from collections import deque

import anyio
import httpx
import pytest
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from tests.support.websockets import Broken, OtherEnd, Raw, Silence, Step, accepting, binary
from worker.api.websocket import LARGEST_MESSAGE, Disconnected, NotUpgraded, WebSocket, connect
from worker.api.websocket_frames import FramedWebSocket

pytestmark = pytest.mark.anyio

URL = "http://prefect.test/api/events/out"


def facing(*steps: Step) -> tuple[FramedWebSocket, OtherEnd]:
    other = OtherEnd(deque(steps))
    return FramedWebSocket(other), other


async def received(websocket: WebSocket, *, until: int = 1) -> list[str]:
    texts: list[str] = []
    while len(texts) < until:
        texts += await websocket.receive()
    return texts


# messages


async def test_what_is_sent_arrives_masked_and_whole() -> None:
    websocket, other = facing()
    await websocket.send("é" * 70_000)
    assert other.said == ["é" * 70_000]


async def test_a_message_in_pieces_is_put_together() -> None:
    websocket, _ = facing(
        TextMessage(data="one, ", message_finished=False),
        TextMessage(data="two, ", message_finished=False),
        TextMessage(data="three"),
        "next",
    )
    assert await received(websocket, until=2) == ["one, two, three", "next"]


async def test_several_messages_in_one_read_are_all_returned() -> None:
    first, second = OtherEnd(deque(["a"])), OtherEnd(deque(["b"]))
    both = await first.read(100, timeout=1) + await second.read(100, timeout=1)
    websocket, _ = facing(Raw(both))
    assert await websocket.receive() == ["a", "b"]


async def test_a_message_that_is_too_large_comes_empty_and_is_not_kept() -> None:
    piece = "x" * (LARGEST_MESSAGE // 4 + 1)
    websocket, _ = facing(
        *(TextMessage(data=piece, message_finished=False) for _ in range(8)), TextMessage(data="end"), "next"
    )
    assert await received(websocket, until=2) == ["", "next"]


async def test_a_large_frame_is_not_collected_before_it_is_thrown_away() -> None:
    frame = await OtherEnd(deque(["x" * (16 * LARGEST_MESSAGE)])).read(100, timeout=1)
    pieces = [Raw(frame[start : start + 65_536]) for start in range(0, len(frame), 65_536)]
    websocket, _ = facing(*pieces, "next")
    tracemalloc.start()
    try:
        assert await received(websocket, until=2) == ["", "next"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * LARGEST_MESSAGE


async def test_a_binary_message_comes_empty() -> None:
    websocket, _ = facing(binary(b"\0\1"), "next")
    assert await received(websocket, until=2) == ["", "next"]


# signs of life


async def test_a_ping_is_answered() -> None:
    websocket, other = facing(Ping(payload=b"are you there"))
    assert await websocket.receive() == []
    assert other.pongs == [b"are you there"]


async def test_a_pong_that_nobody_asked_for_is_harmless() -> None:
    websocket, _ = facing(Pong(payload=b"hello"), "next")
    assert await received(websocket) == ["next"]


async def test_silence_is_asked_about_and_an_answer_is_enough() -> None:
    websocket, other = facing(Silence(), Pong(), Silence(), "any data is an answer")
    assert await websocket.receive() == []
    assert other.pings == 1
    assert await websocket.receive() == ["any data is an answer"]
    assert other.pings == 2


async def test_an_unanswered_ping_is_the_end() -> None:
    websocket, other = facing(Silence(), Silence())
    with pytest.raises(Disconnected, match="no answer to a ping within 20 s"):
        await websocket.receive()
    assert other.pings == 1


# the end


async def test_the_other_side_closes_and_is_told_that_this_was_understood() -> None:
    websocket, other = facing(CloseConnection(code=1008, reason="Invalid token"))
    with pytest.raises(Disconnected, match="closed with code 1008: Invalid token") as caught:
        await websocket.receive()
    assert caught.value.code == 1008
    await websocket.say_goodbye()
    assert other.closes == [1008]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Raw(b""), "the connection was cut"),
        (Broken(), "ReadError"),
        (Raw(b"HTTP/1.1 502 Bad Gateway\r\n"), "not a websocket frame"),
        (Raw(b"\xf1\x00"), "not a websocket frame"),
        (Raw(b"\x81\x02\xff\xfe"), "not a websocket frame"),
    ],
)
async def test_every_other_end_has_a_reason_and_no_code(step: Step, reason: str) -> None:
    websocket, _ = facing(step)
    with pytest.raises(Disconnected, match=reason) as caught:
        await websocket.receive()
    assert caught.value.code is None


async def test_a_failing_write_is_the_end() -> None:
    websocket, other = facing(Ping(payload=b"x"))
    other.refuses_writes = True
    with pytest.raises(Disconnected, match="WriteError"):
        await websocket.receive()


# opening


def client(handler: httpx.MockTransport, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=handler, headers=headers)


async def test_the_handshake_asks_for_the_subprotocol_and_promises_no_extension() -> None:
    requests: list[httpx.Request] = []
    other = OtherEnd()

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return accepting(request, other)

    promising = {"Sec-WebSocket-Extensions": "permessage-deflate", "Upgrade": "h2c", "X-Tenant": "us"}
    async with client(httpx.MockTransport(answer), **promising) as http:
        async with connect(http, URL, subprotocol="prefect") as websocket:
            await websocket.send("hello")
        assert (other.said, other.closes, other.closed) == (["hello"], [1000], True)
    (request,) = requests
    assert request.headers["Sec-WebSocket-Protocol"] == "prefect"
    assert request.headers["Upgrade"] == "websocket"
    assert request.headers["X-Tenant"] == "us"
    assert "Sec-WebSocket-Extensions" not in request.headers


@pytest.mark.parametrize("status", [200, 307, 401, 403, 404, 503])
async def test_a_plain_answer_is_told_by_its_status_and_no_redirect_is_followed(status: int) -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(status, headers={"Location": "https://elsewhere.test/"})

    async with client(httpx.MockTransport(answer)) as http:
        with pytest.raises(NotUpgraded) as caught:
            async with connect(http, URL, subprotocol="prefect"):
                pytest.fail("there is no connection")
    assert caught.value.status == status
    assert len(requests) == 1


async def test_an_answer_to_another_handshake_is_refused() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        response = accepting(request, OtherEnd())
        response.headers["Sec-WebSocket-Accept"] = "c29tZWJvZHkgZWxzZSdz"
        return response

    async with client(httpx.MockTransport(answer)) as http:
        with pytest.raises(Disconnected, match="belongs to another one"):
            async with connect(http, URL, subprotocol="prefect"):
                pytest.fail("there is no connection")


async def test_whoever_is_cancelled_says_goodbye_and_closes() -> None:
    other = OtherEnd()
    listening = anyio.Event()

    async def listen() -> None:
        async with (
            client(httpx.MockTransport(lambda request: accepting(request, other))) as http,
            connect(http, URL, subprotocol="prefect") as websocket,
        ):
            listening.set()
            await websocket.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await listening.wait()
        tasks.cancel_scope.cancel()
    assert (other.closes, other.closed) == ([1000], True)
