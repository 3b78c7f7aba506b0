import base64
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.fake_prefect import api_settings
from worker import __version__
from worker.api.connection import base_url, path, request_headers, tls_context
from worker.api.errors import (
    ApiError,
    Conflict,
    InvalidRequest,
    Misconfigured,
    MissingEndpoint,
    NotAnApi,
    NotFound,
    ServerFault,
    Unauthorized,
    Unreachable,
    backoff,
    explain,
    retry_after,
)
from worker.api.transport import Patience, Transport
from worker.settings import ApiSettings

pytestmark = pytest.mark.anyio

URL = "http://prefect.test:4200/api"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "pnu_very-secret"  # a made-up key

Step = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


def ok(value: Any = None) -> httpx.Response:
    return httpx.Response(200, json=value)


def status(code: int, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(code, json=body if body is not None else {"detail": "why"}, headers=named)


def html(code: int) -> httpx.Response:
    return httpx.Response(
        code, text="<html>Not Prefect</html>", headers={"Content-Type": "text/html; charset=utf-8"}
    )


@dataclass
class Clock:
    """A clock that moves only while somebody sleeps, and remembers the naps."""

    time: float = 1000.0
    naps: list[float] = field(default_factory=list[float])

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.time += seconds
        await anyio.lowlevel.checkpoint()


@dataclass
class Script:
    """A server that answers with the given steps, one per request, and remembers the requests."""

    steps: Iterator[Step]
    seen: list[httpx.Request] = field(default_factory=list[httpx.Request])

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        await anyio.lowlevel.checkpoint()
        step = next(self.steps)
        if isinstance(step, Exception):
            raise step
        if not callable(step):
            return step
        answer = step(request)
        return await answer if isinstance(answer, Awaitable) else answer


def no_csrf(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps of a server without CSRF protection, which says so to the first write."""
    yield httpx.Response(422, json={"detail": "CSRF protection is disabled."})
    yield from steps


@dataclass
class Rig:
    transport: Transport
    clock: Clock
    script: Script

    async def get(self, where: str = "/x", *, patience: Patience | None = None, final: bool = False) -> Any:
        return await self.transport.request(
            "GET", where, operation="read x", patience=patience, forbidden_is_final=final
        )

    async def post(self, body: Any = None, *, patience: Patience | None = None) -> Any:
        return await self.transport.request(
            "POST", "/x", operation="write x", body=body or {}, patience=patience
        )


def settings(**changes: Any) -> ApiSettings:
    return api_settings(**{"url": URL, **changes})


@asynccontextmanager
async def rig(*steps: Step, random: float = 1.0, **changes: Any) -> AsyncGenerator[Rig]:
    clock = Clock()
    script = Script(iter(steps))
    transport = Transport(
        settings=settings(**changes),
        random=lambda: random,
        transport=httpx.MockTransport(script),
        sleep=clock.sleep,
        now=lambda: NOW,
        monotonic=clock.monotonic,
    )
    async with transport:
        yield Rig(transport, clock, script)


# backoff and Retry-After


@pytest.mark.parametrize(
    ("attempt", "shortest", "longest"),
    [
        (1, 0.05, 0.1),
        (2, 0.1, 0.2),
        (3, 0.2, 0.4),
        (8, 6.4, 12.8),
        (9, 12.8, 25.6),
        (10, 15, 30),
        (10**9, 15, 30),
    ],
)
def test_backoff_doubles_up_to_half_a_minute(attempt: int, shortest: float, longest: float) -> None:
    assert backoff(attempt, lambda: 0.0) == pytest.approx(shortest)
    assert backoff(attempt, lambda: 1.0) == pytest.approx(longest)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("0", None),
        ("-3", None),
        ("nan", None),
        ("inf", 3600.0),
        ("999999999", 3600.0),
        ("soon", None),
        ("", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), None),
        (format_datetime(NOW + timedelta(days=400), usegmt=True), 3600.0),
        ("Fri, 02 Jan 2026 03:04:15 -0000", 10.0),
        ("Fri, 99 Jan 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


async def test_retry_after_is_obeyed_and_jittered_upwards() -> None:
    async with rig(status(429, retry_after="4"), ok(1), random=0.5, retry_jitter_factor=0.2) as r:
        assert await r.get() == 1
        assert r.clock.naps == [pytest.approx(4.4)]


# what is tried again


@pytest.mark.parametrize(
    "trouble",
    [
        *(status(code) for code in (408, 429, 502, 503, 504)),
        status(418),
        status(400, prefect_maintenance="true"),
        html(503),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.PoolTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("cut"),
        httpx.LocalProtocolError("state"),
        httpx.ProxyError("down"),
        httpx.DecodingError("gzip"),
    ],
    ids=repr,
)
async def test_transient_trouble_is_waited_out_from_the_very_first_call(trouble: Step) -> None:
    async with rig(*[trouble] * 40, ok("back"), retry_extra_codes=frozenset({418})) as r:
        assert await r.get() == "back"
        assert r.clock.naps[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
        assert len(r.clock.naps) == 40
        assert max(r.clock.naps) == 30


@pytest.mark.parametrize("code", [500, 501, 505])
async def test_other_server_errors_are_raised_after_a_few_tries(code: int) -> None:
    async with rig(*[status(code, {"exception_message": "Internal Server Error"})] * 6, ok()) as r:
        with pytest.raises(ServerFault, match=f"read x: Internal Server Error .HTTP {code}.") as caught:
            await r.get()
        assert caught.value.status == code
        assert [request.url.path for request in r.script.seen] == ["/api/x"] * 6 + ["/api/ready"]


@pytest.mark.parametrize("no_probe", [status(404), html(404), status(401), status(403)])
async def test_a_server_that_cannot_be_asked_for_readiness_counts_as_ready(no_probe: httpx.Response) -> None:
    async with rig(*[status(500)] * 6, no_probe) as r:
        with pytest.raises(ServerFault):
            await r.get()


@pytest.mark.parametrize("probe", [status(500), status(503), httpx.ConnectError("refused")])
async def test_faults_of_a_server_that_is_not_ready_are_an_outage(probe: Step) -> None:
    fault = status(500)
    # Told five seconds after the first answer that was no better; from then on nobody asks for readiness.
    steps: list[Step] = [*[fault] * 6, probe, fault, probe, fault, probe, fault, fault]
    async with rig(ok(), *steps, ok("back")) as r:
        with capture_logs() as logs:
            await r.get()
            assert await r.get() == "back"
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told == ["api.unreachable", "api.recovered"]


async def test_every_try_is_counted_and_failures_by_their_status() -> None:
    async with rig(status(503), httpx.ConnectError("refused"), status(404, {"detail": "gone"})) as r:
        with pytest.raises(NotFound):
            await r.get()
        assert r.transport.requests == 3
        assert r.transport.errors == {"503": 1, "none": 1, "404": 1}


async def test_a_fault_that_stays_when_the_outage_is_over_is_raised() -> None:
    up = False

    async def server(request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return ok() if up and not request.url.path.endswith("/bad") else status(500)

    clock = Clock()

    async def sleep(seconds: float) -> None:
        nonlocal up
        up = clock.time > 1100
        await clock.sleep(seconds)

    transport = Transport(
        settings=settings(),
        random=lambda: 1.0,
        transport=httpx.MockTransport(server),
        sleep=sleep,
        monotonic=clock.monotonic,
    )
    with capture_logs() as logs:
        async with transport, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: transport.request("GET", "/good", operation="read good"))
            with pytest.raises(ServerFault, match="read bad"):
                await transport.request("GET", "/bad", operation="read bad")
    told = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert told == ["api.unreachable", "api.recovered"]


async def test_an_answer_that_never_ends_is_a_failed_try() -> None:
    async def trickle(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        return ok(request)

    async with rig(trickle, ok("whole"), request_timeout=0.01) as r:
        with capture_logs() as logs:
            assert await r.get() == "whole"
    assert [line["reason"] for line in logs] == [
        "no complete answer within 0.04 s (4 x PREFECT_API_REQUEST_TIMEOUT)"
    ]


async def test_a_passing_500_is_not_noticed() -> None:
    async with rig(status(500), httpx.ReadError("reset by the server"), ok(1)) as r:
        assert await r.get() == 1


async def test_every_try_sends_the_identical_request() -> None:
    async with rig(*no_csrf([status(503), httpx.ReadTimeout("?"), ok()])) as r:
        await r.post({"text": "Grüße \udcff", "number": 1.5})
        first, *others = r.script.seen[1:]
        assert json.loads(first.content) == {"text": "Grüße ?", "number": 1.5}
        assert first.headers["Content-Type"] == "application/json"
        assert [(other.url, other.content) for other in others] == [(first.url, first.content)] * 2


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (status(404, {"detail": "Flow run not found"}), NotFound, "read x: Flow run not found (HTTP 404)"),
        (status(404, {"detail": "Not Found"}), MissingEndpoint, "read x: Not Found (HTTP 404)"),
        (
            status(405, {"detail": "Method Not Allowed"}),
            MissingEndpoint,
            "read x: Method Not Allowed (HTTP 405)",
        ),
        (status(409, {"detail": "exists"}), Conflict, "read x: exists (HTTP 409)"),
        (status(400, {"detail": "API version?"}), InvalidRequest, "read x: API version? (HTTP 400)"),
        (
            httpx.Response(413, text="<h1>too large</h1>"),
            InvalidRequest,
            "read x: Request Entity Too Large (HTTP 413)",
        ),
        (status(403, {"detail": "not yours"}), Unauthorized, "read x: not yours (HTTP 403)"),
        (
            status(401, {"exception_message": "Unauthorized"}),
            Unauthorized,
            "read x: Unauthorized; check PREFECT_API_AUTH_STRING (self-hosted) or PREFECT_API_KEY (Cloud) (HTTP 401)",
        ),
        (
            status(422, {"detail": "a\n  b" + "c" * 600}),
            InvalidRequest,
            "read x: a b" + "c" * 497 + "… (HTTP 422)",
        ),
    ],
    ids=repr,
)
async def test_refusals_become_the_errors_of_the_tree(answer: Step, kind: type[ApiError], says: str) -> None:
    async with rig(answer) as r:
        with pytest.raises(kind) as caught:
            await r.get()
        assert type(caught.value) is kind
        assert str(caught.value) == says
        assert r.clock.naps == []


async def test_a_validation_error_names_the_field_and_never_its_value() -> None:
    body = {
        "exception_message": "Invalid request received.",
        "exception_detail": [
            {
                "type": "extra_forbidden",
                "loc": ["body", 0, "worker_id"],
                "msg": f"no {SECRET}",
                "input": SECRET,
            }
        ],
        "request_body": [{"worker_id": SECRET}],
    }
    async with rig(*no_csrf([status(422, body)])) as r:
        with pytest.raises(InvalidRequest) as caught:
            await r.post([{"worker_id": SECRET}])
        assert str(caught.value) == (
            "write x: Invalid request received. (body.0.worker_id: extra_forbidden) (HTTP 422)"
        )


# answers that come from something else


@pytest.mark.parametrize("answer", [html(200), html(404), html(405)], ids=repr)
async def test_a_web_page_is_not_taken_for_the_api(answer: Step) -> None:
    async with rig(answer) as r:
        with pytest.raises(
            NotAnApi, match=r"http://prefect.test:4200/api/x answers with text/html.*end with /api\?"
        ):
            await r.get()


async def test_a_web_page_after_success_is_a_proxy_in_trouble() -> None:
    async with rig(ok(), html(404), html(200), ok("back")) as r:
        await r.get()
        assert await r.get() == "back"


@pytest.mark.parametrize(
    "location",
    ["https://prefect.test:4200/api/x", "http://elsewhere.test/login?state=abc", "http://prefect.test/api/x"],
)
async def test_a_redirect_to_elsewhere_is_refused(location: str) -> None:
    async with rig(httpx.Response(307, headers={"Location": location}), auth_string=SecretStr("a:b")) as r:
        with pytest.raises(NotAnApi, match=f"redirects to {location.partition('?')[0]};"):
            await r.get()
        assert len(r.script.seen) == 1


async def test_a_redirect_within_the_server_is_followed_with_method_and_body() -> None:
    redirect = httpx.Response(307, headers={"Location": f"{URL}/x/"})
    async with rig(*no_csrf([redirect, ok(1)]), auth_string=SecretStr("a:b")) as r:
        assert await r.post({"a": 1}) == 1
        last = r.script.seen[-1]
        assert (last.method, last.url.path, last.content) == ("POST", "/api/x/", b'{"a":1}')
        assert last.headers["Authorization"] == r.script.seen[0].headers["Authorization"]


async def test_a_redirect_that_would_turn_a_write_into_a_read_is_refused() -> None:
    redirect = httpx.Response(302, headers={"Location": f"{URL}/x/"})
    async with rig(status(404, {"detail": "Not Found"}), redirect) as r:
        with pytest.raises(NotAnApi):
            await r.post()


async def test_redirects_in_a_circle_end() -> None:
    redirect = httpx.Response(307, headers={"Location": f"{URL}/x"})
    async with rig(*[redirect] * 6) as r:
        with pytest.raises(NotAnApi):
            await r.get()


# credentials in use


async def test_wrong_credentials_are_raised_at_once_at_start() -> None:
    async with rig(status(401), status(401)) as r:
        for _ in range(2):
            with pytest.raises(Unauthorized):
                await r.get()
        assert r.clock.naps == []


async def test_credentials_that_once_worked_are_waited_for() -> None:
    async with rig(ok(), *[status(401)] * 20, ok("rotated")) as r:
        await r.get()
        with capture_logs() as logs:
            assert await r.get() == "rotated"
        assert [(line["event"], line["log_level"]) for line in logs if line["log_level"] != "debug"] == [
            ("api.unreachable", "warning"),
            ("api.recovered", "info"),
        ]


async def test_a_403_after_success_is_raised_after_a_few_tries() -> None:
    async with rig(ok(), *[status(403)] * 6) as r:
        await r.get()
        with pytest.raises(Unauthorized):
            await r.get()
        assert len(r.script.seen) == 7


async def test_a_403_that_is_the_operations_own_answer_is_raised_at_once() -> None:
    async with rig(ok(), status(403, {"detail": "reserved name"})) as r:
        await r.get()
        with pytest.raises(Unauthorized, match="reserved name"):
            await r.get(final=True)


# bounds


async def test_max_tries_bounds_transient_trouble() -> None:
    async with rig(status(503), status(503), status(503)) as r:
        with pytest.raises(Unreachable, match=r"read x: why \(HTTP 503\)"):
            await r.get(patience={"max_tries": 3})
        assert len(r.clock.naps) == 2


async def test_no_try_is_begun_that_the_deadline_forbids() -> None:
    async with rig(*[httpx.ConnectError("refused")] * 9) as r:
        with pytest.raises(Unreachable, match="refused"):
            await r.get(patience={"deadline": r.clock.time + 1.0})
        assert r.clock.naps == pytest.approx([0.1, 0.2, 0.4])


async def test_a_try_in_flight_ends_at_the_deadline() -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    transport = Transport(settings=settings(), random=lambda: 0.0, transport=httpx.MockTransport(hang))
    async with transport:
        with pytest.raises(Unreachable, match="no answer before the deadline"):
            await transport.request(
                "GET", "/x", operation="read x", patience={"deadline": anyio.current_time() + 0.01}
            )


async def test_cancelling_the_caller_ends_the_wait() -> None:
    waiting = anyio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await anyio.sleep_forever()

    script = Script(iter([status(503)] * 9))
    transport = Transport(
        settings=settings(), random=lambda: 0.0, transport=httpx.MockTransport(script), sleep=sleep
    )
    async with transport, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: transport.request("GET", "/x", operation="read x"))
        await waiting.wait()
        tasks.cancel_scope.cancel()
    assert len(script.seen) == 1


# CSRF


class CsrfServer:
    """A server with CSRF protection as PROTOCOL 1.3 describes it."""

    def __init__(self) -> None:
        self.valid: str | None = None
        self.issued = 0
        self.writes: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        if request.url.path.endswith("/csrf-token"):
            self.issued += 1
            self.client = request.url.params["client"]
            self.valid = f"token-{self.issued}"
            return ok({"token": self.valid, "client": self.client})
        if request.method == "GET":
            return ok("read")
        token = request.headers.get("Prefect-Csrf-Token")
        if token is None:
            return status(403, {"detail": "Missing CSRF token."})
        if token != self.valid or request.headers.get("Prefect-Csrf-Client") != self.client:
            return status(403, {"detail": "Invalid CSRF token or client identifier."})
        self.writes.append(request)
        return ok("written")


@asynccontextmanager
async def csrf_transport(server: Callable[[httpx.Request], Any], **changes: Any) -> AsyncGenerator[Transport]:
    clock = Clock()
    transport = Transport(
        settings=settings(**changes),
        random=lambda: 0.0,
        transport=httpx.MockTransport(server),
        sleep=clock.sleep,
        monotonic=clock.monotonic,
    )
    async with transport:
        yield transport


async def test_a_csrf_token_is_fetched_before_the_first_write_and_kept() -> None:
    server = CsrfServer()
    async with csrf_transport(server) as transport:
        await transport.request("GET", "/x", operation="read")
        assert server.issued == 0
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            assert await transport.request(method, "/x", operation="write") == "written"
    assert server.issued == 1


async def test_concurrent_writes_share_one_token_and_one_renewal() -> None:
    server = CsrfServer()
    async with csrf_transport(server) as transport:
        for expected in (1, 2):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(lambda: transport.request("POST", "/x", operation="write"))
            assert server.issued == expected
            server.valid = "expired"
    assert len(server.writes) == 20


async def test_a_late_refusal_of_the_old_token_does_not_drop_the_new_one() -> None:
    server = CsrfServer()
    renewed = anyio.Event()

    async def second_refusal_is_late(request: httpx.Request) -> httpx.Response:
        answer = await server(request)
        if server.issued == 2:
            renewed.set()
        if answer.status_code == 403 and request.content == b'"late"':
            await renewed.wait()
        return answer

    async with csrf_transport(second_refusal_is_late) as transport:
        await transport.request("POST", "/x", operation="write")
        server.valid = "expired"
        async with anyio.create_task_group() as tasks:
            for body in ("late", "prompt"):
                tasks.start_soon(partial(transport.request, "POST", "/x", operation="write", body=body))
    assert server.issued == 2


async def test_protection_switched_on_later_is_noticed() -> None:
    server = CsrfServer()
    enabled = False

    async def switchable(request: httpx.Request) -> httpx.Response:
        if enabled:
            return await server(request)
        return status(422, {"detail": "CSRF protection is disabled."}) if "csrf" in request.url.path else ok()

    async with csrf_transport(switchable) as transport:
        await transport.request("POST", "/x", operation="write")
        enabled = True
        assert await transport.request("POST", "/x", operation="write") == "written"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(422, text="CSRF protection is disabled."),
        status(404, {"detail": "Not Found"}),
        status(404),
    ],
    ids=repr,
)
async def test_a_server_without_protection_is_asked_once(answer: httpx.Response) -> None:
    async with rig(answer, ok(1), ok(2)) as r:
        assert [await r.post(), await r.post()] == [1, 2]
        assert "Prefect-Csrf-Token" not in r.script.seen[-1].headers


async def test_cloud_is_never_asked_for_a_token() -> None:
    cloud = "https://api.prefect.cloud/api/accounts/a/workspaces/b"
    async with rig(ok(1), url=cloud, key=SecretStr(SECRET)) as r:
        assert await r.post() == 1
        assert r.script.seen[0].headers["Authorization"] == f"Bearer {SECRET}"


async def test_trouble_at_the_token_endpoint_is_trouble_of_the_call() -> None:
    async with rig(status(503), httpx.ReadError("cut"), ok({"token": "t"}), ok("written")) as r:
        assert await r.post() == "written"
    async with rig(status(503), status(503)) as r:
        with pytest.raises(Unreachable, match="write x: get a CSRF token"):
            await r.post(patience={"max_tries": 2})
    async with rig(status(401)) as r:
        with pytest.raises(Unauthorized):
            await r.post()


async def test_a_token_that_is_never_accepted_ends_in_unauthorized() -> None:
    invalid = status(403, {"detail": "Invalid CSRF token or client identifier."})
    async with rig(*[ok({"token": "t"}), invalid] * 20) as r:
        with pytest.raises(Unauthorized, match="Invalid CSRF token"):
            await r.post()


# outages


async def test_one_warning_and_one_recovery_however_many_calls_wait() -> None:
    up = False

    async def server(_: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        if up:
            return ok()
        raise httpx.ConnectError("refused")

    async with csrf_transport(server, url="http://user:hush@prefect.test/api") as transport:
        with capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(lambda: transport.request("GET", "/x", operation="read"))
                while transport.outage.last_success is None and len(logs) < 200:
                    await anyio.lowlevel.checkpoint()
                up = True
    told = [line for line in logs if line["log_level"] != "debug"]
    assert [line["event"] for line in told] == ["api.unreachable", "api.recovered"]
    assert told[0]["log_level"] == "warning"
    assert told[0]["url"] == "http://prefect.test/api"
    assert told[0]["reason"] == "ConnectError: refused"
    assert told[1]["outage_seconds"] > 0
    assert "hush" not in repr(logs)


@pytest.mark.parametrize("blips", [1, 2])
async def test_a_routine_503_is_not_an_outage(blips: int) -> None:
    async with rig(*[status(503)] * blips, ok()) as r:
        with capture_logs() as logs:
            await r.get()
        assert {line["log_level"] for line in logs} == {"debug"}


@pytest.mark.parametrize("trouble", [status(503), httpx.ReadError("reset"), httpx.ConnectError("refused")])
@pytest.mark.parametrize(("tries", "events"), [(6, []), (7, ["api.unreachable", "api.recovered"])])
async def test_a_server_that_was_well_is_given_five_seconds(
    trouble: Step, tries: int, events: list[str]
) -> None:
    async with rig(ok(), *[trouble] * tries, ok()) as r:
        await r.get()
        with capture_logs() as logs:
            await r.get()
    # The tries begin 0, 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 seconds after the last success.
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == events


async def test_a_call_that_alone_makes_no_headway_is_told_once() -> None:
    async def server(request: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return (
            status(503, {"exception_message": "Service Unavailable"})
            if request.url.path.endswith("/bad")
            else ok()
        )

    clock = Clock()
    transport: Transport

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        await transport.request("GET", "/good", operation="read")

    transport = Transport(
        settings=settings(),
        random=lambda: 0.0,
        transport=httpx.MockTransport(server),
        sleep=sleep,
        monotonic=clock.monotonic,
    )
    with capture_logs() as logs:
        async with transport:
            with pytest.raises(Unreachable):
                await transport.request("GET", "/bad", operation="read bad", patience={"max_tries": 20})
    told = [line for line in logs if line["log_level"] != "debug"]
    assert [(line["event"], line["operation"]) for line in told] == [("api.call_delayed", "read bad")]


async def test_a_recovery_seen_by_one_call_ends_the_waits_of_the_others() -> None:
    up = False

    async def server(_: httpx.Request) -> httpx.Response:
        await anyio.lowlevel.checkpoint()
        return ok("back") if up else status(503)

    asleep = anyio.Event()

    async def sleep(seconds: float) -> None:
        if seconds < 0.2:
            await anyio.lowlevel.checkpoint()
            return
        asleep.set()
        await anyio.sleep_forever()

    transport = Transport(
        settings=settings(),
        random=lambda: 0.0,
        transport=httpx.MockTransport(server),
        sleep=sleep,
        monotonic=lambda: 0,
    )
    answers: list[Any] = []

    async def wait_for_answer() -> None:
        answers.append(await transport.request("GET", "/x", operation="read"))

    with capture_logs() as logs:
        async with transport, anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_answer)
            await asleep.wait()
            up = True
            await transport.request("GET", "/x", operation="read")
    assert answers == ["back"]
    assert [line["event"] for line in logs if line["log_level"] == "info"] == ["api.recovered"]


async def test_last_success_is_the_time_of_the_last_sound_answer() -> None:
    async with rig(status(503), ok(), status(404), status(500), status(500)) as r:
        assert r.transport.outage.last_success is None
        await r.get()
        assert r.transport.outage.last_success == r.clock.time
        r.clock.time += 5
        with pytest.raises(NotFound):
            await r.get()
        assert r.transport.outage.last_success == r.clock.time
        sound = r.clock.time
        with pytest.raises(ServerFault):
            await r.get(patience={"max_tries": 2})
        assert r.transport.outage.last_success == sound


def untrusted(*, file: str) -> str:
    certificate = ssl.SSLCertVerificationError(1, "certificate verify failed")
    certificate.verify_message = "self-signed certificate"
    error = httpx.ConnectError("[SSL]")
    error.__cause__ = certificate
    return explain(error, ca_source=file)


def test_a_certificate_error_names_the_file_and_the_setting() -> None:
    said = untrusted(file="/etc/ca.pem")
    assert "self-signed certificate" in said
    assert "/etc/ca.pem" in said
    assert "PREFECT_API_SSL_CERT_FILE" in said


def test_causes_are_looked_for_at_the_bottom() -> None:
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = ExceptionGroup(
        "several addresses", [ConnectionRefusedError(111, "Connect call failed")]
    )
    assert explain(error, ca_source="") == "ConnectError: Connection refused"
    tls = httpx.ConnectError("?")
    tls.__cause__ = ssl.SSLError(1, "wrong version number")
    assert "https" in explain(tls, ca_source="")


def test_the_text_of_an_unsendable_header_is_not_told() -> None:
    assert SECRET not in explain(httpx.LocalProtocolError(f"Illegal header value b'{SECRET}'"), ca_source="")


# addresses and headers


@pytest.mark.parametrize(
    ("segments", "encoded"),
    [
        (("work_pools", ""), "/work_pools/"),
        (("events",), "/events"),
        (("work_pools", "a b#c?d+é"), "/work_pools/a%20b%23c%3Fd%2B%C3%A9"),
        (("variables", "name", "a/b%2F"), "/variables/name/a%2Fb%252F"),
        (("work_pools", ".."), "/work_pools/%2E%2E"),
    ],
)
async def test_names_survive_the_way_to_the_server(segments: tuple[str, ...], encoded: str) -> None:
    assert path(*segments) == encoded
    async with rig(ok()) as r:
        await r.get(path(*segments))
        assert r.script.seen[0].url.raw_path.decode() == "/api" + encoded


@pytest.mark.parametrize(
    "url", [URL, URL + "/", f"  {URL}  ", "http://user:hush@prefect.test:4200/api?x=1#y"]
)
async def test_the_base_url_may_be_untidy(url: str) -> None:
    async with rig(ok(), url=url) as r:
        await r.get("/x")
        assert str(r.script.seen[0].url) == f"{URL}/x"
        assert "hush" not in r.transport.url


@pytest.mark.parametrize(
    "url", [None, "", "prefect.test/api", "ftp://prefect.test/api", "http://", "http://[::1/api"]
)
def test_an_unusable_url_names_the_setting(url: str | None) -> None:
    with pytest.raises(Misconfigured, match="PREFECT_API_URL"):
        base_url(settings(url=url))


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("changes", "authorization"),
    [
        ({}, None),
        ({"key": SecretStr(SECRET)}, f"Bearer {SECRET}"),
        ({"key": SecretStr(f" {SECRET}\n")}, f"Bearer {SECRET}"),
        ({"auth_string": SecretStr("admin:pass:word")}, basic("admin:pass:word")),
        ({"auth_string": SecretStr("admin:pass"), "key": SecretStr(SECRET)}, basic("admin:pass")),
        ({"auth_string": SecretStr("ädmin:pass")}, basic("ädmin:pass")),
        ({"url": "http://user:p%40ss@prefect.test/api"}, basic("user:p@ss")),
        ({"key": SecretStr(SECRET), "custom_headers": {"authorization": "Digest x"}}, "Digest x"),
    ],
)
def test_which_credentials_win(changes: dict[str, Any], authorization: str | None) -> None:
    assert request_headers(settings(**changes), {}).get("Authorization") == authorization


async def test_the_headers_of_every_request() -> None:
    custom = {
        "X-Gate": "open",
        "User-Agent": "mine",
        "Prefect-Csrf-Token": "mine",
        "prefect-csrf-client": "mine",
        "X-PREFECT-API-VERSION": "0.8.5",
    }
    async with rig(*no_csrf([ok()]), custom_headers=custom) as r:
        r.transport.attribute("X-Prefect-Worker-Id", "1234")
        r.transport.attribute("X-Prefect-Worker-Name", "Wörker")
        await r.post()
        headers = r.script.seen[-1].headers
        assert headers["User-Agent"] == f"headrace/{__version__}"
        assert headers["X-PREFECT-API-VERSION"] == "0.8.5"
        assert headers["X-Gate"] == "open"
        assert headers["X-Prefect-Worker-Id"] == "1234"
        assert "X-Prefect-Worker-Name" not in headers
        assert "mine" not in headers.values()


# TLS


def test_plain_http_builds_a_context_that_trusts_nobody() -> None:
    context = tls_context(settings(), httpx.URL(URL))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.get_ca_certs() == []


def test_https_trusts_the_bundle_or_the_given_file(tmp_path: Path) -> None:
    https = httpx.URL("https://prefect.test/api")
    everybody = tls_context(settings(), https)
    assert everybody.verify_mode is ssl.CERT_REQUIRED
    assert everybody.check_hostname
    insecure = tls_context(settings(tls_insecure_skip_verify=True), https)
    assert insecure.verify_mode is ssl.CERT_NONE
    for name, text in (("absent.pem", None), ("empty.pem", "no certificate")):
        source = tmp_path / name
        if text is not None:
            source.write_text(text)
        with pytest.raises(Misconfigured, match=f"PREFECT_API_SSL_CERT_FILE={source}"):
            tls_context(settings(ssl_cert_file=str(source)), https)


def test_the_client_cannot_be_used_outside_of_its_context() -> None:
    transport = Transport(settings=settings(), random=lambda: 0.0)
    with pytest.raises(RuntimeError, match="async with"):
        _ = transport.http
