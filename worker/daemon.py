"""The daemon: the one loop, going online, and the order of shutting down.

Two lifetimes (`shutdown`): `intake` is asking for and claiming runs, `work` is carrying out what was claimed.
Everything else (heartbeats, cancellations, the journal, the outbox) lives until the work is done.
"""

import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Misconfigured, NotAnApi, Unauthorized
from worker.assembly import assemble
from worker.health import HealthServerError
from worker.observers import Observers
from worker.options import Options
from worker.parts import Parts
from worker.processes.control import ControlChannel
from worker.processes.interpreter import InterpreterError, inspect_interpreter
from worker.processes.tree import become_subreaper
from worker.runs.journal import JournalTooNewError
from worker.runs.stopping import Stop
from worker.runs.wake import Wake
from worker.runs.work_pool import PoolMissing, PoolRefused
from worker.sd_notify import ServiceManager
from worker.settings import Settings
from worker.shutdown import Shutdown

LONGEST_PAUSE = 30.0
# Settings may say 0 seconds; asking without a pause would help nobody.
SHORTEST_PAUSE = 0.01
LAST_FLUSH_LIMIT = 5.0

EXIT_CONFIGURATION = 1
EXIT_CREDENTIALS = 3
EXIT_POOL = 4
EXIT_INTERPRETER = 5
EXIT_HEALTH_ADDRESS = 6


class FatalError(Exception):
    """Ends the daemon: the message says why and what to do, `exit_code` is documented in the README."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(slots=True)
class Spell:
    """A row of failures of one step: told once when it begins and once when it ends."""

    what: str
    failures: int = 0

    def failed(self, error: Exception) -> float:
        """Note a failure; returns how long to wait before the next try, in seconds."""
        self.failures += 1
        if self.failures == 1:
            known = isinstance(error, ApiError | PoolMissing)
            structlog.get_logger().warning(
                f"{self.what}.failed", reason=str(error), exc_info=None if known else error
            )
        return min(LONGEST_PAUSE, 2.0**self.failures)

    def succeeded(self) -> None:
        """Note a success."""
        if self.failures:
            structlog.get_logger().info(f"{self.what}.recovered", failures=self.failures)
        self.failures = 0


async def repeat(
    step: Callable[[], Awaitable[float]],
    *,
    what: str,
    wake: Wake | None = None,
    after: float = 0.0,
    once: bool = False,
) -> None:
    """Take one step after another for ever, waiting as long as each asks for, or until `wake` rings.

    The only loop, and the only place that catches whatever a step raises (but FatalError): the step is taken
    again after a growing pause. The client has waited out an unreachable server before (`api.transport`).
    `after` is how many seconds to wait before the first step; `once` ends with the first success.
    """
    wake = wake or Wake()
    spell = Spell(what)
    await anyio.sleep(after)
    while True:
        try:
            delay = await step()
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 - nothing else that a step does may end the daemon
            delay = spell.failed(error)
        else:
            spell.succeeded()
            if once:
                return
        await wake.wait(timeout=max(delay, SHORTEST_PAUSE))


async def serve(options: Options, settings: Settings) -> None:
    """Serve the pool until told to stop (or, with run-once, until one poll's runs are done).

    Raises FatalError when the pool cannot be served at all.
    """
    structlog.contextvars.bind_contextvars(work_pool=options.pool, worker=options.name)
    log = structlog.get_logger()
    subreaper = become_subreaper()
    async with AsyncExitStack() as stack:
        client = await _connect(stack, options, settings)
        control = ControlChannel()
        executions, attending = anyio.create_task_group(), anyio.create_task_group()
        parts = assemble(
            options,
            settings,
            client,
            control,
            executions=executions,
            attending=attending,
            subreaper=subreaper,
        )
        stack.push_async_callback(parts.journal.close)
        shutdown = _shutdown(settings, parts)
        observers = _observers(stack, options, settings, parts, shutdown)
        async with attending:
            await attending.start(shutdown.obey_signals)
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
                        await _recover_living(parts)
                        attending.start_soon(_loop(parts.journal.check_once, what="journal"))
                        await _go_online(options, parts, attending)
                        observers.online()
                        await _recover_rest(parts, attending, once=options.run_once)
                        await repeat(
                            parts.poller.poll_once, what="poll", wake=parts.freed, once=options.run_once
                        )
                        shutdown.end_intake()
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


async def _check_interpreter(options: Options) -> None:
    try:
        found = await inspect_interpreter(options.python)
    except InterpreterError as error:
        raise FatalError(str(error), exit_code=EXIT_INTERPRETER) from error
    structlog.get_logger().info(
        "interpreter.found",
        executable=found.executable,
        python=found.python_version,
        prefect=found.prefect_version,
    )


async def _recover_living(parts: Parts) -> None:
    """Read the journal and take over what still runs: the server need not be there for that."""

    async def load() -> float:
        try:
            await parts.journal.load()
        except JournalTooNewError as error:
            raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error
        return 0.0

    await repeat(load, what="journal", once=True)
    await parts.recovery.adopt_living()


async def _recover_rest(parts: Parts, attending: TaskGroup, *, once: bool) -> None:
    """Settle what else an earlier daemon has left, beside new runs, and keep doing so; with `once` before them."""
    if once:
        await parts.recovery.settle_all()
    attending.start_soon(_loop(parts.recovery.settle_once, what="recovery"))
    attending.start_soon(_loop(parts.lost_runs.look_once, what="lost_runs"))


def _shutdown(settings: Settings, parts: Parts) -> Shutdown:
    return Shutdown(
        stopping=parts.stopping,
        cut_short=Stop(settings.headrace.on_timeout),
        drain_timeout=settings.headrace.drain_timeout,
        detach=settings.headrace.detach_on_stop,
    )


async def _go_online(options: Options, parts: Parts, attending: TaskGroup) -> None:
    """Check what flows run in, wait for the server and the pool, show the worker online, and say so."""
    log = structlog.get_logger()
    async with anyio.create_task_group() as checking:
        checking.start_soon(_check_interpreter, options)
        await repeat(partial(_reach_pool, parts), what="work_pool", once=True)
    parts.events.started(parts.pool.known)
    log.info("worker.started", limit=options.limit, job_variables=options.job_variables.value)
    options.announce(f"Worker '{options.name}' started!")
    attending.start_soon(_loop(parts.pool.beat_once, what="heartbeat", after=parts.pool.heartbeat_interval))
    if (servers := parts.forkservers) is not None:
        keep = partial(servers.keep_once, attending, repeat)
        attending.start_soon(_loop(keep, what="forkserver", wake=servers.wake))


async def _reach_pool(parts: Parts) -> float:
    """Find or create the pool and send the first heartbeat; FatalError when the pool cannot be had."""
    try:
        await parts.pool.ensure()
        return await parts.pool.beat_once()
    except PoolRefused as error:
        raise FatalError(str(error), exit_code=EXIT_POOL) from error
    except Unauthorized as error:
        msg = (
            f"the server refused our credentials: {error}; set PREFECT_API_KEY (Prefect Cloud) or"
            " PREFECT_API_AUTH_STRING (self-hosted), in the environment or the active profile"
        )
        raise FatalError(msg, exit_code=EXIT_CREDENTIALS) from error
    except (NotAnApi, Misconfigured) as error:
        raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error


async def _sign_off(parts: Parts) -> None:
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
    stack: AsyncExitStack, options: Options, settings: Settings, parts: Parts, shutdown: Shutdown
) -> Observers:
    """Let them look who were asked to: before the server is there, as an orchestrator wants to know then, too."""
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
