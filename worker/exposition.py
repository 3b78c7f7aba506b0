"""The metrics in the formats that Prometheus and OpenTelemetry collectors read, through prometheus-client.

Owns names, types, labels and meanings: each family is made in one place here, and docs/operating-service.md is held to
them by a test. Does not own the numbers. Imported when `/metrics` is first asked for, and never before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from worker.metrics import GIVEN_BACK, ClaimResult, ExitCause, Histogram, Metrics
from worker.runs.conclusion import Verdict
from worker.runs.start_method import StartMethod

LARGEST_RUNS: Final = 20
"""So many runs at most have a series of their own at a time."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be seen of the daemon at one moment, beside what `metrics` has counted.

    `slots` and `free` are None without a limit. `run_memory` is in bytes, by flow run id. `api_errors` are tries by
    HTTP status, `none` for those that had no answer.
    """

    version: str
    work_pool: str
    worker: str
    ready: bool
    draining: bool
    last_contact: datetime | None
    slots: int | None
    free: int | None
    in_flight: int
    starting: int
    starting_allowed: int
    reachable: bool
    outage_seconds: float
    api_requests: int
    api_errors: Mapping[str, int]
    run_memory: Mapping[str, int]
    metrics: Metrics


class Exposition:
    """Answers scrapes; one for the daemon's life. `look` gives what can be seen now."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Daemon(look))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header asks for, OpenMetrics or Prometheus text, and its name."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Daemon(Collector):
    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        return families(self._look())


def families(seen: Seen) -> list[Metric]:
    """All that is served about the daemon, but for the `process_…` metrics, which are prometheus-client's own."""
    return [*_state(seen), *_runs(seen.metrics), *_server(seen), *_memory(seen)]


def _state(seen: Seen) -> list[Metric]:
    unlimited = float("inf")
    return [
        InfoMetricFamily(
            "headrace",
            "Which daemon this is.",
            value={"version": seen.version, "work_pool": seen.work_pool, "worker": seen.worker},
        ),
        _gauge("headrace_ready", "1 while the daemon takes new runs, as /readyz judges it.", seen.ready),
        _gauge("headrace_draining", "1 once the daemon was told to stop.", seen.draining),
        _gauge(
            "headrace_last_contact_timestamp_seconds",
            "When the server last answered a poll, or while draining a heartbeat; 0 before the first.",
            0.0 if seen.last_contact is None else seen.last_contact.timestamp(),
        ),
        _gauge(
            "headrace_slots",
            "How many runs may be in flight at once (--limit); +Inf without a limit.",
            unlimited if seen.slots is None else seen.slots,
        ),
        _gauge(
            "headrace_slots_free",
            "How many slots are free; +Inf without a limit.",
            unlimited if seen.free is None else seen.free,
        ),
        _gauge(
            "headrace_runs_in_flight", "Runs that are claimed, running or being reported.", seen.in_flight
        ),
        _gauge("headrace_runs_starting", "Those of them whose engine has not connected yet.", seen.starting),
        _gauge(
            "headrace_runs_starting_allowed",
            "How many may be starting at once: --max-starting, or fewer while the server is slow.",
            seen.starting_allowed,
        ),
    ]


def _runs(metrics: Metrics) -> list[Metric]:
    return [
        _counter("headrace_claims", "Claims by result.", "result", metrics.claims, ClaimResult),
        _counter(
            "headrace_starts",
            "Processes started for runs, by start method.",
            "method",
            metrics.starts,
            StartMethod,
        ),
        CounterMetricFamily(
            "headrace_adoptions",
            "Living processes taken over from an earlier daemon.",
            value=metrics.adoptions,
        ),
        _counter(
            "headrace_exits",
            "Processes of runs that have ended, by cause.",
            "cause",
            metrics.exits,
            ExitCause,
        ),
        _counter(
            "headrace_reports",
            "Runs settled, by what the daemon had to tell the server.",
            "outcome",
            metrics.reports,
            [*Verdict, GIVEN_BACK],
        ),
        _histogram(
            "headrace_startup_seconds",
            "From just before the claim until the run's engine has connected.",
            metrics.startup,
        ),
        _histogram(
            "headrace_lateness_seconds",
            "From when the run was due until its engine has connected; 0 for one that was early.",
            metrics.lateness,
        ),
        _histogram(
            "headrace_run_peak_memory_bytes",
            "Largest resident set of a run's process, of those that have ended.",
            metrics.peak_memory,
        ),
    ]


def _server(seen: Seen) -> list[Metric]:
    return [
        CounterMetricFamily(
            "headrace_api_requests",
            "Requests sent to the server, every try counted.",
            value=seen.api_requests,
        ),
        _counter(
            "headrace_api_errors",
            "Requests that were not answered with success, by HTTP status; 'none' without an answer.",
            "status",
            seen.api_errors,
            ["none"],
        ),
        _gauge("headrace_server_reachable", "0 during an outage of the server.", seen.reachable),
        CounterMetricFamily(
            "headrace_outage_seconds",
            "Seconds of outages, the current one up to the last try included.",
            value=seen.outage_seconds,
        ),
    ]


def _memory(seen: Seen) -> list[Metric]:
    each = GaugeMetricFamily(
        "headrace_run_memory_bytes",
        f"Proportional set size of a run's processes; of the {LARGEST_RUNS} largest runs.",
        labels=["flow_run_id"],
    )
    for name, size in nlargest(LARGEST_RUNS, seen.run_memory.items(), key=lambda item: item[1]):
        each.add_metric([name], size)
    total = sum(seen.run_memory.values())
    return [
        each,
        _gauge("headrace_runs_memory_bytes", "Proportional set size of the processes of all runs.", total),
    ]


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _counter(name: str, meaning: str, label: str, counts: Mapping[str, int], known: Iterable[str]) -> Metric:
    """Labels that are known beforehand are shown from the beginning: a first one is then seen as an increase."""
    family = CounterMetricFamily(name, meaning, labels=[label])
    # A copy, made in one step: the event loop may be counting.
    values = dict.fromkeys(map(str, known), 0) | dict(counts)
    for value, count in values.items():
        family.add_metric([str(value)], count)
    return family


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, histogram.cumulative()), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=histogram.total)
