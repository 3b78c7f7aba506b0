"""The datagrams of sd_notify(3), on real sockets; the variables that lead to them."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.sd_notify import Address, ServiceManager, take_address

PID = 77


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "5000000"}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "/run/x"}, Address("/run/x", None)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000"}, Address("@x", 1.5)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "77"}, Address("@x", 1.5)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "78"}, Address("@x", None)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, Address("@x", None)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, Address("@x", None)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "\N{SUPERSCRIPT TWO}"}, Address("@x", None)),
    ],
)
def test_the_variables_are_read_and_taken_away(environ: dict[str, str], address: Address | None) -> None:
    given = environ | {"PATH": "/bin"}
    assert take_address(given, pid=PID) == address
    assert given == {"PATH": "/bin"}


def receiver(name: str) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    ours.bind(name)
    return ours


def test_what_could_not_be_sent_goes_with_the_next_word(tmp_path: Path) -> None:
    name = str(tmp_path / "s")
    manager = ServiceManager(Address(name, 4.0))
    assert manager.listens
    assert manager.watchdog == 4.0
    with capture_logs() as logs:
        manager.tell({"READY": "1", "STATUS": "first"})
        manager.tell({"WATCHDOG": "1"})
        with receiver(name) as ours:
            manager.tell({"STATUS": "two\nlines"})
            assert ours.recv(4096).decode().split("\n") == ["READY=1", "STATUS=two lines", "WATCHDOG=1"]
            manager.tell({"STOPPING": "1"})
            assert ours.recv(4096) == b"STOPPING=1"
    manager.close()
    manager.tell({"READY": "1"})
    assert [log["event"] for log in logs] == ["service_manager.unreachable", "service_manager.reached"]


def test_an_abstract_name() -> None:
    name = f"headrace-test-{os.getpid()}"
    manager = ServiceManager(Address(f"@{name}", None))
    with receiver(f"\0{name}") as ours:
        manager.tell({"READY": "1"})
        assert ours.recv(4096) == b"READY=1"
    manager.close()


@pytest.mark.parametrize("path", ["vsock:2:1234", "relative", "x" * 300])
def test_an_address_that_cannot_be_used_is_named(path: str) -> None:
    with capture_logs() as logs:
        manager = ServiceManager(Address(path, 4.0))
        manager.tell({"READY": "1"})
    assert not manager.listens
    (log,) = logs
    assert path in log["reason"]


def test_a_path_that_is_too_long_is_told() -> None:
    with capture_logs() as logs:
        manager = ServiceManager(Address("/" + "x" * 300, None))
        manager.tell({"READY": "1"})
    manager.close()
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("service_manager.unreachable", "AF_UNIX path too long")
    ]


def test_without_a_manager_nothing_is_said() -> None:
    manager = ServiceManager(None)
    manager.tell({"READY": "1"})
    manager.close()
    assert not manager.listens
