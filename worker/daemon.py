"""The daemon: wiring, the one loop, signals, and the order of shutting down.

Two lifetimes: `intake` is asking for and claiming runs, `work` is carrying out what was claimed. The first
signal ends intake only, so running flows finish; a second one ends work too, which stops the flows and
reports them. Everything else (heartbeats, cancellations, the outbox) lives until the work is done.
"""

import random
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from worker import __version__, health
from worker.api.client import PrefectClient
from worker.api.errors import ApiError, NotAnApi, Unauthorized
from worker.api.models import FlowRun
from worker.processes.control import ControlChannel
from worker.processes.interpreter import InterpreterError, inspect_interpreter
from worker.processes.launcher import Launcher
from worker.processes.tree import OrphanReaper, become_subreaper
from worker.runs.cancellations import Cancellations
from worker.runs.execution import Execution, Services
from worker.runs.in_flight import InFlight
from worker.runs.job_variables import JobVariablesMode
from worker.runs.outbox import Outbox
from worker.runs.poller import Poller
from worker.runs.preparation import Preparation
from worker.runs.states import States
from worker.runs.wake import Wake
from worker.runs.work_pool import PoolMissing, PoolRefused, WorkPoolKeeper
from worker.runs.worker_events import WorkerEvents
from worker.settings import Settings

LONGEST_PAUSE = 30.0
POOL_WAIT = 5.0
REAP_INTERVAL = 5.0
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


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for, checked; the settings carry the rest."""

    pool: str
    name: str
    work_queues: tuple[str, ...]
    prefetch_seconds: float
    limit: int | None
    run_once: bool
    with_healthcheck: bool
    create_pool: bool
    base_job_template: Mapping[str, Any] | None
    job_variables: JobVariablesMode
    python: str
    runs_directory: Path
    # What the flows' processes inherit: the daemon's own environment (PROTOCOL 4.2).
    environment: Mapping[str, str]
    print_output: Callable[[FlowRun, str], None]
    # Prints the two lines scripts wait for (PROTOCOL 8).
    announce: Callable[[str], None]


async def repeat(step: Callable[[], Awaitable[float]], *, what: str, wake: Wake | None = None) -> None:
    """Take one step after another for ever, waiting as long as each asks for, or until `wake` rings.

    The only loop, and the only place that catches whatever a step raises: it is logged once per spell of
    failures, the step is taken again after a growing pause, and the first success ends the spell with one
    line. The client has waited out an unreachable server before (`api.transport`).
    """
    log = structlog.get_logger()
    wake = wake or Wake()
    failures = 0
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
        await wake.wait(timeout=delay)


async def serve(options: Options, settings: Settings) -> None:
    """Serve the pool until told to stop (or, with run-once, until one poll's runs are done).

    Raises FatalError when the pool cannot be served at all.
    """
    structlog.contextvars.bind_contextvars(work_pool=options.pool, worker=options.name)
    log = structlog.get_logger()
    become_subreaper()
    await _check_interpreter(options)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            PrefectClient(settings=settings.api, worker_name=options.name, random=random.random)
        )
        control = ControlChannel()
        executions = anyio.create_task_group()
        parts = _assemble(options, settings, client, control, executions)
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


@dataclass(frozen=True, slots=True)
class _Parts:
    """The daemon's services, wired to each other."""

    pool: WorkPoolKeeper
    poller: Poller
    cancellations: Cancellations
    outbox: Outbox
    launcher: Launcher
    in_flight: InFlight
    freed: Wake
    events: WorkerEvents
    reaper: OrphanReaper

    async def reap_orphans(self) -> float:
        """Collect what flows left to us as PID 1 or subreaper; returns the seconds until the next look."""
        self.reaper.reap_orphans(self.launcher.waited_for)
        return REAP_INTERVAL


def _assemble(
    options: Options,
    settings: Settings,
    client: PrefectClient,
    control: ControlChannel,
    executions: TaskGroup,
) -> _Parts:
    freed = Wake()
    in_flight = InFlight(limit=options.limit, freed=freed)
    launcher = Launcher()
    outbox = Outbox(
        client=client,
        now=_now,
        enabled=settings.logging.to_api_enabled,
        max_message=settings.logging.to_api_max_log_size,
    )
    events = WorkerEvents(outbox=outbox, worker_name=options.name, version=__version__)
    pool = WorkPoolKeeper(
        client=client,
        name=options.pool,
        worker_name=options.name,
        work_queues=options.work_queues,
        create=options.create_pool,
        base_job_template=options.base_job_template,
        heartbeat_interval=settings.worker.heartbeat_seconds,
    )
    services = Services(
        client=client,
        states=States(client=client),
        preparation=Preparation(
            client=client,
            pool=pool,
            mode=options.job_variables,
            python=options.python,
            worker_name=options.name,
            worker_environment=options.environment,
            settings=settings.child_environment,
            sleep=anyio.sleep,
        ),
        launcher=launcher,
        control=control,
        in_flight=in_flight,
        outbox=outbox,
        events=events,
        now=_now,
        worker_name=options.name,
        hostname=socket.gethostname(),
        runs_directory=options.runs_directory,
        kill_grace=settings.headrace.kill_grace_seconds,
        print_output=options.print_output,
    )

    def start(flow_run: FlowRun) -> Execution:
        execution = Execution(flow_run=flow_run, services=services)
        executions.start_soon(execution.run)
        return execution

    poller = Poller(
        client=client,
        pool=options.pool,
        work_queues=options.work_queues,
        prefetch=options.prefetch_seconds,
        interval=settings.worker.query_seconds,
        in_flight=in_flight,
        start=start,
        now=_now,
        random=random.random,
    )
    cancellations = Cancellations(
        client=client, in_flight=in_flight, interval=settings.headrace.cancel_poll_seconds
    )
    return _Parts(
        pool=pool,
        poller=poller,
        cancellations=cancellations,
        outbox=outbox,
        launcher=launcher,
        in_flight=in_flight,
        freed=freed,
        events=events,
        reaper=OrphanReaper(),
    )


def _loop(
    step: Callable[[], Awaitable[float]], *, what: str, wake: Wake | None = None
) -> Callable[[], Coroutine[Any, Any, None]]:
    return partial(repeat, step, what=what, wake=wake)


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


async def _go_online(options: Options, parts: _Parts, attending: TaskGroup) -> None:
    """Wait for the server and the pool, show the worker online, and say so."""
    log = structlog.get_logger()
    missing = False
    while True:
        try:
            pool = await parts.pool.ensure()
            delay = await parts.pool.beat_once()
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
        except NotAnApi as error:
            raise FatalError(str(error), exit_code=EXIT_CONFIGURATION) from error
        else:
            break
    parts.events.started(pool)
    log.info("worker.started", limit=options.limit, job_variables=options.job_variables.value)
    options.announce(f"Worker '{options.name}' started!")

    async def beat() -> None:
        await anyio.sleep(delay)
        await repeat(parts.pool.beat_once, what="heartbeat")

    attending.start_soon(beat)


async def _sign_off(parts: _Parts) -> None:
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
                log.warning("worker.stopping_now", signal=name)
                work.cancel()


@contextmanager
def _serve_health(settings: Settings, poller: Poller) -> Generator[None]:
    began = _now()

    def snapshot() -> health.Snapshot:
        return health.Snapshot(
            last_polled=poller.last_polled or began, poll_interval=settings.worker.query_seconds
        )

    worker = settings.worker
    try:
        server = health.serve(
            host=worker.webserver_host, port=worker.webserver_port, snapshot=snapshot, now=_now
        )
        with server as port:
            structlog.get_logger().info("health.serving", host=worker.webserver_host, port=port)
            yield
    except health.HealthServerError as error:
        raise FatalError(str(error), exit_code=EXIT_HEALTH_ADDRESS) from error


def _now() -> datetime:
    return datetime.now(UTC)
