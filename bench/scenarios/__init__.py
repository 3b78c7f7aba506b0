"""The scenarios, by name. Each is a function that plays one round, the candidates one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.results import Recorder
from bench.scenarios import cancelling, latency, load, starting
from bench.server import Database
from bench.sizes import Sizes
from bench.stage import Stage
from bench.workers import Candidate

Round = Callable[[Stage, Sizes, Recorder, tuple[Candidate, ...]], None]

_ALL = (Candidate.STOCK, Candidate.TUNED, Candidate.OURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What to play, with whom, and on which database of the server's."""

    play: Round
    candidates: tuple[Candidate, ...]
    database: Database = Database.SQLITE

    def order(self, number: int) -> tuple[Candidate, ...]:
        """The candidates of round `number`: each round begins with another one, so that none is always first."""
        turn = number % len(self.candidates)
        return self.candidates[turn:] + self.candidates[:turn]


SCENARIOS: Mapping[str, Scenario] = {
    "start": Scenario(play=starting.start, candidates=(Candidate.STOCK, Candidate.OURS)),
    "idle": Scenario(play=starting.idle, candidates=_ALL),
    "requests": Scenario(play=latency.requests, candidates=(Candidate.STOCK, Candidate.OURS)),
    "latency": Scenario(play=latency.latency, candidates=_ALL),
    "cold": Scenario(play=latency.cold, candidates=(Candidate.STOCK, Candidate.COLD)),
    "lateness": Scenario(play=latency.lateness, candidates=_ALL),
    "cancel": Scenario(play=cancelling.cancel, candidates=(Candidate.STOCK, Candidate.OURS)),
    "stop": Scenario(play=starting.stop, candidates=(Candidate.STOCK, Candidate.OURS)),
    "burst": Scenario(play=load.burst, candidates=(Candidate.TUNED, Candidate.OURS)),
    "burst-postgres": Scenario(
        play=load.burst,
        candidates=(Candidate.TUNED, Candidate.OURS),
        database=Database.POSTGRES,
    ),
    # What these measure has nothing to do with the database, and fifty flows of stock's, or thousands of runs, bring one of
    # SQLite's to a stand-still.
    "memory": Scenario(
        play=load.many, candidates=(Candidate.STOCK, Candidate.OURS), database=Database.POSTGRES
    ),
    "growth": Scenario(
        play=load.growth, candidates=(Candidate.STOCK, Candidate.OURS), database=Database.POSTGRES
    ),
}
