"""The unit tier's guard: nothing here talks to anybody.

`httpx.MockTransport` needs no socket; a test that needs one belongs into tests/server or tests/faults.
"""

import socket
from typing import NoReturn

import pytest


class NetworkUsedError(BaseException):
    """A unit test tried to connect. Not an `Exception`, so that no retry rule under test swallows it."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every outgoing connection fail, loopback and Unix sockets included."""

    def refuse(_: socket.socket, address: object) -> NoReturn:
        raise NetworkUsedError(
            f"a unit test connects to {address!r}; move it to tests/server or tests/faults"
        )

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
