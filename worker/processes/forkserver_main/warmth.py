"""What is done once so that a forked process can start where a fresh interpreter would arrive after two seconds.

Owns: importing what an engine imports before it proposes Running (and the user's modules), making what can be made before a
fork, judging before each fork whether the result would be that of a fresh start, and bringing the forked process's state up
to date. Does not own: forking, descriptors, the directory, and starting the engine (`__main__`); variables that the
interpreter or the C library read themselves, which the daemon judges.

Runs in the interpreter of the flows: the standard library at the top, Prefect only in functions.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import tempfile
import threading
import time
import uuid

from warmth_disk import Packages
from warmth_gaps import fill_gaps
from warmth_pages import written_by
from warmth_rehearsal import rehearse
from warmth_settings import LoggingState, SettingsState
from warmth_tls import TlsStock
from warmth_watch import Descriptors, EnvironmentReads, Misses, Seeding, thread_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from departure import Departure

ENGINE = "prefect.engine"
# What an engine has imported when the flow's first line runs, beyond `prefect.main`. `prefect.engine` is imported by
# `prefect.flow_engine`, in a fresh process too, there beside the `__main__` that was made from it.
LAZY_MODULES = (
    "prefect.main",
    "anyio._backends._asyncio",
    "encodings.idna",
    "packaging.requirements",
    "prefect._internal.attempt_control",
    "prefect._internal.metrics",
    "prefect.concurrency.context",
    "prefect.concurrency.v1.context",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "prefect.deployments.steps.utility",
    "prefect.flow_engine",
    "prefect.locking._filelock",
    "prefect.runner.runner",
    "prefect.telemetry.run_telemetry",
    "pydantic.v1",
    "rich._emoji_codes",
)
# Models whose definition pydantic puts off until they are first used, and that each run uses.
DEFERRED_MODELS = {
    "prefect.client.schemas.actions": ("FlowRunUpdate", "LogCreate", "TaskRunCreate"),
    "prefect.client.schemas.objects": ("FlowRun", "ServerDefaultResultStorage", "WorkPool", "WorkQueue"),
    "prefect.client.schemas.responses": ("DeploymentResponse",),
    "prefect.events.filters": ("EventIDFilter", "EventNameFilter", "EventOccurredFilter", "EventFilter"),
    "prefect.events.schemas.events": ("Event",),
}
# Seen in runs without tasks: eight before the flow's first line, one for its events.
TLS_CONTEXTS = 10
# Read when Prefect is imported, and read again or done again in `enter`; PREFECT_ is a prefix.
_READ_AGAIN = (
    "PREFECT_",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "TTY_",
    "TERM",
    "COLORTERM",
    "DO_NOT_TRACK",
)
# Read by going through the whole environment when imported: fsspec.config, prefect.settings.models.plugins.
_PREFIXES = ("FSSPEC_", "PREFECT_EXPERIMENTS_PLUGINS_")


class PreloadError(Exception):
    """The modules cannot be had before a fork. One sentence that names the module and the fix."""


class Warmth:
    """A process with everything imported. Make it once, in the only thread; `enter` is called in forked processes."""

    def __init__(self, *, preload: Sequence[str], departure: Departure) -> None:
        """Import Prefect and these modules. Raises PreloadError."""
        gc.disable()  # two seconds of allocation make no garbage worth looking for
        self._environment = dict(os.environ)
        self._reads = EnvironmentReads(again=_READ_AGAIN)
        self._misses = Misses()
        self._seeding = Seeding()
        self._descriptors = Descriptors()
        self._logging = LoggingState()
        with self._misses, self._seeding:
            with self._reads, self._logging:
                self._import_prefect()
                self._rehearse()
            self._settings = SettingsState(environment=self._environment, log=self._logging)
            departure.keep()
            self._engine = sys.modules[ENGINE]
            # Frozen, as it is before each fork; and while nothing of the user's could hear of the rehearsal.
            gc.collect()
            # The cycle: freeing them, at each process's end, would write to all the pages that are to stay shared.
            self._gaps: list[object] = [fill_gaps()]
            self._gaps.append(self._gaps)
            gc.freeze()
            self._pages = written_by(self._begin_on_nothing)
            self._own_reads = EnvironmentReads(again=())
            with self._own_reads:
                for name in preload:
                    self._import(name)
        self._tls = TlsStock(TLS_CONTEXTS)
        self._packages = Packages(missed=self._misses.names)
        # Nothing is imported from here on, and so each forked process looks at the directories anew.
        importlib.invalidate_caches()
        gc.collect()
        self._gaps.append(fill_gaps())
        gc.freeze()

    def _import_prefect(self) -> None:
        for name in LAZY_MODULES:
            try:
                importlib.import_module(name)
            except ImportError:
                if name == "prefect.main":
                    raise
        if ENGINE not in sys.modules:
            msg = f"{ENGINE} was not imported by prefect.flow_engine: this version of Prefect is not known to start warm"
            raise PreloadError(msg)
        for name, models in DEFERRED_MODELS.items():
            for model in models:
                complete = getattr(getattr(sys.modules.get(name), model, None), "model_rebuild", None)
                if complete is not None:  # as on first use, but that no name of this function is a type
                    complete(raise_errors=False, _types_namespace={})
        self._check("prefect")

    def _rehearse(self) -> None:
        """Once the settings are there, and before anything of the user's is. What it reads counts as read by an import."""
        failed, self._kept = rehearse()
        for sentence in failed:
            print(f"not rehearsed before the fork: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - its log
        self._check("prefect")

    def _import(self, name: str) -> None:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            msg = f"the preload module {name} cannot be imported ({type(error).__name__}: {error}): correct it or leave it out"
            raise PreloadError(msg) from error
        self._check(name)

    def _check(self, name: str) -> None:
        names = thread_names()
        if names:
            msg = (
                f"the module {name} starts threads when it is imported ({', '.join(names)}), which do not survive a fork: "
                "leave it out of --preload, or keep it from starting them (OPENBLAS_NUM_THREADS=1, OMP_NUM_THREADS=1)"
            )
            raise PreloadError(msg)
        opened = self._descriptors.opened()
        if opened:
            msg = (
                f"the module {name} leaves {', '.join(opened)} open when it is imported, which all runs would share: "
                "leave it out of --preload, or open it where it is used"
            )
            raise PreloadError(msg)

    def refusal(self, *, directory: str, env: Mapping[str, str]) -> str | None:
        """Why a run in this directory with this whole environment would not be the same as a fresh start; None if it is."""
        names = thread_names()
        if names:
            return f"the fork server has threads besides its own ({', '.join(names)})"
        for name in self._differing(env):
            return f"the variable {name} differs from the fork server's, and was read when its modules were imported"
        hiding = self._packages.hiding(directory)
        if hiding:
            return f"{os.path.join(directory, hiding)} would be imported in place of an installed module"
        return None

    def _differing(self, env: Mapping[str, str]) -> list[str]:
        own = self._environment
        names = self._reads.names | self._own_reads.names
        names = names.union(n for n in (*own, *env) if n.startswith(_PREFIXES))
        return sorted(name for name in names if own.get(name) != env.get(name))

    def stale(self) -> str | None:
        """Why a fresh interpreter would import something else than this one has; None if nothing changed on disk."""
        return self._packages.changed()

    def enter(self, *, env: Mapping[str, str]) -> None:
        """Make this forked process what a fresh one with this environment would be. Once, after chdir and descriptors."""
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        self._refresh_interpreter()
        self._settings.refresh(env)
        self._hide_engine()
        gc.enable()

    def _begin_on_nothing(self) -> None:
        """What a forked process does until its flow begins, as far as the rehearsal goes. In a process of its own.

        Which steps fail has been told.
        """
        self.enter(env=self._environment)
        rehearse(1)

    def copy_pages(self, *, until: Callable[[], bool]) -> None:
        """In a forked process that has nothing else to do: copy what it is going to write to."""
        self._pages.copy(until=until)

    def _refresh_interpreter(self) -> None:
        self._seeding.renew()
        tempfile.tempdir = None
        tempfile._name_sequence = None  # type: ignore[attr-defined]  # noqa: SLF001 - made again on first use
        uuid._last_timestamp = None  # type: ignore[attr-defined]  # noqa: SLF001 - of the last uuid1
        nanoseconds = isinstance(logging._startTime, int)  # type: ignore[attr-defined]  # noqa: SLF001 - since Python 3.13
        logging._startTime = time.time_ns() if nanoseconds else time.time()  # type: ignore[attr-defined]  # noqa: SLF001
        main = threading.main_thread()
        if hasattr(main, "_set_native_id"):
            main._set_native_id()  # type: ignore[attr-defined]  # noqa: SLF001 - not done by Python after a fork
        process = sys.modules.get("multiprocessing.process")
        if process is not None:
            process.current_process().authkey = os.urandom(32)
        handlers = sys.modules.get("wsgiref.handlers")
        if handlers is not None:
            handlers.BaseHandler.os_environ = handlers.read_environ()

    def _hide_engine(self) -> None:
        """Let runpy find the engine as if it were not imported; it warns otherwise. It is back once runpy has looked."""
        import runpy  # noqa: PLC0415 - as late as in a fresh process

        original: Any = vars(runpy)["_get_module_details"]

        def details(name: str, *rest: object) -> Any:
            runpy._get_module_details = original  # type: ignore[attr-defined]  # noqa: SLF001
            sys.modules.pop(ENGINE, None)
            try:
                return original(name, *rest)
            finally:
                sys.modules[ENGINE] = self._engine

        runpy._get_module_details = details  # type: ignore[attr-defined]  # noqa: SLF001
