"""What an answer of the server means: the errors, and which trouble is worth another try.

Owns the error tree (drawn in `client.py`), the reading of error bodies (PROTOCOL 1.6) and the pure
decision `judge`: take the answer, raise, or try again and how soon. It sends nothing and waits for
nothing; `transport.py` acts on what is decided here.
"""

import json
import math
import os
import re
import ssl
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

import httpx

_LONGEST_REASON = 500
_LONGEST_BACKOFF = 30.0
_LONGEST_RETRY_AFTER = 3600.0


class ApiError(Exception):
    """The server did not do what was asked.

    The message names the operation and the server's own reason, and nothing of what was sent: bodies
    may hold secrets.
    """

    def __init__(self, operation: str, reason: str, *, status: int | None = None) -> None:
        self.operation = operation
        self.reason = reason
        self.status = status
        super().__init__(f"{operation}: {reason}" + (f" (HTTP {status})" if status is not None else ""))


class NotFound(ApiError):
    """404: the object does not exist, or does not exist any more."""


class MissingEndpoint(NotFound):
    """404 or 405 for the route itself: this server is too old to know it (PROTOCOL 9)."""


class Conflict(ApiError):
    """409: it exists already."""


class Unauthorized(ApiError):
    """401, or a 403 that has nothing to do with CSRF: the credentials do not open this door."""


class InvalidRequest(ApiError):
    """Any other 4xx: the server understood and refuses."""


class ServerFault(ApiError):
    """A 5xx that did not go away within a bounded number of tries."""


class NotAnApi(ApiError):
    """Something answered, but not a Prefect API: a web page, a redirect, no JSON."""


class Unreachable(ApiError):
    """Transient trouble outlasted the patience the caller asked for (`max_tries`, `deadline`)."""


class Misconfigured(ApiError):
    """A setting makes every call impossible: no URL, an unreadable CA file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server did it; `value` is the decoded JSON body, None for an empty one."""

    value: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """Another try would be answered the same."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class StaleCsrfToken:
    """The CSRF token is missing, unknown or expired; a fresh one is worth another try (PROTOCOL 1.3)."""

    error: ApiError


@dataclass(frozen=True, slots=True)
class Trouble:
    """Another try may go well.

    `error` is what to raise when the tries are used up, `after` the seconds the server asked to wait.
    `bounded` trouble concerns one call (a 500, a 403) and ends after a few tries; the other kind
    concerns the connection and is waited out.
    """

    error: ApiError
    after: float | None = None
    bounded: bool = False


Verdict = Answer | Refusal | StaleCsrfToken | Trouble


def judge(
    response: httpx.Response,
    *,
    operation: str,
    now: datetime,
    extra_codes: Collection[int],
    trusted: bool,
) -> Verdict:
    """Decide what `response` means for the call `operation`.

    `trusted` says that this server has accepted our credentials before. From then on a 401 or an
    answer that is no API answer is taken for a passing state (a key being rotated, a proxy whose
    upstream is being replaced) and waited out; before, it is a wrong setting and raised at once.
    Transient codes: PROTOCOL 1.5.
    """
    status = response.status_code
    value, is_json = _decode(response)
    if response.is_success:
        return Answer(value) if is_json else _not_an_api(response, operation, trusted=trusted)
    reason = _reason(response, value)
    after = retry_after(response.headers.get("Retry-After"), now)
    maintenance = response.headers.get("Prefect-Maintenance", "").lower() == "true"
    if maintenance or status in {408, 429, 502, 503, 504} or status in extra_codes:
        return Trouble(Unreachable(operation, reason, status=status), after=after)
    if status >= 500:  # noqa: PLR2004 - the class of codes, not one of them
        return Trouble(ServerFault(operation, reason, status=status), after=after, bounded=True)
    if response.is_redirect or (status in {404, 405} and not is_json):
        return _not_an_api(response, operation, trusted=trusted)
    return _refusal(status, operation, reason, after, trusted=trusted)


def _refusal(status: int, operation: str, reason: str, after: float | None, *, trusted: bool) -> Verdict:
    match status:
        case 401:
            error = Unauthorized(operation, f"{reason}; {_CREDENTIALS}", status=status)
            return Trouble(error, after=after) if trusted else Refusal(error)
        case 403 if "CSRF token" in reason or "client identifier" in reason:
            return StaleCsrfToken(Unauthorized(operation, reason, status=status))
        case 403:
            error = Unauthorized(operation, reason, status=status)
            return Trouble(error, after=after, bounded=True) if trusted else Refusal(error)
        case 404 if reason != _NO_ROUTE:
            return Refusal(NotFound(operation, reason, status=status))
        case _:
            kinds = {404: MissingEndpoint, 405: MissingEndpoint, 409: Conflict}
            return Refusal(kinds.get(status, InvalidRequest)(operation, reason, status=status))


_NO_ROUTE = "Not Found"  # what the server's router says; objects are "… not found"
_CREDENTIALS = "check PREFECT_API_AUTH_STRING (self-hosted) or PREFECT_API_KEY (Cloud)"


def _not_an_api(response: httpx.Response, operation: str, *, trusted: bool) -> Verdict:
    url = shown(response.request.url)
    if response.is_redirect:
        what = f"{url} redirects to {_shown_location(response)}"
    else:
        kind = response.headers.get("Content-Type", "no content type").partition(";")[0]
        what = f"{url} answers with {kind}, which is not a Prefect API answer"
    error = NotAnApi(
        operation, f"{what}; check PREFECT_API_URL: does it end with /api?", status=response.status_code
    )
    return Trouble(error) if trusted else Refusal(error)


def shown(url: httpx.URL) -> str:
    """`url` as it may be printed: without credentials, query and fragment."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def _shown_location(response: httpx.Response) -> str:
    try:
        return shown(response.request.url.join(response.headers.get("Location", "")))
    except httpx.InvalidURL:
        return "an invalid address"


def _decode(response: httpx.Response) -> tuple[Any, bool]:
    """The JSON value of the body and whether it is one; an empty body is a None that counts."""
    if not response.content:
        return None, True
    try:
        return json.loads(response.content), True
    except ValueError:
        return None, False


def _reason(response: httpx.Response, value: Any) -> str:
    """The server's own words (PROTOCOL 1.6), on one line; never `request_body`, never an input echo."""
    text = ""
    if isinstance(value, dict):
        body = cast("dict[str, Any]", value)
        text = next(
            (body[key] for key in ("exception_message", "detail") if isinstance(body.get(key), str)), ""
        )
        places = [_place(item) for key in ("exception_detail", "detail") for item in _list(body.get(key))]
        if places:
            text = f"{text or 'Invalid request'} ({', '.join(places)})"
    text = re.sub(r"\s+", " ", text).strip() or response.reason_phrase or "no reason given"
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _place(item: Any) -> str:
    """Where and which rule, of one pydantic error; its `msg` and `input` may quote the value."""
    if not isinstance(item, dict):
        return "unnamed field"
    error = cast("dict[str, Any]", item)
    return f"{'.'.join(str(part) for part in _list(error.get('loc')))}: {error.get('type', 'invalid')}"


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds asked for by a `Retry-After` header in either form (RFC 9110, 10.2.3).

    None when there is nothing usable in it: absent, malformed, zero or in the past. More than an hour
    is taken for an hour.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    if math.isnan(seconds) or seconds <= 0:
        return None
    return min(seconds, _LONGEST_RETRY_AFTER)


def backoff(attempt: int, random: Callable[[], float]) -> float:
    """Seconds before try `attempt` + 1, counted from 1: 0.1, 0.2, 0.4, … 30, half of each random.

    The first steps are short because an SQLite server answers 503 for milliseconds (PROTOCOL 1.5).
    """
    ceiling = min(_LONGEST_BACKOFF, 0.1 * 2.0 ** min(attempt - 1, 32))
    return ceiling / 2 + ceiling / 2 * random()


def explain(error: httpx.RequestError, *, ca_source: str) -> str:
    """Why a request got no answer, in words that name the fix where there is one.

    The text of a `LocalProtocolError` is left out: it quotes the header that could not be sent.
    """
    name = type(error).__name__
    if isinstance(error, httpx.LocalProtocolError):
        return name
    if isinstance(error, httpx.TimeoutException):
        return f"{name}: no answer in time (PREFECT_API_REQUEST_TIMEOUT)"
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return (
                    f"the server's certificate is not trusted ({cause.verify_message}; checked against"
                    f" {ca_source}): set PREFECT_API_SSL_CERT_FILE to the file of its certificate authority"
                )
            case ssl.SSLError():
                return f"TLS failed ({cause.strerror}): does the server speak https at this address?"
            case OSError(errno=int(number), strerror=str(text)):
                return f"{name}: {os.strerror(number) if number > 0 else text}"  # not below 0: name look-ups
            case _:
                pass
    text = str(error).strip()
    return f"{name}: {text}" if text else name


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on; of several at once (one per address tried) the first."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
        else:
            error = error.__cause__ or error.__context__
