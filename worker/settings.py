"""Settings of the daemon: Prefect's where Prefect has them, and a few of our own.

Owns their validation and defaults. The layers (flag, environment, ./.env, ./prefect.toml, ./pyproject.toml,
profile, default: PROTOCOL 1.7) are `settings_sources`'s, the names and the shapes of the values are
`settings_catalogue`'s. Talks to nobody: the environment and the directory come in as arguments.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from worker.settings_catalogue import CATALOGUE, OWN_PREFIX
from worker.settings_model import (
    ApiSettings,
    Environment,
    HeadraceSettings,
    LogSettings,
    Settings,
    WorkerSettings,
)
from worker.settings_sources import Entry, SettingsError, collect, expand_user

__all__ = [
    "ApiSettings",
    "Environment",
    "HeadraceSettings",
    "LogSettings",
    "Settings",
    "SettingsError",
    "WorkerSettings",
    "load_settings",
]

T = TypeVar("T")

COMMAND_LINE: Final = "command line"
HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110
HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")  # what httpx can send
HIGHEST_PORT: Final = 65535


def load_settings(
    *,
    environ: Mapping[str, str],
    cwd: Path,
    profile: str | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Resolve the settings as Prefect does from `environ` and the files in `cwd`.

    `profile` is that of `--profile`: the environment still wins over its contents, as with `prefect
    --profile X`. `flags` maps variables (`PREFECT_WORKER_PREFETCH_SECONDS`) to values, None if not given;
    as in Prefect they do not reach flow processes.

    Raises SettingsError, one sentence that names the setting, where it was set and the fix.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if unknown := given.keys() - CATALOGUE.by_name.keys():
        raise ValueError(f"flags that are not settings: {sorted(unknown)}")
    collected = collect(environ=environ, cwd=cwd, profile=profile)
    shared = _parse(collected.entries)
    entries = {**collected.entries, **{name: Entry(value, COMMAND_LINE) for name, value in given.items()}}
    values = _Values(_parse(entries), {name: entry.source for name, entry in entries.items()})
    home = expand_user(values.get("PREFECT_HOME", Path("~", ".prefect")), environ)
    api = _api(values, environ)
    logging = _logging(values, api)
    return Settings(
        api=api,
        worker=_worker(values),
        logging=logging,
        headrace=_headrace(values, environ, cwd),
        home=home,
        profile=collected.profile,
        child_environment=Environment(_child_environment(shared, home, api, logging)),
        sources=values.sources,
        warnings=collected.warnings,
    )


def _parse(entries: Mapping[str, Entry]) -> dict[str, object]:
    """The typed value of every setting. Raises SettingsError for the first that cannot be read."""
    parsed: dict[str, object] = {}
    for name, entry in entries.items():
        shape = CATALOGUE.by_name[name].shape
        if entry.raw == "" and name.startswith(OWN_PREFIX):
            continue
        try:
            value = shape.parse(entry.raw)
        except ValueError:
            raise _refused(name, entry.source, shape.accepts, empty=entry.raw == "") from None
        if value is not None:
            parsed[name] = value
    return parsed


def _refused(name: str, source: str, accepts: str, *, empty: bool = False) -> SettingsError:
    fix = "it is empty; set or remove it" if empty else "correct or remove it"
    return SettingsError(f"{name} ({source}) must be {accepts}; {fix}.")


@dataclass(frozen=True, slots=True)
class _Values:
    """Typed access to the parsed values, with the limits of the daemon where Prefect has none."""

    parsed: Mapping[str, object] = field(repr=False)
    sources: Mapping[str, str]

    def get(self, name: str, default: T) -> T:
        value = self.parsed.get(name, default)
        if not isinstance(value, type(default)):
            raise TypeError(f"{name} is declared with another type")
        return value

    def text(self, name: str) -> str | None:
        """None for an empty text: that is how a layer hides the ones below it."""
        return self.get(name, "") or None

    def secret(self, name: str) -> SecretStr | None:
        secret = self.get(name, SecretStr(""))
        return secret if secret.get_secret_value() else None

    def seconds(self, name: str, default: float, *, above_zero: bool = False) -> float:
        value = self.get(name, default)
        if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
            accepts = f"a number of seconds {'above' if above_zero else 'of at least'} 0"
            raise self.refused(name, accepts)
        return value

    def span(self, name: str) -> float | None:
        """None where nothing is set."""
        return self.seconds(name, 0.0) if name in self.parsed else None

    def refused(self, name: str, accepts: str) -> SettingsError:
        return _refused(name, self.sources[name], accepts)


def _api(values: _Values, environ: Mapping[str, str]) -> ApiSettings:
    url = values.text("PREFECT_API_URL")
    if url is not None and not _is_http(url):
        raise values.refused("PREFECT_API_URL", "a URL such as http://127.0.0.1:4200/api")
    key = values.secret("PREFECT_API_KEY")
    if key is not None and not HEADER_VALUE.fullmatch(key.get_secret_value().strip()):
        raise values.refused("PREFECT_API_KEY", "printable ASCII text without line breaks")
    headers = values.get("PREFECT_CLIENT_CUSTOM_HEADERS", dict[str, str]())
    for name, value in headers.items():
        if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
            raise values.refused(
                "PREFECT_CLIENT_CUSTOM_HEADERS",
                f"names and printable ASCII values of headers, unlike {name!r}",
            )
    return ApiSettings(
        url=url,
        key=key,
        auth_string=values.secret("PREFECT_API_AUTH_STRING"),
        tls_insecure_skip_verify=values.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", False),
        ssl_cert_file=values.get("PREFECT_API_SSL_CERT_FILE", environ.get("SSL_CERT_FILE", "")) or None,
        enable_http2=values.get("PREFECT_API_ENABLE_HTTP2", False),
        request_timeout=values.seconds("PREFECT_API_REQUEST_TIMEOUT", 60.0, above_zero=True),
        custom_headers=headers,
        retry_extra_codes=frozenset(values.get("PREFECT_CLIENT_RETRY_EXTRA_CODES", set[int]())),
        retry_jitter_factor=values.get("PREFECT_CLIENT_RETRY_JITTER_FACTOR", 0.2),
        max_retries=values.get("PREFECT_CLIENT_MAX_RETRIES", 5),
        cloud_api_url=values.get("PREFECT_CLOUD_API_URL", "https://api.prefect.cloud/api"),
    )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _worker(values: _Values) -> WorkerSettings:
    port = values.get("PREFECT_WORKER_WEBSERVER_PORT", 8080)
    if not 0 <= port <= HIGHEST_PORT:
        raise values.refused("PREFECT_WORKER_WEBSERVER_PORT", f"a port, 0 to {HIGHEST_PORT}")
    return WorkerSettings(
        heartbeat_seconds=values.seconds("PREFECT_WORKER_HEARTBEAT_SECONDS", 30.0),
        query_seconds=values.seconds("PREFECT_WORKER_QUERY_SECONDS", 10.0),
        prefetch_seconds=values.seconds("PREFECT_WORKER_PREFETCH_SECONDS", 10.0),
        webserver_host=values.get("PREFECT_WORKER_WEBSERVER_HOST", "0.0.0.0"),  # noqa: S104 - as Prefect
        webserver_port=port,
        debug_mode=values.get("PREFECT_WORKER_DEBUG_MODE", False),
        cancellation_poll_seconds=values.seconds("PREFECT_WORKER_CANCELLATION_POLL_SECONDS", 120.0),
    )


def _is_debug(parsed: Mapping[str, object]) -> bool:
    """Prefect's debug and test modes force its loggers to DEBUG, its processes' too."""
    return bool(parsed.get("PREFECT_DEBUG_MODE") or parsed.get("PREFECT_TESTING_TEST_MODE"))


def _logging(values: _Values, api: ApiSettings) -> LogSettings:
    debug = _is_debug(values.parsed) or values.get("PREFECT_WORKER_DEBUG_MODE", False)
    level = "DEBUG" if debug else values.get("PREFECT_LOGGING_LEVEL", "INFO")
    size = values.get("PREFECT_LOGGING_TO_API_MAX_LOG_SIZE", 1_000_000)
    if size > values.get("PREFECT_LOGGING_TO_API_BATCH_SIZE", 4_000_000):
        at_fault = "PREFECT_LOGGING_TO_API_MAX_LOG_SIZE"
        if at_fault not in values.sources:
            at_fault = "PREFECT_LOGGING_TO_API_BATCH_SIZE"
        raise values.refused(
            at_fault,
            "such that PREFECT_LOGGING_TO_API_MAX_LOG_SIZE is not above PREFECT_LOGGING_TO_API_BATCH_SIZE",
        )
    return LogSettings(
        level=values.get("HEADRACE_LOG_LEVEL", level),
        format=values.get("HEADRACE_LOG_FORMAT", "auto"),
        colors=values.get("PREFECT_LOGGING_COLORS", True),
        to_api_enabled=values.get("PREFECT_LOGGING_TO_API_ENABLED", True),
        to_api_max_log_size=min(size, values.get("PREFECT_CLOUD_MAX_LOG_SIZE", 25_000))
        if api.is_cloud
        else size,
        to_api_batch_interval=values.seconds("PREFECT_LOGGING_TO_API_BATCH_INTERVAL", 2.0),
    )


def _headrace(values: _Values, environ: Mapping[str, str], cwd: Path) -> HeadraceSettings:
    state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if not state_home.is_absolute():  # the XDG Base Directory Specification: relative paths are ignored
        state_home = Path("~", ".local", "state")
    return HeadraceSettings(
        job_variables=values.get("HEADRACE_JOB_VARIABLES", "layered"),
        python=values.text("HEADRACE_PYTHON"),
        state_dir=cwd / expand_user(values.get("HEADRACE_STATE_DIR", state_home / "headrace"), environ),
        cancel_poll_seconds=values.seconds("HEADRACE_CANCEL_POLL_SECONDS", 2.0, above_zero=True),
        kill_grace_seconds=values.seconds("HEADRACE_KILL_GRACE_SECONDS", 30.0),
        drain_timeout=values.span("HEADRACE_DRAIN_TIMEOUT"),
        on_timeout=values.get("HEADRACE_ON_TIMEOUT", "crash"),
        detach_on_stop=values.get("HEADRACE_DETACH_ON_STOP", False),
        max_late=values.span("HEADRACE_MAX_LATE"),
        only_latest=values.get("HEADRACE_ONLY_LATEST", False),
        output_limit=int(values.get("HEADRACE_OUTPUT_LIMIT", float(100 * 1024**2))),
        start_method=values.get("HEADRACE_START_METHOD", "warm"),
        preload=tuple(sorted(values.get("HEADRACE_PRELOAD", set[str]()))),
        max_starting=values.get("HEADRACE_MAX_STARTING", 0) or None,
        min_free_memory=int(values.get("HEADRACE_MIN_FREE_MEMORY", float(256 * 1024**2))),
    )


def _child_environment(
    shared: Mapping[str, object], home: Path, api: ApiSettings, logging: LogSettings
) -> dict[str, str]:
    """PROTOCOL 1.7, last point. `shared` are the parsed settings without the flags."""
    exported = {name: value for name, value in shared.items() if not name.startswith(OWN_PREFIX)}
    if _is_debug(shared):
        exported.pop("PREFECT_LOGGING_LEVEL", None)
        exported.pop("PREFECT_INTERNAL_LOGGING_LEVEL", None)
    if "PREFECT_HOME" in exported:
        exported["PREFECT_HOME"] = home
    if "PREFECT_PROFILES_PATH" in exported:
        template = str(exported["PREFECT_PROFILES_PATH"])
        exported["PREFECT_PROFILES_PATH"] = Path(template.replace("$PREFECT_HOME", str(home)))
    if api.is_cloud:
        exported["PREFECT_LOGGING_TO_API_MAX_LOG_SIZE"] = logging.to_api_max_log_size
    texts = {name: CATALOGUE.by_name[name].shape.to_text(value) for name, value in exported.items()}
    return {name: text for name, text in texts.items() if text is not None}
