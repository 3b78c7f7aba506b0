"""Telling a service manager how the daemon stands: datagrams to $NOTIFY_SOCKET, as in sd_notify(3).

Owns the address and the datagram. What is told, and when, is `observers`'. Without the variable nothing is ever sent.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

import structlog

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Address:
    """Where to send, as `$NOTIFY_SOCKET` has it, and within how many seconds to show signs of life (None: no matter)."""

    path: str
    watchdog: float | None


def take_address(environ: MutableMapping[str, str], *, pid: int) -> Address | None:
    """Read the variables, and take them away: what the daemon starts must not speak in its name.

    `pid` is our own: a watchdog that is meant for another process is none of ours (sd_watchdog_enabled(3)).
    """
    path, usec, watched = (environ.pop(name, "") for name in VARIABLES)
    if not path:
        return None
    watchdog = None
    if usec.isascii() and usec.isdecimal() and int(usec) and watched in {"", str(pid)}:
        watchdog = int(usec) / _MICROSECONDS
    return Address(path=path, watchdog=watchdog)


class ServiceManager:
    """The service manager's ear; one for the daemon's life, silent without an `address`.

    Nothing is waited for: what cannot be sent now is sent with the next word, and one warning says so.
    """

    def __init__(self, address: Address | None) -> None:
        self._log = structlog.get_logger()
        self._unsent: dict[str, str] = {}
        self._silent = False
        self._socket: socket.socket | None = None
        self._target = ""
        self.watchdog: float | None = None
        if address is None:
            return
        if not address.path.startswith(("/", "@")):
            self._log.warning(
                "service_manager.unreachable",
                reason=f"NOTIFY_SOCKET is {address.path!r}; only local sockets, '/…' and '@…', can be notified",
            )
            return
        # '@' stands for the NUL that an abstract name begins with (unix(7)).
        self._target = "\0" + address.path[1:] if address.path.startswith("@") else address.path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.watchdog = address.watchdog

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return self._socket is not None

    def tell(self, fields: Mapping[str, str]) -> None:
        """Send these assignments, and what could not be sent before. A newline in a value would begin another one."""
        if self._socket is None:
            return
        self._unsent |= {name: value.replace("\n", " ") for name, value in fields.items()}
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            self._socket.sendto(message.encode(), self._target)
        except OSError as error:
            if not self._silent:
                reason = os.strerror(error.errno) if error.errno else str(error)
                self._log.warning("service_manager.unreachable", reason=reason)
            self._silent = True
        else:
            if self._silent:
                self._log.info("service_manager.reached")
            self._silent = False
            self._unsent.clear()

    def close(self) -> None:
        """Nothing more is told."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
