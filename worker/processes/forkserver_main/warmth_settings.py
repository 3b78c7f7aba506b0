"""Prefect's settings and logging, as importing Prefect leaves them, brought up to date in a forked process.

Owns: what they are derived from, whether that is still the same, and deriving them again. Does not own the values.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

# Read from the working directory by prefect.settings.sources.
DIRECTORY_FILES = (".env", "prefect.toml", "pyproject.toml")
# Read by rich when the console handler is made, besides whether standard error is a terminal.
TERMINAL = (
    "COLUMNS",
    "LINES",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "JUPYTER_COLUMNS",
    "JUPYTER_LINES",
)


class LoggingState:
    """All loggers as they are before Prefect configures logging, so that it can be configured as for the first time.

    Prefect is imported within the block.
    """

    def __init__(self) -> None:
        self._before: dict[str, tuple[Any, ...]] = {}

    def __enter__(self) -> None:
        from prefect.logging import configuration  # noqa: PLC0415 - imported by `prefect.main`, which then uses it

        original = configuration.setup_logging

        def setup_logging(incremental: bool | None = None) -> dict[str, Any]:
            self._before = {logger.name: _state(logger) for logger in _loggers()}
            configuration.setup_logging = original
            return original(incremental)

        configuration.setup_logging = setup_logging

    def __exit__(self, *_: object) -> None:
        return

    def derive(self) -> None:
        """Configure logging as a fresh process does: from the settings and the environment as they are now."""
        from prefect.logging import configuration  # noqa: PLC0415 - after Prefect was imported

        for logger in _loggers():
            level, propagate, disabled, handlers, filters = self._before.get(
                # What Prefect puts on a logger of its own when it makes it is put there once: it keeps secrets out.
                logger.name,
                (logging.NOTSET, True, False, [], list(logger.filters)),
            )
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
            logger.handlers[:], logger.filters[:] = handlers, filters
        configuration.PROCESS_LOGGING_CONFIG.clear()
        configuration.setup_logging()


class SettingsState:
    """Prefect's global settings as they are when this is made, and what they were made from."""

    def __init__(self, *, environment: Mapping[str, str], log: LoggingState) -> None:
        self._log = log
        self._inputs = _inputs(environment)
        self._terminal = _terminal(environment)
        self._files = _files()
        self._reusable = not _directory_files() and not _speaks()

    def refresh(self, env: Mapping[str, str]) -> None:
        """Derive settings and logging again where the result can differ. What Prefect says while doing so is said.

        Raises RuntimeError when something was to be run at import that cannot be run now.
        """
        import prefect.context  # noqa: PLC0415 - Prefect is imported already
        from prefect.logging import get_logger  # noqa: PLC0415 - same

        old = prefect.context.get_settings_context()
        same = self._reusable and _inputs(env) == self._inputs and _files() == self._files
        if not same or _directory_files():
            if not self._reusable:
                warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001 - say again what was said once
            _derive()
        new = prefect.context.get_settings_context()
        if new.settings.plugins.enabled:
            msg = "Prefect's plugins are enabled (PREFECT_PLUGINS_ENABLED), and run when Prefect is imported"
            raise RuntimeError(msg)
        unchanged = new is old or new.settings == old.settings
        if not (same and unchanged and _terminal(env) == self._terminal):
            self._log.derive()
        get_logger("profiles").debug(f"Using profile {new.profile.name!r}")


def _derive() -> None:
    """Make the global settings as importing Prefect does: while there are none, by which the profiles would be found."""
    from prefect import context  # noqa: PLC0415 - Prefect is imported already

    del context.GLOBAL_SETTINGS_CONTEXT
    context.GLOBAL_SETTINGS_CONTEXT = context.root_settings_context()


def _speaks() -> bool:
    """Whether deriving the settings prints or warns: each run has to say it then."""
    errors = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(errors):
        warnings.simplefilter("always")
        _derive()
    return bool(caught) or bool(errors.getvalue())


def _inputs(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that settings and logging are made from; case does not matter to settings (pydantic-settings)."""
    upper = ((name.upper(), name) for name in environment)
    return {
        name: environment[name]
        for folded, name in upper
        if folded.startswith("PREFECT_") and not folded.startswith("PREFECT__")
    }


def _terminal(environment: Mapping[str, str]) -> tuple[object, ...]:
    return (os.isatty(2), *(environment.get(name) for name in TERMINAL))


def _directory_files() -> list[str]:
    return [name for name in DIRECTORY_FILES if os.path.exists(name)]


def _files() -> list[tuple[int, int, int] | None]:
    """The state of the files that settings and logging are read from, and of the directory that is made if missing."""
    from prefect.context import get_settings_context  # noqa: PLC0415 - after Prefect was imported

    settings = get_settings_context().settings
    home = None if os.path.isdir(settings.home) else (0, 0, 0)
    return [home, *(_signature(path) for path in (settings.profiles_path, settings.logging.config_path))]


def _signature(path: os.PathLike[str] | str | None) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _loggers() -> Iterable[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def _state(logger: logging.Logger) -> tuple[Any, ...]:
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters)
