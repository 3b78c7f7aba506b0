"""How much is measured: a small, the usual and a large size of everything."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of runs and lengths of windows. Seconds where it says so."""

    settle_seconds: float = 15.0
    """Between being online and a measurement of idleness."""
    idle_seconds: float = 60.0
    latency_runs_slow: int = 3
    """Runs per round of a worker that polls every ten seconds."""
    latency_runs_fast: int = 6
    """Runs per round of the others."""
    lateness_runs: int = 3
    lateness_interval_seconds: int = 15
    burst_runs: int = 100
    burst_limits: tuple[int, ...] = (2, 4, 8)
    flows: tuple[int, ...] = (10, 50)
    growth_warm_up: int = 200
    growth_runs: int = 200
    growth_stock_runs: int = 0
    """None: stock is left out."""
    cancels: int = 2
    rounds: dict[str, int] = field(
        default_factory=lambda: {
            "start": 5,
            "idle": 2,
            "requests": 1,
            "latency": 3,
            "lateness": 1,
            "burst": 1,
            "burst-postgres": 1,
            "memory": 1,
            "growth": 1,
            "cancel": 2,
            "stop": 2,
            "cold": 2,
        }
    )


USUAL = Sizes()

FULL = Sizes(
    latency_runs_slow=5,
    latency_runs_fast=10,
    lateness_runs=6,
    flows=(10, 50, 100),
    growth_runs=2000,
    rounds=USUAL.rounds
    | {
        "idle": 3,
        "requests": 3,
        "lateness": 3,
        "burst": 3,
        "burst-postgres": 3,
        "memory": 2,
        "cancel": 3,
        "stop": 3,
        "cold": 3,
    },
)

QUICK = Sizes(
    settle_seconds=3.0,
    idle_seconds=5.0,
    latency_runs_slow=1,
    latency_runs_fast=2,
    lateness_runs=2,
    burst_runs=8,
    burst_limits=(2,),
    flows=(3,),
    growth_warm_up=5,
    growth_runs=10,
    cancels=1,
    rounds=dict.fromkeys(USUAL.rounds, 1),
)
