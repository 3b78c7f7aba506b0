"""Warm or cold: which of the two ways a run's process is started, and why.

`eligible_for_warm_start` decides, as far as that can be told from the run and its environment; what only the machine
knows (is there a fork server, has it become stale) is found out by trying. The answer to every "no" is a cold start, so
nothing is lost by it but time.
"""

import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from worker.processes.held import Held, NotWarm
from worker.processes.launch_problems import LARGEST_STRING, LaunchError, LaunchSpec, find_problem, size
from worker.processes.launcher import Launcher
from worker.processes.process import ProcessHandle
from worker.processes.process_table import Marker
from worker.runs.forkservers import ForkServers
from worker.runs.launch_spec import child_environment, environment_layers

# What the interpreter, the dynamic loader, the C library and libraries read once, before any code of ours runs.
_READ_ONCE = re.compile(
    r"PYTHON\w*|LD_\w+|DYLD_\w+|LC_\w+|LANG|LANGUAGE|LOCPATH|HOME|GLIBC_TUNABLES|MALLOC_\w+|JE_MALLOC_CONF"
    r"|OPENSSL_\w+|SSLKEYLOGFILE|COVERAGE_PROCESS_START|(OMP|MKL|OPENBLAS|NUMEXPR|VECLIB|BLIS|GOTO)_\w+"
)
# How many bytes the system takes as command and environment (sysconf(3)).
LARGEST = os.sysconf("SC_ARG_MAX")
_INSTALLERS = re.compile(r"\b(pip3?|uv|poetry|conda|mamba|pdm|pipenv|easy_install)\b", re.IGNORECASE)


class StartMethod(StrEnum):
    """How a run's process comes to be."""

    WARM = "warm"
    """Forked from a process that has imported Prefect."""
    COLD = "cold"
    """A fresh interpreter."""


def why_never_warm(chosen: StartMethod, *, subreaper: bool) -> str | None:
    """Why no run of a daemon is started warm; None when there is to be a fork server.

    `subreaper`: orphaned descendants become the daemon's children.
    """
    if chosen is StartMethod.COLD:
        return "the start method is cold"
    return None if subreaper else "this system cannot hand an orphaned process to the daemon"


def forkserver_environment(
    *, worker_environment: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, str]:
    """What a fork server's process gets: a run's environment, less all that comes from the run."""
    return child_environment(
        environment_layers(
            worker_environment=worker_environment,
            settings=settings,
            attributed={},
            job={},
            protected={},
            command_configured=False,
        )
    )


def eligible_for_warm_start(
    *,
    spec: LaunchSpec,
    command_configured: bool,
    pull_steps: Any,
    environment: Mapping[str, str],
    largest: int = LARGEST,
) -> str | None:
    """Why the run has to be started cold; None when it may be started warm.

    `environment` is the fork servers', that each interpreter has one of. `largest` is how many bytes the system takes as
    command and environment. Variables count that are read before any code of ours runs: a forked process can not make up
    for them.
    """
    if command_configured:
        return "it has a command of its own"
    names = sorted(
        name
        for name in spec.env.keys() | environment.keys()
        if _READ_ONCE.fullmatch(name) and spec.env.get(name) != environment.get(name)
    )
    if names:
        return f"the interpreter reads {', '.join(names)} once, when it starts"
    if any(len(os.fsencode(f"{name}={value}")) >= LARGEST_STRING for name, value in spec.env.items()):
        # A flow that could not be started cold is not started warm.
        return "one of its variables is longer than the system takes"
    if size(spec) >= largest:
        return "its environment is larger than the system takes"
    step = installing_step(pull_steps)
    return None if step is None else f"its pull step {step} may install packages"


def installing_step(pull_steps: Any) -> str | None:
    """The name of the first pull step that may install packages; None if none does.

    Steps are what the deployment's author wrote: `{name: {argument: value}}` each.
    """
    if not isinstance(pull_steps, list):
        return None
    for step in cast("list[Any]", pull_steps):
        if not isinstance(step, dict):
            continue
        for name, arguments in cast("dict[str, Any]", step).items():
            if "pip_install" in name:
                return name
            given = cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else {}
            if "run_shell_script" in name and _INSTALLERS.search(str(given.get("script", ""))):
                return name
    return None


class Ready:
    """A start that needs only the word; made by `Starter.ready`.

    `method` and `reason` (why it is a cold one) are known before, and final after `launch`.
    """

    def __init__(self, *, held: Held | None, reason: str | None, cold: Callable[[], ProcessHandle]) -> None:
        self._held = held
        self._cold = cold
        self.reason = reason

    @property
    def method(self) -> StartMethod:
        """How it is started."""
        return StartMethod.COLD if self._held is None else StartMethod.WARM

    async def launch(self) -> ProcessHandle:
        """Start it. Raises LaunchError. Cancelled only when nothing has been started."""
        if self._held is not None:
            try:
                return self._held.go()
            except NotWarm as error:
                await self._held.discard()
                self._held, self.reason = None, str(error)
        return self._cold()


class Starter:
    """Prepares starts; one for the daemon's life. Without fork servers every start is cold."""

    def __init__(self, *, launcher: Launcher, forkservers: ForkServers | None, why_cold: str | None) -> None:
        self._launcher = launcher
        self._forkservers = forkservers
        self._why_cold = why_cold

    @asynccontextmanager
    async def ready(
        self, spec: LaunchSpec, *, command_configured: bool, pull_steps: Any, output: Path, marker: Marker
    ) -> AsyncGenerator[Ready]:
        """Prepare a start as far as can be done without starting anything of the run. Raises LaunchError.

        What was prepared and not launched is gone when this is left.
        """
        if problem := find_problem(spec):
            raise LaunchError(problem)
        servers, held = self._forkservers, None
        reason = self._why_cold
        if servers is not None:
            reason = eligible_for_warm_start(
                spec=spec,
                command_configured=command_configured,
                pull_steps=pull_steps,
                environment=servers.environment,
            )
        async with AsyncExitStack() as stack:
            if servers is not None and reason is None:
                try:
                    held = await stack.enter_async_context(servers.hold(spec, output=output, marker=marker))
                except NotWarm as error:
                    reason = str(error)

            def cold() -> ProcessHandle:
                return self._launcher.launch(spec, output=output, marker=marker)

            yield Ready(held=held, reason=reason, cold=cold)
