"""The settings as the rest of the daemon sees them: frozen, typed, grouped by who needs them.

Owns no reading and no validation; `settings.load_settings` builds these.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

__all__ = ["ApiSettings", "Environment", "HeadraceSettings", "LogSettings", "Settings", "WorkerSettings"]


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How to reach the Prefect API (PROTOCOL 1.1 to 1.5). Times are seconds."""

    url: str | None
    key: SecretStr | None
    auth_string: SecretStr | None
    tls_insecure_skip_verify: bool
    ssl_cert_file: str | None
    enable_http2: bool
    request_timeout: float
    custom_headers: dict[str, str] = field(repr=False)
    retry_extra_codes: frozenset[int]
    retry_jitter_factor: float
    max_retries: int
    cloud_api_url: str

    @property
    def is_cloud(self) -> bool:
        """Whether the URL is one of Prefect Cloud."""
        return bool(self.url and self.cloud_api_url and self.url.startswith(self.cloud_api_url))


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The loops and the health server, as `prefect worker start` reads them (PROTOCOL 8)."""

    heartbeat_seconds: float
    query_seconds: float
    prefetch_seconds: float
    webserver_host: str
    webserver_port: int
    debug_mode: bool
    cancellation_poll_seconds: float


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The daemon's own log, and what is sent into the logs of flow runs.

    `level` is HEADRACE_LOG_LEVEL, else DEBUG in one of Prefect's debug modes, else PREFECT_LOGGING_LEVEL.
    `to_api_max_log_size` counts characters, `to_api_batch_interval` seconds.
    """

    level: str
    format: str
    """`auto` (JSON when not on a terminal), `console` or `json`."""
    colors: bool
    """Whether a terminal may be given colours."""
    to_api_enabled: bool
    to_api_max_log_size: int
    to_api_batch_interval: float


@dataclass(frozen=True, slots=True)
class HeadraceSettings:
    """Our own settings: HEADRACE_*."""

    job_variables: str
    """`layered` or `stock`."""
    python: str | None
    state_dir: Path
    cancel_poll_seconds: float
    kill_grace_seconds: float
    drain_timeout: float | None
    """Seconds that running flows have to finish once the daemon was told to stop; None: as long as they take."""
    on_timeout: str
    """What becomes of the runs that a stop cuts short: `crash` or `reschedule`."""
    detach_on_stop: bool
    """Whether a stop leaves the flows running, for the next daemon to adopt."""
    max_late: float | None
    """Seconds after their due time at which runs made by a schedule are still started; None: always."""
    only_latest: bool
    """Whether only the latest of a schedule's missed runs is started."""
    output_limit: int
    """Bytes of output that one run may keep on disk; the earliest are dropped first."""
    start_method: str
    """`warm` (forked from a process that has imported Prefect, where that can be done) or `cold`."""
    preload: tuple[str, ...]
    """Modules that the fork server imports besides Prefect."""
    max_starting: int | None
    """How many runs may be starting at once; None: as many as there are processors."""
    min_free_memory: int
    """Bytes of memory that have to be free for another run to be claimed; 0: it does not matter."""


class Environment(Mapping[str, str]):
    """Environment variables whose values may be secrets: its repr shows the names only."""

    __slots__ = ("_variables",)

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"Environment({', '.join(self._variables)})"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, resolved once at start."""

    api: ApiSettings
    worker: WorkerSettings
    logging: LogSettings
    headrace: HeadraceSettings
    home: Path
    """PREFECT_HOME, `~` expanded; relative if it was given so."""
    profile: str | None
    child_environment: Mapping[str, str]
    """Every Prefect setting that a layer other than the command line sets, as Prefect's worker exports it."""
    sources: Mapping[str, str]
    """Where each setting that is not a default comes from; never its value."""
    warnings: tuple[str, ...] = ()
    """What was ignored and deserves a line in the log, one sentence each."""
