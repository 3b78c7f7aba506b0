"""The control channel, parent side (PROTOCOL 4.4): telling an engine why it is stopped, hearing what it concluded.

Owns: one loopback listener for all children, their tokens, the bytes on the wire.
Does not own: the signal that has to follow an intent (the byte alone stops nothing), and what a receipt means for the run.

Whoever can open a connection on this machine can talk to the listener. So a stranger has five seconds and one short
line; a token is compared by its digest and works once; after that a child can only hurt its own conversation.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import anyio
import structlog
from anyio.abc import ByteStream, SocketAttribute, SocketListener, SocketStream, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from worker.processes.control_messages import MAX_RECEIPT, Intent, IntentResult, Receipt, decode_receipt

_TOKEN_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
_TOKEN_LINE = 64
_STRANGERS = 64
_HELLO = b"\x00PF"
_VERSION_2 = 2
_RECEIPTS = 1
_RECEIPT, _RECEIPT_ACK, _INTENT_ACK = b"\x01", b"\x02", b"a"
# accept(2): a connection that was given up, or nothing left to accept it with.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED}
_SHORTAGE_PAUSE = 0.1
_GONE = (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(slots=True, eq=False)
class _Session:
    """One registered child, from `register` to `unregister`."""

    flow_run_id: str
    sending: anyio.Lock = field(default_factory=anyio.Lock)
    arrived: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    released: anyio.Event = field(default_factory=anyio.Event)
    answered: anyio.Event = field(default_factory=anyio.Event)
    stream: ByteStream | None = None
    takes_receipts: bool = False
    sent: Intent | None = None
    acknowledged: Intent | None = None
    receipt: Receipt | None = None

    @property
    def concluded(self) -> bool:
        return self.receipt is not None or self.acknowledged is not None

    def conclude(self, conclusion: Receipt | Intent) -> bool:
        """The first one stands. Returns whether this is it."""
        if self.concluded:
            return False
        match conclusion:
            case Receipt():
                self.receipt = conclusion
            case Intent():
                self.acknowledged = conclusion
        self.answered.set()
        return True

    async def send(self, data: bytes) -> None:
        async with self.sending:
            if self.stream is not None:
                await self.stream.send(data)


class _ProtocolError(Exception):
    """The child said something that is not in the protocol."""


class ControlChannel:
    """The listener and the children registered with it. One per daemon: `await task_group.start(channel.serve)`."""

    def __init__(self, *, patience: float = _TOKEN_SECONDS) -> None:
        """`patience`: seconds that a stranger has for its token, and a child for the rest of a message."""
        self._patience = patience
        self._log = structlog.stdlib.get_logger()
        self._port: int | None = None
        self._sessions: dict[bytes, _Session] = {}
        self._unused: set[bytes] = set()

    @property
    def port(self) -> int:
        """The port to put into PREFECT__CONTROL_PORT. Raises RuntimeError unless `serve` runs."""
        if self._port is None:
            raise RuntimeError("the control channel does not listen: start `serve` first")
        return self._port

    def register(self, flow_run_id: str) -> str:
        """A token for a child about to be launched, for PREFECT__CONTROL_TOKEN: 32 hexadecimal digits, for one use."""
        token = secrets.token_hex(16)
        digest = _digest(token.encode())
        self._sessions[digest] = _Session(flow_run_id)
        self._unused.add(digest)
        return token

    def unregister(self, token: str) -> None:
        """Forget the child and let go of its connection. Harmless when repeated."""
        digest = _digest(token.encode())
        self._unused.discard(digest)
        session = self._sessions.pop(digest, None)
        if session is not None:
            session.ended.set()
            session.released.set()

    async def finish(self, token: str) -> Receipt | Intent | None:
        """The process has ended: take in what it may have sent last, forget it, return what it concluded, if anything."""
        session = self._sessions.get(_digest(token.encode()))
        if session is not None and session.stream is not None:
            with anyio.move_on_after(_LAST_WORDS_SECONDS):
                await session.ended.wait()
        self.unregister(token)
        return session and (session.receipt or session.acknowledged)

    def connected(self, token: str) -> bool:
        """Whether the engine listens: it has armed its SIGTERM handler and has not concluded (PROTOCOL 4.4)."""
        session = self._sessions.get(_digest(token.encode()))
        return session is not None and session.stream is not None

    async def wait_connected(self, token: str) -> None:
        """Wait until the engine has connected, just before it proposes Running; for ever if it never does."""
        session = self._sessions.get(_digest(token.encode()))
        await (anyio.sleep_forever() if session is None else session.arrived.wait())

    def receipt(self, token: str) -> Receipt | None:
        """What the engine reported at its end, if it did."""
        session = self._sessions.get(_digest(token.encode()))
        return session.receipt if session else None

    def acknowledged(self, token: str) -> Intent | None:
        """The intent that the engine has taken over, also when it said so after the time-out of `send_intent`."""
        session = self._sessions.get(_digest(token.encode()))
        return session.acknowledged if session else None

    async def wait_concluded(self, token: str) -> Receipt | Intent | None:
        """Wait for the receipt or the acknowledged intent; None when the connection or the registration ended without."""
        session = self._sessions.get(_digest(token.encode()))
        if session is None:
            return None
        await session.ended.wait()
        return session.receipt or session.acknowledged

    async def send_intent(self, token: str, intent: Intent, *, timeout: float = 1.0) -> IntentResult:
        """Tell the engine why SIGTERM will come; waits for its answer at most `timeout` seconds.

        An engine takes one intent: another one after it is NO_ACK, the same one again has the same result.
        """
        session = self._sessions.get(_digest(token.encode()))
        if session is None:
            return IntentResult.NOT_CONNECTED
        if not session.concluded and session.sent in {None, intent}:
            if session.stream is None:
                return IntentResult.NOT_CONNECTED
            with anyio.move_on_after(timeout):
                if session.sent is None:
                    session.sent = intent
                    try:
                        await session.send(intent.byte)
                    except _GONE:
                        return IntentResult.NOT_CONNECTED
                await session.answered.wait()
        if session.receipt is not None:
            return IntentResult.ALREADY_CONCLUDED
        return IntentResult.ACKNOWLEDGED if session.acknowledged is intent else IntentResult.NO_ACK

    async def serve(self, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen on a free loopback port until cancelled; the port is the started value. Raises OSError if none is free."""
        listeners = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        try:
            (listener,) = cast("list[SocketListener]", listeners.listeners)
            port = listener.extra_attributes[SocketAttribute.local_port]()
            self._port = port
            async with anyio.create_task_group() as children:
                strangers = anyio.Semaphore(_STRANGERS)
                task_status.started(port)
                while True:
                    await strangers.acquire()
                    stream = await self._accept(listener)
                    children.start_soon(self._converse, stream, strangers)
        finally:
            self._port = None
            with anyio.CancelScope(shield=True):
                await listeners.aclose()

    async def _accept(self, listener: SocketListener) -> SocketStream:
        short = False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                if not short:
                    self._log.warning("control.cannot_accept", reason=str(error), hint="raise `ulimit -n`")
                short = True
                await anyio.sleep(_SHORTAGE_PAUSE)  # the connection waits in the backlog meanwhile
            else:
                if short:
                    self._log.info("control.recovered")
                return stream

    async def _converse(self, stream: SocketStream, strangers: anyio.Semaphore) -> None:
        async with stream:
            received = BufferedByteReceiveStream(stream)
            try:
                session = await self._authenticate(received)
            finally:
                strangers.release()
            if session is None:
                return
            session.stream = stream
            session.arrived.set()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_when_unregistered, session, tasks.cancel_scope)
                    await self._listen(session, received)
                    tasks.cancel_scope.cancel()
            finally:
                session.stream = None
                session.answered.set()
                session.ended.set()

    async def _authenticate(self, received: BufferedByteReceiveStream) -> _Session | None:
        line = b""
        with anyio.move_on_after(self._patience):
            with suppress(anyio.DelimiterNotFound, *_GONE):
                line = await received.receive_until(b"\n", _TOKEN_LINE)
        digest = _digest(line.strip())
        if digest not in self._unused:
            self._log.debug("control.rejected", reason="no valid token")
            return None
        self._unused.discard(digest)
        return self._sessions.get(digest)

    async def _listen(self, session: _Session, received: BufferedByteReceiveStream) -> None:
        try:
            while not session.concluded:
                first = await received.receive_exactly(1)
                with anyio.fail_after(self._patience):
                    await _take_message(session, first, received)
        except _GONE:
            pass  # the child has gone; its exit says why
        except (_ProtocolError, TimeoutError) as error:
            self._log.warning(
                "control.malformed", flow_run_id=session.flow_run_id, reason=str(error) or "too slow"
            )


async def _take_message(session: _Session, first: bytes, received: BufferedByteReceiveStream) -> None:
    if first == _INTENT_ACK:
        if session.sent is None:
            raise _ProtocolError("acknowledged an intent that was not sent")
        session.conclude(session.sent)
    elif first == _HELLO[:1]:
        rest = await received.receive_exactly(4)
        if rest[:2] != _HELLO[1:]:
            raise _ProtocolError("malformed hello")
        session.takes_receipts = rest[2] >= _VERSION_2 and bool(rest[3] & _RECEIPTS)
        await session.send(
            _HELLO + (bytes((_VERSION_2, _RECEIPTS)) if session.takes_receipts else bytes((1, 0)))
        )
    elif first == _RECEIPT and session.takes_receipts:
        size = int.from_bytes(await received.receive_exactly(4), "big")
        if size > MAX_RECEIPT:
            raise _ProtocolError(f"a receipt of {size} bytes, more than {MAX_RECEIPT}")
        try:
            receipt = decode_receipt(await received.receive_exactly(size))
        except ValueError as error:
            raise _ProtocolError(f"malformed receipt: {error}") from None
        if session.conclude(receipt):
            await session.send(_RECEIPT_ACK)
    else:
        raise _ProtocolError(f"unexpected byte 0x{first.hex()}")


async def _when_unregistered(session: _Session, scope: anyio.CancelScope) -> None:
    await session.released.wait()
    scope.cancel()


def _digest(token: bytes) -> bytes:
    """Tokens are looked up by digest: how long that takes tells nothing of how much of a guess was right."""
    return hashlib.sha256(token).digest()
