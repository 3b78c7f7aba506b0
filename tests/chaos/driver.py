"""The chaos driver: creates runs over time, strikes while they are carried out, and waits until all is settled.

Owns one Prefect server, one pool, one fleet, and the order of events. It keeps note of what it did to which run;
what that amounts to is `evidence`'s and `verdict`'s business. One thread, one step after another: while the server
is down, the driver waits for it, and nobody else does anything that the daemons could notice.
"""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

from tests.chaos import ledger
from tests.chaos.fleet import Fleet
from tests.chaos.notes import Created, Notes
from tests.chaos.plan import Blow, Options, Plan, PlannedBlow, PlannedRun, RunKind, draw
from tests.chaos.remains import journal_entries, left_directories, left_processes
from tests.chaos.server import Server
from tests.chaos.strikes import cancel_run, kill_flow
from tests.support.api import Json, PrefectApi

HERE = Path(__file__).parent
PULL_STEPS = [{"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}]
OPEN = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING")
PAGE = 200

TICK = 0.2
# Asking the server how things stand costs it as much as a run does.
LOOK_INTERVAL = 2.0
# Runs that wait for a slot: enough to keep every daemon busy, few enough to keep the machine usable.
BACKLOG = 8
STOP_LIMIT = 120.0
# Of the server's restarts, those during which a daemon is killed and comes back without a server.
MEANWHILE_SHARE = 0.5
# An engine gives up when the server is away for longer than its tries last.
ENGINE_PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "12"}


class Driver:
    """One chaos run; made by `started`, used once. `say` is told what happens, a line at a time."""

    def __init__(
        self,
        *,
        options: Options,
        server: Server,
        api: PrefectApi,
        directory: Path,
        random: Random,
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.notes = Notes()
        self.ledger = directory / "ledger"
        self.ledger.mkdir()
        self.api = api
        self._server = server
        self._random = random
        self._say = say
        self.pool = api.create_pool("chaos", concurrency_limit=options.runs + 1)
        self._deployments = {kind: self._deploy(kind) for kind in RunKind}
        self.fleet = Fleet(
            pool=self.pool,
            names=tuple(f"chaos-{number}" for number in range(options.daemons)),
            limit=options.limit,
            directory=directory,
            environment=server.current.env({ledger.DIRECTORY: str(self.ledger)} | ENGINE_PATIENCE),
            random=random,
            clock=ledger.boot_time,
        )
        self._blows: list[PlannedBlow] = []
        self._open: dict[str, str] = {}
        self._unseen = 0
        self._looked = 0.0

    def run(self) -> None:
        """The whole of it: chaos, then peace until everything is settled or nothing moves, then a clean stop."""
        self.notes.began, self.notes.epoch = ledger.boot_time(), time.time()
        self._rage(draw(self.options, self._random))
        self._say(f"{len(self.notes.created)} runs created, no more blows; waiting for the last to end")
        self._settle()
        self.notes.settled = ledger.boot_time()
        self._stop()

    # chaos ----------------------------------------------------------------------------------------------

    def _rage(self, plan: Plan) -> None:
        runs, self._blows = list(plan.runs), list(plan.blows)
        moved = due = ledger.boot_time()
        while runs or self._blows:
            self.fleet.tend()
            self._look()
            if runs and ledger.boot_time() >= due and self._backlog() < BACKLOG:
                planned = runs.pop(0)
                self._create(planned)
                moved = ledger.boot_time()
                due = moved + planned.pause
            if self._strike_next(desperate=not runs and not self._open and not self._unseen):
                moved = ledger.boot_time()
            if ledger.boot_time() - moved > self.options.patience:
                self.fleet.bad_ends.append(
                    f"no run could be created and no blow struck for {self.options.patience:g} s:"
                    f" {len(runs)} runs and {len(self._blows)} blows were left"
                )
                return
            time.sleep(TICK)

    def _strike_next(self, *, desperate: bool) -> bool:
        """Strike one of the blows that are due, the first that hits somebody; whether one did.

        `desperate`: no run is left to be hit, nor will there be one.
        """
        for planned in [blow for blow in self._blows if blow.after <= len(self.notes.created)]:
            hit = self._strike(planned.blow)
            if hit is None and desperate and planned.blow is Blow.CANCEL:
                hit = "nobody, all runs have ended"
            if hit is None and desperate and planned.blow is Blow.KILL_FLOW:
                # As many kills as were asked for.
                self._blows[self._blows.index(planned)] = PlannedBlow(planned.after, Blow.KILL_DAEMON)
            if hit is not None:
                self._blows.remove(planned)
                self._note(planned.blow, hit)
                return True
        return False

    def _strike(self, blow: Blow) -> str | None:
        """Strike; whom it hit, None when there was nobody to hit."""
        match blow:
            case Blow.KILL_DAEMON:
                return self.fleet.kill_one()
            case Blow.STOP_DAEMON:
                return self.fleet.stop_one()
            case Blow.KILL_FLOW:
                return kill_flow(self.notes, directory=self.ledger, random=self._random)
            case Blow.RESTART_SERVER:
                return self._restart_server()
            case Blow.CANCEL:
                return cancel_run(self.notes, open_runs=self._open, api=self.api, random=self._random)

    def _note(self, blow: Blow, hit: str) -> None:
        self.notes.blows.append((ledger.boot_time(), blow, hit))
        self._say(f"{len(self.notes.created)}/{self.options.runs} {blow.value}: {hit}")

    def _restart_server(self) -> str:
        """Stop the server and start it again; when a daemon is to be killed anyway, sometimes meanwhile."""
        began = time.time()
        self._server.stop()
        meanwhile = next((blow for blow in self._blows if blow.blow is Blow.KILL_DAEMON), None)
        if meanwhile is not None and self._random.random() < MEANWHILE_SHARE:
            hit = self.fleet.kill_one()
            if hit is not None:
                self._blows.remove(meanwhile)
                self._note(Blow.KILL_DAEMON, f"{hit}, while the server is down")
        self._server.start()
        self.notes.outages.append((began, time.time()))
        return f"away for {time.time() - began:.1f} s"

    # runs -----------------------------------------------------------------------------------------------

    def _deploy(self, kind: RunKind) -> str:
        match kind:
            case RunKind.ENGINE:
                return self.api.create_deployment(
                    pool=self.pool, entrypoint="flow.py:chaos", pull_steps=PULL_STEPS
                )
            case RunKind.COMMAND:
                command = f"{sys.executable} -ES {HERE / 'job.py'}"
                return self.api.create_deployment(
                    pool=self.pool, entrypoint="job.py:job", job_variables={"command": command}
                )

    def _create(self, planned: PlannedRun) -> None:
        run_id = self.api.create_flow_run(
            self._deployments[planned.kind],
            # The driver's request may be repeated when a busy server does not answer.
            idempotency_key=f"chaos-{planned.number}",
            job_variables={"env": {ledger.SECONDS: str(planned.seconds)}},
        )
        self.notes.created[run_id] = Created(run_id, planned)
        self._unseen += 1

    def _backlog(self) -> int:
        return self._unseen + sum(state == "SCHEDULED" for state in self._open.values())

    def _look(self) -> None:
        """Ask the server which runs are open, now and then."""
        if ledger.boot_time() < self._looked + LOOK_INTERVAL:
            return
        self._open = {run["id"]: run["state_type"] for run in self._open_runs()}
        self._unseen = 0
        self._looked = ledger.boot_time()

    def _open_runs(self) -> Generator[Json]:
        offset = 0
        while True:
            page = self.api.flow_runs(
                flow_runs={"state": {"type": {"any_": list(OPEN)}}}, limit=PAGE, offset=offset
            )
            yield from page
            if len(page) < PAGE:
                return
            offset += PAGE

    # the end --------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until every run is over and every daemon has forgotten it, or until nothing has moved for long."""
        last, moved = None, ledger.boot_time()
        while True:
            self.fleet.tend()
            self._look()
            unsettled = (
                sorted(self._open.items()),
                journal_entries(self.fleet.state_root),
                left_directories(self.fleet.state_root),
            )
            if not any(unsettled) and self.fleet.all_up():
                return
            seen = (unsettled, len(ledger.read(self.ledger)))
            if seen != last:
                last, moved = seen, ledger.boot_time()
            if ledger.boot_time() - moved > self.options.patience:
                self._say(
                    f"nothing has moved for {self.options.patience:g} s: {len(self._open)} runs are open"
                )
                return
            time.sleep(LOOK_INTERVAL)

    def _stop(self) -> None:
        self.fleet.stop_all()
        deadline = ledger.boot_time() + STOP_LIMIT
        while not self.fleet.all_over():
            if ledger.boot_time() > deadline:
                self.fleet.bad_ends.append(f"not every daemon ended within {STOP_LIMIT:g} s of its SIGTERM")
                return
            time.sleep(TICK)
        while left_processes(self.fleet) and ledger.boot_time() < deadline:
            # An engine may linger about a second after its final state.
            time.sleep(TICK)


@contextmanager
def started(
    options: Options,
    *,
    directory: Path,
    mark: str,
    say: Callable[[str], None],
    database: Path | None = None,
) -> Generator[Driver]:
    """A driver with its server, in `directory`; whatever it started is ended with the context.

    `mark` is carried by every process; `database` is a migrated one to begin with.
    """
    with ExitStack() as stack:
        server = Server(directory / "server", mark=mark, database=database)
        stack.callback(server.stop)
        api = stack.enter_context(server.current.api())
        driver = Driver(
            options=options,
            server=server,
            api=api,
            directory=directory,
            random=Random(options.seed),
            say=say,
        )
        stack.callback(driver.fleet.end)
        yield driver
