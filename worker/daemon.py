"""The daemon: the one loop, signals, going online, and the order of shutting down.

Two lifetimes: `intake` is asking for and claiming runs, `work` is carrying out what was claimed. The first
signal ends intake only, so running flows finish; a second one ends work too, which stops the flows and
reports them. Everything else (heartbeats, cancellations, the outbox) lives until the work is done.
"""

import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from worker import health
from worker.api.client import PrefectClient
from worker.api.errors import ApiError, Misconfigured, NotAnApi, Unauthorized
from worker.api.models import WorkPool
from worker.assembly import Options, Parts, assemble, utc_now
from worker.processes.control import ControlChannel
from worker.processes.interpreter import InterpreterError, inspect_interpreter
from worker.processes.tree import become_subreaper
from worker.runs.poller import Poller
from worker.runs.wake import Wake
from worker.runs.work_pool import PoolMissing, PoolRefused
from worker.settings import Settings

LONGEST_PAUSE = 30.0
# Settings may say 0 seconds; asking without a pause would help nobody.
SHORTEST_PAUSE = 0.1
POOL_WAIT = 5.0
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


async def repeat(
    step: Callable[[], Awaitable[float]], *, what: str, wake: Wake | None = None, after: float = 0.0
) -> None:
    """Take one step after another for ever, waiting as long as each asks for, or until `wake` rings.

    `after` is how many seconds to wait before the first step.

    The only loop, and the only place that catches whatever a step raises: it is logged once per spell of
    failures, the step is taken again after a growing pause, and the first success ends the spell with one
    line. The client has waited out an unreachable server before (`api.transport`).
    """
    log = structlog.get_logger()
    wake = wake or Wake()
    failures = 0
    await anyio.sleep(after)
    while True:
        try:
            delay = await step()
        except Exception as error:  # nothing that a step does may end the daemon
            failures += 1
            delay = min(LONGEST_PAUSE, 2.0**failures)
            if failures == 1:
                known = isinstance(error, ApiError)
                log.warning(f"{what}.failed", reason=str(error), exc_info=None if known else error)
        else:
            if failures:
                log.info(f"{what}.recovered", failures=failures)
            failures = 0
        await wake.wait(timeout=max(delay, SHORTEST_PAUSE))


async def serve(options: Options, settings: Settings) -> None:
    """Serve the pool until told to stop (or, with run-once, until one poll's runs are done).

    Raises FatalError when the pool cannot be served at all.
    """
    structlog.contextvars.bind_contextvars(work_pool=options.pool, worker=options.name)
    log = structlog.get_logger()
    become_subreaper()
    async with AsyncExitStack() as stack:
        client = await _connect(stack, options, settings)
        control = ControlChannel()
        executions = anyio.create_task_group()
        parts = assemble(options, settings, client, control, executions)
        if options.with_healthcheck:
            stack.enter_context(_serve_health(settings, parts.poller))
        intake, work = anyio.CancelScope(), anyio.CancelScope()
        async with anyio.create_task_group() as attending:
            await attending.start(_obey_signals, intake, work)
            await attending.start(control.serve)
            attending.start_soon(_loop(parts.outbox.flush_once, what="outbox"))
            attending.start_soon(_loop(parts.cancellations.check_once, what="cancellations"))
            attending.start_soon(_loop(parts.reap_orphans, what="reaper"))
            with work:
                async with executions:
                    with intake:
                        await _go_online(options, parts, attending)
                        if options.run_once:
                            await parts.poller.poll_once()
                        else:
                            await repeat(parts.poller.poll_once, what="poll", wake=parts.freed)
                    if len(parts.in_flight):
                        log.info("worker.draining", in_flight=len(parts.in_flight))
            await _sign_off(parts)
            attending.cancel_scope.cancel()
    log.info("worker.stopped")
    options.announce(f"Worker '{options.name}' stopped!")


def _loop(
    step: Callable[[], Awaitable[float]], *, what: str, after: float = 0.0
) -> Callable[[], Coroutine[Any, Any, None]]:
    return partial(repeat, step, what=what, after=after)


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


async def _go_online(options: Options, parts: Parts, attending: TaskGroup) -> None:
    """Check what flows run in, wait for the server and the pool, show the worker online, and say so."""
    log = structlog.get_logger()
    async with anyio.create_task_group() as checking:
        checking.start_soon(_check_interpreter, options)
        await _find_pool(parts)
        await parts.pool.beat_once()
    parts.events.started(parts.pool.known)
    log.info("worker.started", limit=options.limit, job_variables=options.job_variables.value)
    options.announce(f"Worker '{options.name}' started!")

    attending.start_soon(_loop(parts.pool.beat_once, what="heartbeat", after=parts.pool.heartbeat_interval))


async def _find_pool(parts: Parts) -> WorkPool:
    """The pool, waited for if it may not be created; FatalError when it cannot be had."""
    log = structlog.get_logger()
    missing = False
    while True:
        try:
            return await parts.pool.ensure()
        except PoolMissing as error:
            if not missing:
                log.warning("work_pool.missing", reason=str(error), hint="waiting for it to appear")
            missing = True
            await anyio.sleep(POOL_WAIT)
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
    with anyio.move_on_after(LAST_FLUSH_LIMIT, shield=True):
        await parts.outbox.flush_once()


async def _obey_signals(
    intake: anyio.CancelScope,
    work: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """First SIGTERM or SIGINT: claim nothing more. Second: stop the flows, too."""
    log = structlog.get_logger()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for signum in signals:
            name = signal.Signals(signum).name
            if not intake.cancel_called:
                log.info(
                    "worker.stopping", signal=name, then="running flows finish; a second signal stops them"
                )
                intake.cancel()
            else:
                log.warning("worker.stoppingutc_now", signal=name)
                work.cancel()


async def _connect(stack: AsyncExitStack, options: Options, settings: Settings) -> PrefectClient:
    try:
        return await stack.enter_async_context(
            PrefectClient(settings=settings.api, worker_name=options.name, random=random.random)
        )
    except Misconfigured as error:
        raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error


@contextmanager
def _serve_health(settings: Settings, poller: Poller) -> Generator[None]:
    began = utc_now()

    def snapshot() -> health.Snapshot:
        return health.Snapshot(
            last_polled=poller.last_polled or began, poll_interval=settings.worker.query_seconds
        )

    worker = settings.worker
    try:
        server = health.serve(
            host=worker.webserver_host, port=worker.webserver_port, snapshot=snapshot, now=utc_now
        )
        with server as port:
            structlog.get_logger().info("health.serving", host=worker.webserver_host, port=port)
            yield
    except health.HealthServerError as error:
        raise FatalError(str(error), exit_code=EXIT_HEALTH_ADDRESS) from error
