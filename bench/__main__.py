"""`python -m bench`: measure, write one JSON file per scenario, render docs/performance.md from all there are."""

import dataclasses
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from bench.api import Api
from bench.environment import BIN
from bench.machine import machine, versions
from bench.options import Options, parse
from bench.processes import BenchError, become_subreaper, end_descendants, say
from bench.report import render
from bench.results import Recorder, Result, load, save
from bench.scenarios import SCENARIOS, Scenario
from bench.server import Database, running_server
from bench.sizes import Sizes
from bench.stage import Stage
from bench.workers import TITLES

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Entry point; 0 when everything was measured."""
    options = parse(argv)
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    try:
        if options.measure:
            measure(options)
        render(load(options.results), options.page)
        say(f"rendered {options.page}")
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted; everything is stopped")
        return 130
    return 0


def measure(options: Options) -> None:
    """Play the scenarios that were asked for, on one server for each database. Raises BenchError."""
    for program in ("prefect", "headrace"):
        if not (BIN / program).exists():
            raise BenchError(f"no {program} beside {sys.executable}; `make bench` brings it along")
    become_subreaper()
    for database in Database:
        names = [name for name in options.scenarios if SCENARIOS[name].database is database]
        if names and not database.is_here and not options.named:
            say(f"left out, as {database} is not installed here: {', '.join(names)}")
        elif names:
            with session(database) as stage:
                for name in names:
                    scenario = SCENARIOS[name]
                    if options.candidates is not None:
                        scenario = dataclasses.replace(scenario, candidates=options.candidates)
                    save(play(stage, name, scenario, options.sizes), options.results)


@contextmanager
def session(database: Database = Database.SQLITE) -> Generator[Stage]:
    """A server on this database, with work pools, in a temporary directory. Nothing of it is left afterwards, however it ends."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    try:
        with running_server(directory, database) as server, closing(Api(server.api_url)) as api:
            stage = Stage(server=server, api=api, directory=directory)
            stage.prepare()
            yield stage
    finally:
        # Meanwhile nothing interrupts: what was started must not outlive the benchmark.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        end_descendants()
        shutil.rmtree(directory)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def play(stage: Stage, name: str, scenario: Scenario, sizes: Sizes) -> Result:
    """All rounds of one scenario. Raises BenchError."""
    rounds = sizes.rounds[name]
    recorder = Recorder()
    began = time.monotonic()
    for number in range(rounds):
        order = scenario.order(number)
        say(f"{name}, round {number + 1} of {rounds}: {'; '.join(TITLES[candidate] for candidate in order)}")
        scenario.play(stage, sizes, recorder, order)
    seconds = time.monotonic() - began
    say(f"{name}: {seconds:.0f} s")
    measured = {key: value for key, value in dataclasses.asdict(sizes).items() if key != "rounds"}
    return Result(
        scenario=name,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=round(seconds, 1),
        rounds=rounds,
        sizes=measured,
        machine=machine(),
        versions=versions(scenario.database),
        series=recorder.series(),
        observations=recorder.observations(),
    )


def _interrupted(_number: int, _frame: object) -> NoReturn:
    # Once is enough: what follows is the stopping.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
