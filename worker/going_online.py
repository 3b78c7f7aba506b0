"""The way online, and the few parts it takes: all that is loaded of the daemon until the server has the worker.

Loading what carries out runs takes as long as reaching the server. Where an earlier daemon has left nothing, it can wait
until the worker is shown online, or for as long as the server keeps us waiting. Owns those parts and the way; when it is
begun is `daemon`'s.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from worker.api.client import PrefectClient
from worker.api.errors import Misconfigured, NotAnApi, Unauthorized
from worker.fatal import EXIT_CONFIGURATION, EXIT_CREDENTIALS, EXIT_INTERPRETER, EXIT_POOL, FatalError
from worker.options import Options
from worker.processes.interpreter import InterpreterError, inspect_interpreter
from worker.repeating import repeat
from worker.runs.journal import Journal
from worker.runs.stopping import Stopping
from worker.runs.work_pool import PoolRefused, WorkPoolKeeper
from worker.settings import Settings

EARLY: Final = 0.5
"""For how many seconds a server may keep us waiting before the rest of the daemon is loaded."""


@dataclass(frozen=True, slots=True)
class FirstParts:
    """The services that going online takes, and the memory of how the daemon ends."""

    client: PrefectClient
    journal: Journal
    pool: WorkPoolKeeper
    stopping: Stopping


def first_parts(options: Options, settings: Settings, client: PrefectClient) -> FirstParts:
    """Make them; nothing is read or sent."""
    return FirstParts(
        client=client,
        journal=Journal(options.state.journal, now=utc_now),
        pool=WorkPoolKeeper(
            client=client,
            name=options.pool,
            worker_name=options.name,
            work_queues=options.work_queues,
            create=options.create_pool,
            base_job_template=options.base_job_template,
            heartbeat_interval=settings.worker.heartbeat_seconds,
            now=utc_now,
        ),
        stopping=Stopping(),
    )


class GoingOnline:
    """The one walk along that way, begun early or late."""

    def __init__(self, options: Options, pool: WorkPoolKeeper) -> None:
        self._options = options
        self._pool = pool
        self._scope = anyio.CancelScope()
        self._arrived = anyio.Event()
        self._begun = False

    def begin(self, tasks: TaskGroup) -> None:
        """Begin in `tasks`, which learn of its errors; nothing if that has been done."""
        if not self._begun:
            self._begun = True
            tasks.start_soon(self._walk)

    async def arrived(self, *, within: float | None = None) -> None:
        """Wait until the worker is online, or for so many seconds."""
        with anyio.move_on_after(within):
            await self._arrived.wait()

    def give_up(self) -> None:
        """Nobody wants it any more; nothing if the worker is online."""
        self._scope.cancel()

    async def _walk(self) -> None:
        with self._scope:
            await _show_online(self._options, self._pool)
            self._arrived.set()


async def _show_online(options: Options, pool: WorkPoolKeeper) -> None:
    """Check what flows run in, wait for the server and the pool, and show the worker online."""
    async with anyio.create_task_group() as checking:
        checking.start_soon(_check_interpreter, options)
        await repeat(partial(_reach_pool, pool), what="work_pool", once=True)


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


async def _reach_pool(pool: WorkPoolKeeper) -> float:
    """Find or create the pool and send the first heartbeat; FatalError when the pool cannot be had."""
    try:
        await pool.ensure()
        return await pool.beat_once()
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


def utc_now() -> datetime:
    """The wall clock, for whoever is handed one."""
    return datetime.now(UTC)
