"""What a command was given: flags and settings together, checked, and the secrets among them.

Every command that talks to the server begins here, so that all of them see the same server, profile and
names. Owns no setting (that is `settings`) and no flag (that is `cli`).
"""

import argparse
import base64
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from worker.settings import Settings, SettingsError, load_settings

_FLAGS = {
    "HEADRACE_JOB_VARIABLES": "job_variables",
    "HEADRACE_PYTHON": "python",
    "HEADRACE_STATE_DIR": "state_dir",
    "HEADRACE_DRAIN_TIMEOUT": "drain_timeout",
    "HEADRACE_ON_TIMEOUT": "on_timeout",
    "HEADRACE_DETACH_ON_STOP": "detach_on_stop",
    "HEADRACE_MAX_LATE": "max_late",
    "HEADRACE_ONLY_LATEST": "only_latest",
    "HEADRACE_OUTPUT_LIMIT": "output_limit",
    "HEADRACE_START_METHOD": "start_method",
    "HEADRACE_PRELOAD": "preload",
    "HEADRACE_MAX_STARTING": "max_starting",
    "HEADRACE_MIN_FREE_MEMORY": "min_free_memory",
    "HEADRACE_LOG_FORMAT": "log_format",
    "HEADRACE_LOG_LEVEL": "log_level",
}


class ConfigurationError(Exception):
    """What the user gave cannot be used; the message names it and the fix."""


def read_settings(arguments: argparse.Namespace, *, purpose: str = "start a worker") -> Settings:
    """The settings of this process, under those flags that the command has. Raises ConfigurationError.

    `purpose` is what cannot be done without a server, for the message.
    """
    flags = {name: getattr(arguments, flag, None) for name, flag in _FLAGS.items()}
    preload: list[str] | None = flags["HEADRACE_PRELOAD"]
    given = {
        name: ",".join(preload) if preload and name == "HEADRACE_PRELOAD" else value
        for name, value in flags.items()
        if value is not None
    }
    try:
        settings = load_settings(environ=os.environ, cwd=Path.cwd(), profile=arguments.profile, flags=given)
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error
    if not settings.api.url:
        msg = (
            f"PREFECT_API_URL must be set to {purpose}: the address of the server's API, such as"
            " http://127.0.0.1:4200/api, in the environment or the active profile"
        )
        raise ConfigurationError(msg)
    return settings


def default_name(pool: str, *, hostname: str) -> str:
    """A name that stays the same over restarts: host and pool, without what names may not contain."""
    return re.sub(r"[/%]", "-", f"{hostname}-{pool}")


def secrets_of(settings: Settings) -> list[str]:
    """Every credential among the settings, in each form in which it is sent."""
    secrets = [secret.get_secret_value() for secret in (settings.api.key, settings.api.auth_string) if secret]
    encoded = [base64.b64encode(secret.encode()).decode() for secret in secrets]
    password = urlsplit(settings.api.url or "").password
    return [*secrets, *encoded, *settings.api.custom_headers.values(), *([password] if password else [])]
