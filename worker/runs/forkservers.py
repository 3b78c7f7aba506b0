"""The fork servers of a daemon: that of its own interpreter, and one for each other that runs name.

Owns which there are: one is made by the first run that names its interpreter, and retired when none has for a while, or
to make room. Does not own what a fork server does (`worker.processes.forkserver`), and which runs may use one
(`start_method`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.processes.held import Held, NotWarm
from worker.processes.launch_problems import LaunchSpec
from worker.processes.process_table import Marker
from worker.runs.wake import Wake

# How many there are beside the daemon's own; each holds an imported Prefect in memory.
MOST_OTHERS = 4
# How long one is kept that no run asks for, in seconds.
IDLE_LIMIT = 600.0
# One that was asked for so lately keeps its place: where more take turns than there are places, some stay warm.
IN_DEMAND = 60.0
LOOK_INTERVAL = 60.0


class Forks(Protocol):
    """A fork server, as `processes.forkserver.ForkServer` is one."""

    @property
    def output(self) -> Path:
        """The file for what it prints."""
        ...

    @property
    def absence(self) -> str | None:
        """Why it could not fork now; None when it could."""
        ...

    async def keep_once(self) -> float:
        """Keep it in service; returns the seconds until the next look."""
        ...

    def hold(self, spec: LaunchSpec, *, output: Path, marker: Marker) -> AbstractAsyncContextManager[Held]:
        """Have a process forked that waits for the word. Raises NotWarm and LaunchError."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Make(Protocol):
    """Makes a fork server without starting it."""

    def __call__(
        self, *, python: str, environment: Mapping[str, str], log: Path, wake: Callable[[], None]
    ) -> Forks:
        """One for `python`; `wake` is rung when there is something to do before its next look."""
        ...


class Repeat(Protocol):
    """The daemon's loop: takes one step after another until cancelled."""

    def __call__(self, step: Callable[[], Awaitable[float]], /, *, what: str, wake: Wake) -> Awaitable[None]:
        """`what` names it in the log; `wake` ends a wait between two steps."""
        ...


@dataclass(slots=True, eq=False)
class _Kept:
    """A fork server with the loop that keeps it; `users` are runs that are being started by it."""

    python: str
    server: Forks
    wake: Wake
    last_used: float
    users: int = 0
    kept: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class ForkServers:
    """All fork servers; lives as long as the daemon.

    An interpreter is told by its path as a run names it: the links of two virtual environments may lead to one program.
    `environment` is what each fork server gets. `directory` is for the files they print to. `monotonic` is in seconds.
    """

    def __init__(
        self,
        *,
        python: str,
        environment: Mapping[str, str],
        make: Make,
        directory: Path,
        monotonic: Callable[[], float],
    ) -> None:
        self.environment = environment
        self._make = make
        self._directory = directory
        self._monotonic = monotonic
        self._log = structlog.get_logger()
        self.wake = Wake()
        self._own = self._made(python, "forkserver.log")
        # Those of interpreters that nobody may name any more: a daemon that was killed has left them.
        for left in directory.glob("forkserver-*.log"):
            with suppress(OSError):
                left.unlink()
        self._others: dict[str, _Kept] = {}

    async def keep_once(self, tasks: TaskGroup, repeat: Repeat) -> float:
        """Begin to keep those that are new, and retire the idle ones; returns the seconds until the next look.

        Each is kept by a task of its own in `tasks`, until it is retired or `tasks` is cancelled: a slow one holds up no
        other.
        """
        now = self._monotonic()
        for kept in list(self._others.values()):
            if not kept.users and now - kept.last_used >= IDLE_LIMIT:
                self._retire(kept, f"no run has asked for it for {IDLE_LIMIT:g} s")
        for kept in (self._own, *self._others.values()):
            if not kept.kept:
                kept.kept = True
                tasks.start_soon(self._keep, kept, repeat)
        return LOOK_INTERVAL

    @asynccontextmanager
    async def hold(self, spec: LaunchSpec, *, output: Path, marker: Marker) -> AsyncGenerator[Held]:
        """Have a process forked by the fork server of the spec's interpreter, which is started if there is none.

        The first runs of an interpreter wait for its fork server, as the daemon's first ones do: that takes no longer
        than importing Prefect in a process of their own, and it is imported once for all of them. Raises NotWarm and
        LaunchError.
        """
        kept = self._find(spec.argv[0])
        kept.users += 1
        try:
            async with kept.server.hold(spec, output=output, marker=marker) as held:
                yield held
        finally:
            kept.users -= 1
            kept.last_used = self._monotonic()

    def _find(self, python: str) -> _Kept:
        if python == self._own.python:
            return self._own
        if (known := self._others.get(python)) is not None:
            return known
        if len(self._others) >= MOST_OTHERS:
            self._make_room(python)
        name = sha256(python.encode(errors="surrogateescape")).hexdigest()[:12]
        made = self._others[python] = self._made(python, f"forkserver-{name}.log")
        self.wake.set()
        return made

    def _make_room(self, python: str) -> None:
        before = self._monotonic() - IN_DEMAND
        unused = [
            kept
            for kept in self._others.values()
            # One that cannot fork keeps no run warm.
            if not kept.users and (kept.last_used <= before or kept.server.absence is not None)
        ]
        if not unused:
            raise NotWarm(f"the fork servers of {MOST_OTHERS} other interpreters are in demand")
        self._retire(min(unused, key=lambda kept: kept.last_used), f"{python} takes its place")

    def _made(self, python: str, log: str) -> _Kept:
        wake = Wake()
        server = self._make(
            python=python, environment=self.environment, log=self._directory / log, wake=wake.set
        )
        return _Kept(python=python, server=server, wake=wake, last_used=self._monotonic())

    async def _keep(self, kept: _Kept, repeat: Repeat) -> None:
        with kept.scope:
            try:
                await repeat(kept.server.keep_once, what="forkserver", wake=kept.wake)
            finally:
                with anyio.CancelScope(shield=True):
                    await kept.server.close()

    def _retire(self, kept: _Kept, reason: str) -> None:
        """Let it go; a run that names its interpreter from now on has another one made."""
        del self._others[kept.python]
        self._log.info("forkserver.retired", python=kept.python, reason=reason)
        kept.scope.cancel()
        # Before another one of that name makes its own.
        with suppress(OSError):
            kept.server.output.unlink(missing_ok=True)
