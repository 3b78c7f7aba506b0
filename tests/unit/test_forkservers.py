"""Which fork servers there are: made by the first run that names an interpreter, retired when idle or for room."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from structlog.testing import capture_logs

from worker.processes.held import Held, NotWarm
from worker.processes.launch_problems import LaunchSpec
from worker.processes.process_table import Marker
from worker.runs.forkservers import IDLE_LIMIT, IN_DEMAND, MOST_OTHERS, ForkServers
from worker.runs.wake import Wake

pytestmark = pytest.mark.anyio

OWN = "/opt/daemon/bin/python"
ENVIRONMENT = {"PATH": "/usr/bin"}
A, B = "/venvs/a/bin/python", "/venvs/b/bin/python"
FULL = tuple(f"/venvs/{number}/bin/python" for number in range(MOST_OTHERS))


class Server:
    """A fork server that has no process, and remembers what was asked of it."""

    def __init__(
        self, *, python: str, environment: Mapping[str, str], log: Path, wake: Callable[[], None]
    ) -> None:
        self.python = python
        self.environment = environment
        self.output = log
        self.wake = wake
        self.absence: str | None = None
        self.looks = 0
        self.closed = False
        self._in_service = anyio.Event()

    async def keep_once(self) -> float:
        self.looks += 1
        self.output.write_text(f"of {self.python}")
        self._in_service.set()
        return 5.0

    @asynccontextmanager
    async def hold(self, spec: LaunchSpec, *, output: Path, marker: Marker) -> AsyncGenerator[Held]:
        del spec, marker
        await self._in_service.wait()
        if output.name == "refused":
            raise NotWarm("the directory hides a module")
        yield cast("Held", self)

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()  # it takes a while, in which no cancellation may reach it
        self.closed = True


async def repeat(step: Callable[[], Awaitable[float]], /, *, what: str, wake: Wake) -> None:
    """The daemon's loop, that looks only when its bell is rung."""
    assert what == "forkserver"
    while True:
        await step()
        await wake.wait(timeout=float("inf"))


class Kept:
    """Fork servers, and a clock that is set by hand."""

    def __init__(self, directory: Path, tasks: TaskGroup, made: list[Server]) -> None:
        self.now = 1000.0
        self.made = made
        self.directory = directory
        self.tasks = tasks
        self.servers = ForkServers(
            python=OWN,
            environment=ENVIRONMENT,
            make=self._make,
            directory=directory,
            monotonic=lambda: self.now,
        )

    def _make(self, **given: Any) -> Server:
        self.made.append(Server(**given))
        return self.made[-1]

    async def look(self) -> float:
        return await self.servers.keep_once(self.tasks, repeat)

    def hold(self, python: str, *, output: str = "output") -> AbstractAsyncContextManager[Held]:
        spec = LaunchSpec(argv=(python, "-m", "prefect.engine"), env={}, cwd=Path("/"), stream_output=False)
        return self.servers.hold(spec, output=self.directory / output, marker=Marker("M", "1"))

    async def use(self, *pythons: str) -> None:
        for python in pythons:
            async with self.hold(python):
                pass

    async def rest(self) -> None:
        """Until nobody has anything to do."""
        await anyio.wait_all_tasks_blocked()

    def living(self) -> list[str]:
        return [server.python for server in self.made if not server.closed]


@asynccontextmanager
async def keeping(directory: Path) -> AsyncGenerator[Kept]:
    made: list[Server] = []
    async with anyio.create_task_group() as tasks:
        kept = Kept(directory, tasks, made)

        async def keep() -> float:
            return await kept.look()

        async def loop() -> None:
            await repeat(keep, what="forkserver", wake=kept.servers.wake)

        tasks.start_soon(loop)
        await kept.rest()
        yield kept
        tasks.cancel_scope.cancel()
    assert all(server.closed for server in made)


async def test_the_daemons_own_is_kept_from_the_beginning_and_never_retired(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        (own,) = kept.made
        assert (own.python, own.environment, own.output.name) == (OWN, ENVIRONMENT, "forkserver.log")
        assert own.looks == 1
        kept.now += 100 * IDLE_LIMIT
        await kept.look()
        await kept.rest()
        assert kept.living() == [OWN]
        own.wake()
        await kept.rest()
        assert own.looks == 2


async def test_runs_at_once_that_name_a_new_interpreter_have_one_made(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        async with anyio.create_task_group() as runs:
            for python in (A, B, A, OWN, A):
                runs.start_soon(kept.use, python)
        assert kept.living() == [OWN, A, B]
        assert [server.looks for server in kept.made] == [1, 1, 1]


async def test_links_to_one_program_are_interpreters_of_their_own(tmp_path: Path) -> None:
    links = [tmp_path / "one", tmp_path / "other"]
    for link in links:
        link.symlink_to("/usr/bin/python3")
    async with keeping(tmp_path) as kept:
        await kept.use(*map(str, links))
        assert kept.living() == [OWN, *map(str, links)]
        assert len({server.output for server in kept.made}) == 3


async def test_one_that_no_run_asks_for_is_retired_and_made_again_when_it_is_named(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(A, B)
        kept.now += IDLE_LIMIT / 2
        await kept.use(B)
        kept.now += IDLE_LIMIT / 2
        with capture_logs() as logs:
            await kept.look()
        await kept.rest()
        assert [(line["event"], line["python"]) for line in logs] == [("forkserver.retired", A)]
        assert kept.living() == [OWN, B]
        assert not kept.made[1].output.exists()
        await kept.use(A)
        assert kept.living() == [OWN, B, A]
        assert kept.made[-1].output.read_text() == f"of {A}"


async def test_one_that_a_run_is_being_started_from_is_not_retired(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        async with kept.hold(A):
            kept.now += IDLE_LIMIT
            await kept.look()
            await kept.rest()
            assert kept.living() == [OWN, A]
        # Counted from the end of that.
        await kept.look()
        await kept.rest()
        assert kept.living() == [OWN, A]


async def test_one_that_could_not_fork_is_in_use_all_the_same(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(A)
        kept.now += IDLE_LIMIT
        with pytest.raises(NotWarm, match="hides a module"):
            async with kept.hold(A, output="refused"):
                pass
        await kept.look()
        await kept.rest()
        assert kept.living() == [OWN, A]


async def test_the_one_least_lately_used_makes_room(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(*FULL)
        kept.now += 1
        await kept.use(FULL[0])
        kept.now += IN_DEMAND
        await kept.use(A)
        await kept.rest()
        assert kept.living() == [OWN, FULL[0], *FULL[2:], A]


async def test_none_makes_room_that_is_in_demand(tmp_path: Path) -> None:
    """Where more interpreters take turns than there are places, the first ones stay warm, and the others go cold."""
    async with keeping(tmp_path) as kept:
        await kept.use(*FULL)
        for _ in range(3):
            kept.now += IN_DEMAND / 2
            await kept.use(*FULL)
            with pytest.raises(NotWarm, match="in demand"):
                await kept.use(A)
        assert kept.living() == [OWN, *FULL]


async def test_none_makes_room_that_a_run_is_being_started_from(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(*FULL[1:])
        async with kept.hold(FULL[0]):
            kept.now += 1
            await kept.use(*FULL[1:])
            kept.now += IN_DEMAND
            await kept.use(A)
            await kept.rest()
            assert kept.living() == [OWN, *FULL[2:], FULL[0], A]


async def test_one_whose_file_cannot_be_removed_is_let_go_all_the_same(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(*FULL)
        kept.now += IN_DEMAND
        for server in kept.made[1:]:
            server.output.unlink()
            server.output.mkdir()  # which unlink(2) refuses
        await kept.use(A)
        await kept.rest()
        assert kept.living() == [OWN, *FULL[1:], A]
        for server in kept.made[2:-1]:
            server.output.rmdir()


async def test_what_an_earlier_daemon_has_left_of_others_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "forkserver-0123456789ab.log"
    left.write_text("of an interpreter that nobody names any more")
    async with keeping(tmp_path):
        assert not left.exists()


async def test_one_that_cannot_fork_keeps_no_place_from_one_that_can(tmp_path: Path) -> None:
    async with keeping(tmp_path) as kept:
        await kept.use(*FULL)
        with pytest.raises(NotWarm, match="in demand"):
            await kept.use(A)
        kept.made[2].absence = "a module to preload is missing there"
        await kept.use(A)
        await kept.rest()
        assert kept.living() == [OWN, FULL[0], *FULL[2:], A]
