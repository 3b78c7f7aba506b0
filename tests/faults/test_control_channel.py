"""The control channel over real sockets: well-behaved engines of both protocols, Prefect's own, and everybody else."""

import json
import os
import random
import resource
import socket
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from structlog.testing import capture_logs

from tests.support.leaks import open_descriptors
from tests.support.processes import Launches
from tests.support.wait import wait_until
from worker.processes.control import ControlChannel
from worker.processes.control_messages import Disposition, Intent, IntentResult, Receipt

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

HELLO = b"\x00PF\x02\x01"
ABORTED = b'{"disposition":"ORCHESTRATION_ABORTED"}'
STATE_ID = "5d8f2e9c-30cb-4a6b-8a3b-2a1c4b6d7e8f"


@asynccontextmanager
async def listening(*, patience: float = 30.0) -> AsyncGenerator[ControlChannel]:
    """A channel for one test. A stranger gets long where the test is not about being patient: machines are busy."""
    channel = ControlChannel(patience=patience)
    async with anyio.create_task_group() as group:
        assert await group.start(channel.serve) == channel.port
        yield channel
        group.cancel_scope.cancel()


class Child:
    """The engine's end of a connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._received = BufferedByteReceiveStream(stream)

    async def receive(self, count: int) -> bytes:
        with anyio.fail_after(30):
            return await self._received.receive_exactly(count)

    async def is_let_go(self) -> bool:
        """Wait for the end of the connection; what comes before is dropped."""
        with anyio.fail_after(30):
            try:
                while True:
                    await self.receive(1)
            except (anyio.IncompleteRead, anyio.BrokenResourceError):
                return True

    async def send_receipt(self, payload: bytes) -> None:
        await self.stream.send(b"\x01" + struct.pack("!I", len(payload)) + payload)


@asynccontextmanager
async def child(channel: ControlChannel, *first: bytes) -> AsyncGenerator[Child]:
    """A connection on which `first` has been sent."""
    async with await anyio.connect_tcp("127.0.0.1", channel.port) as stream:
        for data in first:
            await stream.send(data)
        yield Child(stream)


@asynccontextmanager
async def engine(channel: ControlChannel, token: str) -> AsyncGenerator[Child]:
    """An engine of Prefect 3.8.4 or later, connected and agreed on receipts."""
    async with child(channel, token.encode() + b"\n", HELLO) as connected:
        assert await connected.receive(5) == HELLO
        yield connected


async def works_for_others(channel: ControlChannel) -> None:
    token = channel.register("another run")
    async with engine(channel, token) as other, anyio.create_task_group() as group:

        async def send() -> None:
            assert await channel.send_intent(token, Intent.CANCEL, timeout=30) is IntentResult.ACKNOWLEDGED

        group.start_soon(send)
        assert await other.receive(1) == b"c"
        await other.stream.send(b"a")
    channel.unregister(token)


# Intents


@pytest.mark.parametrize(
    ("intent", "byte"), [(Intent.CANCEL, b"c"), (Intent.RESCHEDULE, b"r"), (Intent.RELINQUISH, b"q")]
)
@pytest.mark.parametrize("hello", [b"", HELLO], ids=["protocol 1", "protocol 2"])
async def test_an_acknowledged_intent(intent: Intent, byte: bytes, hello: bytes) -> None:
    async with listening() as channel:
        token = channel.register("run")
        results: list[IntentResult] = []
        async with child(channel, token.encode() + b"\n", hello) as connected:
            await channel.wait_connected(token)
            assert channel.connected(token)
            if hello:
                assert await connected.receive(5) == HELLO
            async with anyio.create_task_group() as group:

                async def send() -> None:
                    results.append(await channel.send_intent(token, intent, timeout=30))

                group.start_soon(send)
                group.start_soon(send)  # two reasons to cancel at one time
                assert await connected.receive(1) == byte
                await connected.stream.send(b"a")
            assert await connected.is_let_go()
        assert results == [IntentResult.ACKNOWLEDGED] * 2
        assert await channel.send_intent(token, intent) is IntentResult.ACKNOWLEDGED
        assert await channel.wait_concluded(token) is intent
        assert channel.acknowledged(token) is intent
        assert channel.receipt(token) is None
        other = Intent.CANCEL if intent is not Intent.CANCEL else Intent.RESCHEDULE
        assert await channel.send_intent(token, other) is IntentResult.NO_ACK
        assert await channel.finish(token) is intent


async def test_an_engine_that_does_not_answer_in_time_but_later() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token) as connected:
            assert await channel.send_intent(token, Intent.CANCEL, timeout=0.01) is IntentResult.NO_ACK
            await connected.stream.send(b"a")
            assert await channel.wait_concluded(token) is Intent.CANCEL


async def test_an_engine_that_goes_instead_of_answering() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with anyio.create_task_group() as group, engine(channel, token) as connected:

            async def send() -> None:
                assert await channel.send_intent(token, Intent.CANCEL, timeout=60) is IntentResult.NO_ACK

            group.start_soon(send)
            assert await connected.receive(1) == b"c"
        assert await channel.wait_concluded(token) is None
        assert await channel.send_intent(token, Intent.CANCEL) is IntentResult.NOT_CONNECTED


# Receipts


@pytest.mark.parametrize(
    ("payload", "receipt"),
    [
        (ABORTED, Receipt(Disposition.ORCHESTRATION_ABORTED)),
        (b" " * (4096 - len(ABORTED)) + ABORTED, Receipt(Disposition.ORCHESTRATION_ABORTED)),
    ],
    ids=["small", "as large as may be"],
)
async def test_a_receipt(payload: bytes, receipt: Receipt) -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token) as connected:
            await connected.send_receipt(payload)
            assert await connected.receive(1) == b"\x02"
            assert await connected.is_let_go()
        assert await channel.wait_concluded(token) == receipt
        assert channel.receipt(token) == receipt
        assert await channel.send_intent(token, Intent.CANCEL) is IntentResult.ALREADY_CONCLUDED
        assert await channel.finish(token) == receipt
        assert channel.receipt(token) is None


async def test_a_receipt_that_crosses_an_intent_wins() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token) as connected, anyio.create_task_group() as group:

            async def send() -> None:
                result = await channel.send_intent(token, Intent.CANCEL, timeout=30)
                assert result is IntentResult.ALREADY_CONCLUDED

            group.start_soon(send)
            assert await connected.receive(1) == b"c"
            await connected.send_receipt(ABORTED)
            assert await connected.receive(1) == b"\x02"


async def test_a_receipt_sent_with_the_last_breath() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token) as connected:
            await connected.send_receipt(ABORTED)
        assert await channel.finish(token) == Receipt(Disposition.ORCHESTRATION_ABORTED)


async def test_the_hello_of_a_lesser_engine_is_declined() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with child(channel, token.encode() + b"\n", b"\x00PF\x01\x00") as connected:
            assert await connected.receive(5) == b"\x00PF\x01\x00"
            await connected.send_receipt(ABORTED)
            assert await connected.is_let_go()
        assert channel.receipt(token) is None


# Everybody else


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"f" * 32 + b"\n",
        b"\xff" * 32 + b"\n",
        b"x" * 100_000,
        b"\x00PF\x02\x01",
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
async def test_strangers(data: bytes, reset: bool) -> None:
    async with listening() as channel:
        async with await anyio.connect_tcp("127.0.0.1", channel.port) as stream:
            try:
                await stream.send(data)
                if not reset:
                    await stream.send_eof()
            except anyio.BrokenResourceError:
                pass  # thrown out while talking
            if reset:
                raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                assert await Child(stream).is_let_go()
        await works_for_others(channel)


@pytest.mark.parametrize(
    "data",
    [
        b"a",
        b"x",
        b"\x00QQ\x02\x01",
        b"\x00P",
        b"\x01" + struct.pack("!I", len(ABORTED)) + ABORTED,
        HELLO + b"\x01" + struct.pack("!I", 4097),
        HELLO + b"\x01" + struct.pack("!I", 0xFFFFFFFF),
        HELLO + b"\x01" + struct.pack("!I", 2) + b"{}",
        HELLO + b"\x01" + struct.pack("!I", 4096) + b"[" * 4096,
        HELLO + b"\x01" + struct.pack("!I", 100) + b"{",
    ],
)
async def test_children_who_do_not_keep_to_the_protocol(data: bytes) -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with child(channel, token.encode() + b"\n", data) as connected:
            await connected.stream.send_eof()
            assert await connected.is_let_go()
        assert await channel.wait_concluded(token) is None
        assert await channel.finish(token) is None
        await works_for_others(channel)


async def test_noise() -> None:
    dice = random.Random(7)
    before = open_descriptors()
    async with listening(patience=0.2) as channel, anyio.create_task_group() as group:

        async def make_noise() -> None:
            token = channel.register("run")
            start = token.encode() + b"\n" if dice.random() < 0.7 else b""
            hello = HELLO if dice.random() < 0.5 else b""
            noise = bytes(dice.choice(b"\x00\x01\x02aPF\x00\xff") for _ in range(dice.randrange(60)))
            try:
                async with child(channel, start + hello + noise):
                    await channel.send_intent(token, Intent.CANCEL, timeout=dice.random() / 10)
            except anyio.BrokenResourceError:
                pass
            channel.unregister(token)

        for _ in range(300):
            group.start_soon(make_noise)
        await works_for_others(channel)
    assert open_descriptors().keys() == before.keys()


async def test_a_token_is_for_one_use_and_for_its_own_run() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token), child(channel, token.encode() + b"\n") as thief:
            assert await thief.is_let_go()
            assert channel.connected(token)
        async with child(channel, token.encode() + b"\n") as late:
            assert await late.is_let_go()
        gone = channel.register("gone")
        channel.unregister(gone)
        async with child(channel, gone.encode() + b"\n") as late:
            assert await late.is_let_go()


async def test_the_end_of_a_registration_ends_the_connection() -> None:
    async with listening() as channel:
        token = channel.register("run")
        async with engine(channel, token) as connected:
            channel.unregister(token)
            assert await connected.is_let_go()


async def test_those_who_say_nothing_are_shown_out_and_others_get_their_turn() -> None:
    async with listening(patience=0.3) as channel:
        strangers = [await anyio.connect_tcp("127.0.0.1", channel.port) for _ in range(150)]
        await works_for_others(channel)
        for stranger in strangers:
            assert await Child(stranger).is_let_go()
            await stranger.aclose()


async def test_a_daemon_without_a_free_descriptor_says_so_once_and_listens_on() -> None:
    with capture_logs() as logs:
        async with listening() as channel:
            token = channel.register("run")
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.create_connection(("127.0.0.1", channel.port)) as connection:
                free = os.dup(connection.fileno())
                os.close(free)
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
                try:
                    await wait_until(lambda: logs, description="the connection that could not be accepted")
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                connection.sendall(token.encode() + b"\n")
                await wait_until(lambda: channel.connected(token), description="the connection")
    assert [entry["event"] for entry in logs] == ["control.cannot_accept", "control.recovered"]


# Prefect's own child


@pytest.fixture
def launches(tmp_path: Path, session_mark: str) -> Iterator[Launches]:
    launches = Launches(directory=tmp_path, session_mark=session_mark)
    yield launches
    launches.end()


# What the flow engine does around the user's code (prefect.flow_engine), without a server.
ENGINE = """
import sys, time
from uuid import UUID
from prefect._internal import control_listener
from prefect._internal.attempt_control import EngineOutcomeReceipt
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm

try:
    with capture_sigterm():
        print("armed", flush=True)
        if sys.argv[1] == "waits":
            time.sleep(600)
        receipt = EngineOutcomeReceipt.state_reported(
            state_id=UUID(sys.argv[2]), state_type="COMPLETED", state_name="Completed"
        )
        print(control_listener.report_engine_outcome(receipt), flush=True)
except TerminationSignal:
    print(control_listener.get_intent(), flush=True)
"""


def engine_environment(channel: ControlChannel, token: str, home: Path) -> dict[str, str]:
    return {
        "PREFECT__CONTROL_PORT": str(channel.port),
        "PREFECT__CONTROL_TOKEN": token,
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
    }


@pytest.mark.parametrize("intent", list(Intent))
async def test_prefects_engine_takes_an_intent(launches: Launches, intent: Intent) -> None:
    async with listening() as channel:
        token = channel.register("run")
        handle = launches.python(ENGINE, "waits", env=engine_environment(channel, token, launches.directory))
        await wait_until(lambda: channel.connected(token), description="the engine's connection")
        await wait_until(lambda: launches.lines() == ["armed"], description="the word of the engine")
        assert await channel.send_intent(token, intent, timeout=30) is IntentResult.ACKNOWLEDGED
        await handle.stop(grace=60)
        assert (await handle.wait()).code == 0
        assert launches.lines() == ["armed", intent.value]
        assert await channel.finish(token) is intent


async def test_prefects_engine_without_an_intent_dies_of_sigterm(launches: Launches) -> None:
    async with listening() as channel:
        token = channel.register("run")
        handle = launches.python(ENGINE, "waits", env=engine_environment(channel, token, launches.directory))
        await wait_until(lambda: "armed" in launches.lines(), description="the engine")
        await handle.stop(grace=60)
        assert (await handle.wait()).describe() == "signal SIGTERM"
        assert await channel.finish(token) is None


async def test_prefects_engine_gives_a_receipt(launches: Launches) -> None:
    async with listening() as channel:
        token = channel.register("run")
        handle = launches.python(
            ENGINE, "reports", STATE_ID, env=engine_environment(channel, token, launches.directory)
        )
        with anyio.fail_after(120):
            concluded = await channel.wait_concluded(token)
        assert isinstance(concluded, Receipt)
        assert json.loads(
            json.dumps([concluded.disposition, str(concluded.state_id), concluded.state_name])
        ) == [
            "STATE_REPORTED",
            STATE_ID,
            "Completed",
        ]
        assert (await handle.wait()).code == 0
        assert launches.lines() == ["armed", "True"]
        assert await channel.finish(token) == concluded
