"""What an outage proxy can be told to do (`Mode`), what it was asked meanwhile, and what it says of its own accord.

Owns these values only; `proxy.py` acts on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from http import HTTPStatus


class Mode(StrEnum):
    """How the proxy treats what comes in."""

    PASS = "pass"
    REFUSE = "refuse"
    """Nobody listens; what was connected is cut. The port stays ours."""
    HANG = "hang"
    """Take requests and never answer."""
    STATUS_500 = "500"
    STATUS_502 = "502"
    STATUS_503 = "503"
    THROTTLE_SECONDS = "429-seconds"
    """429 with `Retry-After` in seconds."""
    THROTTLE_DATE = "429-date"
    """429 with `Retry-After` as an HTTP date."""
    CUT_BODY = "cut-body"
    """The server's answer up to the middle of its body (of its head, if it has no body), then a reset."""
    LOST_ANSWER = "lost-answer"
    """The server carries the request out; its answer never arrives."""
    SLOW = "slow"
    """The server's answer in a few late pieces."""
    TRICKLE = "trickle"
    """The server's answer byte for byte, so slowly that it never ends, so fast that it never pauses."""
    NO_WEBSOCKET = "no-websocket"
    """Upgraded connections are cut and upgrades refused; all else passes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A mode, and the part of a request's path that it is for; the others pass."""

    mode: Mode
    only: str = ""
    retry_after: int = 120

    def applies_to(self, target: str) -> bool:
        return self.only in target

    def retry_after_header(self) -> str:
        """`Retry-After` in the form of the mode (RFC 9110, 10.2.3)."""
        if self.mode is Mode.THROTTLE_SECONDS:
            return str(self.retry_after)
        date = datetime.now(UTC) + timedelta(seconds=self.retry_after)
        return format_datetime(date, usegmt=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it arrived, and the mode it met."""

    mode: Mode
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def upgrades(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"


def refusal(status: HTTPStatus, retry_after: str | None = None) -> bytes:
    """A whole answer that says no, as the proxy's own and not the server's."""
    body = b'{"exception_message":"made up by the outage proxy"}'
    lines = [
        f"HTTP/1.1 {status} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    if retry_after is not None:
        lines.append(f"retry-after: {retry_after}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
