"""The daemon: the order in which it starts and shuts down.

Two lifetimes (`shutdown`): `intake` is asking for and claiming runs, `work` is carrying out what was claimed.
Everything else (heartbeats, cancellations, the journal, the outbox) lives until the work is done.
"""

import gc
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.api.client import PrefectClient
from worker.api.errors import Misconfigured
from worker.fatal import EXIT_CONFIGURATION, EXIT_HEALTH_ADDRESS, FatalError
from worker.going_online import EARLY, FirstParts, GoingOnline, first_parts
from worker.health import HealthServerError
from worker.options import Options
from worker.processes.tree import become_subreaper
from worker.repeating import repeat
from worker.runs.journal import Journal, JournalTooNewError
from worker.runs.stopping import Stop, Stopping
from worker.runs.wake import Wake
from worker.sd_notify import ServiceManager
from worker.settings import Settings
from worker.shutdown import Shutdown

if TYPE_CHECKING:
    from worker.observers import Observers
    from worker.parts import Parts
    from worker.processes.control import ControlChannel

LAST_FLUSH_LIMIT = 5.0


async def serve(options: Options, settings: Settings) -> None:
    """Serve the pool until told to stop (or, with run-once, until one poll's runs are done).

    Raises FatalError when the pool cannot be served at all.
    """
    structlog.contextvars.bind_contextvars(work_pool=options.pool, worker=options.name)
    log = structlog.get_logger()
    subreaper = become_subreaper()
    async with AsyncExitStack() as stack:
        first = first_parts(options, settings, await _connect(stack, options, settings))
        stack.push_async_callback(first.journal.close)
        shutdown = _shutdown(settings, first.stopping)
        online = GoingOnline(options, first.pool)
        executions, attending = anyio.create_task_group(), anyio.create_task_group()
        async with attending:
            await attending.start(shutdown.obey_signals)
            loaded = await _load(first.journal)
            # What lives is taken over first, and a port for health that is taken is told before anybody sees us.
            if loaded and not first.journal.entries() and not options.with_healthcheck:
                online.begin(attending)
                await online.arrived(within=EARLY)
            parts, control = _assemble(
                options, settings, first, executions=executions, attending=attending, subreaper=subreaper
            )
            observers = _observers(stack, options, settings, parts, shutdown)
            if shutdown.draining:
                observers.stopping()  # told to stop before there was anyone to tell
            await attending.start(control.serve)
            attending.start_soon(_loop(parts.outbox.flush_once, what="outbox"))
            attending.start_soon(
                _loop(parts.cancellations.check_once, what="cancellations", wake=parts.cancellations.wake)
            )
            attending.start_soon(_loop(parts.push.listen_once, what="push"))
            attending.start_soon(_loop(parts.reap_orphans, what="reaper"))
            if observers.watch:
                attending.start_soon(_loop(observers.beat_once, what="observers"))
            with shutdown.work:
                async with executions:
                    with shutdown.intake:
                        await _recover_living(parts, loaded=loaded)
                        attending.start_soon(_loop(parts.journal.check_once, what="journal"))
                        online.begin(attending)
                        await online.arrived()
                        _say_online(options, parts, attending)
                        observers.online()
                        await _recover_rest(parts, attending, once=options.run_once)
                        await repeat(
                            parts.poller.poll_once, what="poll", wake=parts.freed, once=options.run_once
                        )
                        shutdown.end_intake()
                    online.give_up()
                    parts.poller.end()
                    if len(parts.in_flight):
                        log.info("worker.draining", in_flight=len(parts.in_flight))
            await _sign_off(parts)
            attending.cancel_scope.cancel()
    log.info("worker.stopped")
    options.announce(f"Worker '{options.name}' stopped!")


def _loop(
    step: Callable[[], Awaitable[float]], *, what: str, after: float = 0.0, wake: Wake | None = None
) -> Callable[[], Coroutine[Any, Any, None]]:
    return partial(repeat, step, what=what, after=after, wake=wake)


async def _load(journal: Journal) -> bool:
    """Try to read the journal; what is the matter when that fails is told by the loop that tries again."""
    try:
        await _load_once(journal)
    except (OSError, sqlite3.Error, RuntimeError):  # RuntimeError: no thread to be had
        return False
    return True


async def _load_once(journal: Journal) -> float:
    try:
        await journal.load()
    except JournalTooNewError as error:
        raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error
    return 0.0


async def _recover_living(parts: "Parts", *, loaded: bool) -> None:
    """Read the journal and take over what still runs: the server need not be there for that."""
    if not loaded:
        await repeat(partial(_load_once, parts.journal), what="journal", once=True)
    await parts.recovery.adopt_living()


async def _recover_rest(parts: "Parts", attending: TaskGroup, *, once: bool) -> None:
    """Settle what else an earlier daemon has left, beside new runs, and keep doing so; with `once` before them."""
    if once:
        await parts.recovery.settle_all()
    attending.start_soon(_loop(parts.recovery.settle_once, what="recovery"))
    attending.start_soon(_loop(parts.lost_runs.look_once, what="lost_runs"))


def _assemble(
    options: Options,
    settings: Settings,
    first: FirstParts,
    *,
    executions: TaskGroup,
    attending: TaskGroup,
    subreaper: bool,
) -> "tuple[Parts, ControlChannel]":
    """Load the rest of the daemon, and make it."""
    from worker.assembly import assemble  # noqa: PLC0415 - most of the code, and not needed to be online
    from worker.processes.control import ControlChannel  # noqa: PLC0415 - same

    control = ControlChannel()
    parts = assemble(
        options, settings, first, control, executions=executions, attending=attending, subreaper=subreaper
    )
    # As at start: what has been loaded stays as long as the process.
    gc.freeze()
    return parts, control


def _shutdown(settings: Settings, stopping: Stopping) -> Shutdown:
    return Shutdown(
        stopping=stopping,
        cut_short=Stop(settings.headrace.on_timeout),
        drain_timeout=settings.headrace.drain_timeout,
        detach=settings.headrace.detach_on_stop,
    )


def _say_online(options: Options, parts: "Parts", attending: TaskGroup) -> None:
    """Say that the worker is online, and begin what keeps it so."""
    log = structlog.get_logger()
    parts.events.started(parts.pool.known)
    log.info("worker.started", limit=options.limit, job_variables=options.job_variables.value)
    options.announce(f"Worker '{options.name}' started!")
    attending.start_soon(parts.sparing.learn)
    attending.start_soon(_loop(parts.pool.beat_once, what="heartbeat", after=parts.pool.heartbeat_interval))
    if (servers := parts.forkservers) is not None:
        keep = partial(servers.keep_once, attending, repeat)
        attending.start_soon(_loop(keep, what="forkserver", wake=servers.wake))


async def _sign_off(parts: "Parts") -> None:
    """The last event and log lines; the server has a few seconds to take them."""
    if parts.pool.current is not None:
        parts.events.stopped(parts.pool.current)
    with anyio.move_on_after(LAST_FLUSH_LIMIT, shield=True) as limit:
        await parts.outbox.flush_once(last=True)
    if limit.cancelled_caught:
        parts.outbox.abandon(f"the server did not take them within {LAST_FLUSH_LIMIT:g} s")


async def _connect(stack: AsyncExitStack, options: Options, settings: Settings) -> PrefectClient:
    try:
        return await stack.enter_async_context(
            PrefectClient(settings=settings.api, worker_name=options.name, random=random.random)
        )
    except Misconfigured as error:
        raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error


def _observers(
    stack: AsyncExitStack, options: Options, settings: Settings, parts: "Parts", shutdown: Shutdown
) -> "Observers":
    """Let them look who were asked to: before the server is there, as an orchestrator wants to know then, too."""
    from worker.observers import Observers  # noqa: PLC0415 - with the rest of the daemon

    manager = ServiceManager(options.notify)
    stack.callback(manager.close)
    observers = Observers(
        options=options,
        settings=settings,
        parts=parts,
        shutdown=shutdown,
        manager=manager,
        monotonic=time.monotonic,
    )
    shutdown.told = observers.stopping
    try:
        stack.enter_context(observers.serving())
    except HealthServerError as error:
        raise FatalError(str(error), exit_code=EXIT_HEALTH_ADDRESS) from error
    return observers
