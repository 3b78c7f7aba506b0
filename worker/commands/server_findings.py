"""What the server's answers to `headrace doctor` mean: pure functions from what was found to a check."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from worker.api.connection import ca_source
from worker.api.errors import ApiError, NotFound, Unauthorized
from worker.api.models import WorkPool
from worker.api.probe import Reached
from worker.commands.checks import Check, fail, ok, skipped, warn
from worker.runs.work_pool import PROCESS
from worker.settings import ApiSettings

KNOWN_VERSION: Final = (3, 8)
"""The release whose behaviour this daemon was made after and is tested against."""
NO_CREDENTIALS: Final = "none given"
OLDEST_VERSION: Final = (3, 0)

_WEEK: Final = 7 * 86400
_SKEW_UNNOTICED: Final = 2.0
_SKEW_BEARABLE: Final = 30.0


def judge_reached(url: str, reached: Reached | ApiError) -> Check:
    """Whether a Prefect server answers at the address."""
    if isinstance(reached, ApiError):
        return fail(
            "server",
            f"{url} does not answer ({reached.reason})",
            "Start the server, or correct PREFECT_API_URL; a daemon would wait for it",
        )
    if not reached.healthy:
        return fail(
            "server",
            f"{url} answers, with HTTP {reached.status}, but not as a healthy Prefect API",
            "Check PREFECT_API_URL: does it end with /api?",
        )
    return ok("server", f"{url} answers within {1000 * (reached.received - reached.sent):.0f} ms")


def judge_tls(settings: ApiSettings, reached: Reached, *, now: float) -> Check:
    """Whether what is said to the server can be overheard, and for how much longer its certificate holds."""
    parts = urlsplit(settings.url or "")
    if parts.scheme != "https":
        if credentials(settings) != NO_CREDENTIALS and not is_loopback(parts.hostname or ""):
            return warn(
                "tls",
                "not used, and credentials are sent to another machine",
                "Have the server, or a proxy before it, speak https",
            )
        return ok("tls", "not used (http)")
    spoken = reached.tls or "https"
    if settings.tls_insecure_skip_verify:
        return warn(
            "tls",
            f"{spoken}, but the certificate is not checked (PREFECT_API_TLS_INSECURE_SKIP_VERIFY)",
            "Set PREFECT_API_SSL_CERT_FILE to the file of its certificate authority instead",
        )
    source = f"{spoken}, certificate trusted by {ca_source(settings)}"
    if reached.expires is not None and reached.expires - now < 2 * _WEEK:
        days = max(0, int((reached.expires - now) // 86400))
        return warn("tls", f"{source}, valid for {days} more days", "Have the server's certificate renewed")
    return ok("tls", source)


def is_loopback(host: str) -> bool:
    """Whether the name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def skew(reached: Reached) -> float | None:
    """Seconds by which the server's clock is ahead, at least; 0 within what its whole seconds and the way leave open."""
    if reached.date is None:
        return None
    if reached.date > reached.received:
        return reached.date - reached.received
    return min(0.0, reached.date + 1 - reached.sent)


def judge_clock(found: float | None) -> Check:
    """Whether runs would begin when they are due."""
    if found is None:
        return skipped("clock", "the server's answer has no date")
    if abs(found) <= _SKEW_UNNOTICED:
        return ok("clock", "as the server's, within two seconds")
    text = f"the server's clock is {abs(found):.0f} s {'ahead of' if found > 0 else 'behind'} this machine's"
    advice = "Have both machines synchronise their clocks (NTP): scheduled runs begin that much too early or too late"
    return warn("clock", text, advice) if abs(found) <= _SKEW_BEARABLE else fail("clock", text, advice)


def judge_credentials(settings: ApiSettings, pools: int | ApiError) -> Check:
    """Whether the server lets us in."""
    given = credentials(settings)
    if isinstance(pools, Unauthorized):
        wanted = (
            "Set PREFECT_API_KEY to a key of this workspace"
            if settings.is_cloud
            else "Set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING"
        )
        return fail(
            "credentials", f"refused ({given})", f"{wanted}, in the environment or the active profile"
        )
    if isinstance(pools, ApiError):
        return fail("credentials", f"not known: {pools}", "See the server's own log")
    return ok("credentials", f"accepted ({given})")


def credentials(settings: ApiSettings) -> str:
    """What we show the server, without showing it."""
    if settings.auth_string is not None:
        return "PREFECT_API_AUTH_STRING"
    if settings.key is not None:
        return "PREFECT_API_KEY"
    return "from PREFECT_API_URL" if urlsplit(settings.url or "").username else NO_CREDENTIALS


def judge_csrf(wanted: bool | ApiError) -> Check:
    """Whether writes are protected by tokens, and we get them."""
    if isinstance(wanted, ApiError):
        return fail("csrf", f"no token: {wanted}", "See the server's own log")
    return ok("csrf", "on, a token was given and accepted" if wanted else "off at the server")


def judge_version(version: str | ApiError | None) -> Check:
    """Whether the server is of a release that is known."""
    if isinstance(version, ApiError):
        return warn("version", f"not told: {version}", "Nothing depends on it, if all else is well")
    if version is None:
        return ok("version", "not told, as with Prefect Cloud")
    release = numbers(version)
    tested = ".".join(map(str, KNOWN_VERSION))
    if release < OLDEST_VERSION or release[0] > KNOWN_VERSION[0]:
        return fail("version", f"Prefect {version}", f"Use a server of Prefect 3; {tested} is what is tested")
    if release > KNOWN_VERSION:
        return warn(
            "version",
            f"Prefect {version}, later than what this headrace is tested with ({tested})",
            "Try it on a pool of its own first",
        )
    return ok("version", f"Prefect {version}")


def numbers(version: str) -> tuple[int, int]:
    """The first two numbers of a version; zeros where there are none."""
    parts = [part for part in version.split("+", maxsplit=1)[0].split(".") if part.isdecimal()]
    first, second = [*map(int, parts[:2]), 0, 0][:2]
    return first, second


def judge_websocket(error: ApiError | None) -> Check:
    """Whether events can wake the daemon."""
    if error is None:
        return ok("websocket", "events arrive")
    return warn(
        "websocket",
        f"no events: {error.reason}",
        "Let the proxy before the server pass websockets on; without, runs and cancels are found by polling",
    )


def judge_pool(name: str, pool: WorkPool | ApiError) -> Check:
    """Whether the pool can be served."""
    if isinstance(pool, NotFound):
        if name.lower().startswith("prefect"):
            return fail(
                "work pool",
                f"{name!r} does not exist, and names that begin with 'prefect' are the server's own",
                "Choose another name",
            )
        return warn(
            "work pool",
            f"{name!r} does not exist",
            "`headrace start` creates it, unless --no-create-pool-if-not-found is given",
        )
    if isinstance(pool, ApiError):
        return fail("work pool", f"{name!r} cannot be read: {pool}", "See the server's own log")
    if pool.type != PROCESS:
        return fail(
            "work pool",
            f"{name!r} is of type {pool.type!r}",
            "Choose a pool of type 'process', or start the worker made for that type",
        )
    if pool.is_paused:
        return warn("work pool", f"{name!r} is paused", f"`prefect work-pool resume {name}` lets runs start")
    if pool.concurrency_limit == 0:
        return warn(
            "work pool",
            f"{name!r} has the concurrency limit 0",
            f"`prefect work-pool clear-concurrency-limit {name}`",
        )
    return ok("work pool", f"{name!r} is of type 'process'")


def judge_template(pool: WorkPool, error: str | None) -> Check:
    """Whether a run could be made of the pool's template."""
    template: Mapping[str, Any] = pool.base_job_template
    if not template:
        return warn("template", "empty", "`headrace start` fills it in")
    if error is not None:
        return warn(
            "template",
            f"a run without job variables could not start: {error}",
            "Correct the pool's base job template or its defaults; `headrace explain` shows what becomes of them",
        )
    return ok("template", "a run without job variables could start")
