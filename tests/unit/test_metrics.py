"""Counting, causes of exits, and what is served: names and labels as the documentation has them."""

import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.scrapes import OPENMETRICS, Scraped
from worker.exposition import LARGEST_RUNS, Exposition, Seen, families
from worker.metrics import GIVEN_BACK, ClaimResult, ExitCause, Histogram, Metrics
from worker.processes.control_messages import Disposition, Receipt
from worker.processes.process import Exit
from worker.runs.conclusion import Intent, Verdict
from worker.runs.exit_cause import exit_cause
from worker.runs.record import Ended
from worker.runs.start_method import StartMethod

DOCUMENT = Path(__file__).parents[2] / "docs/operating-service.md"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ended(
    *,
    code: int | None = None,
    signal: int | None = None,
    intent: Intent = Intent.NONE,
    evidence: str | None = None,
) -> Ended:
    exit_ = Exit(code=code, signal=signal, max_rss_bytes=None, started=0.0, ended=1.0)
    return Ended(exit=exit_, intent=intent, infrastructure_pid=None, evidence=evidence)


def said(state_type: str) -> Receipt:
    return Receipt(Disposition.STATE_REPORTED, state_id=uuid4(), state_name="Any", state_type=state_type)


@pytest.mark.parametrize(
    ("end", "word", "cause"),
    [
        (ended(code=0), said("COMPLETED"), ExitCause.COMPLETED),
        (ended(code=0), said("FAILED"), ExitCause.FAILED),
        (ended(code=0), said("PAUSED"), ExitCause.FINISHED),
        (ended(code=0), None, ExitCause.FINISHED),
        (ended(code=0), Receipt(Disposition.ORCHESTRATION_ABORTED), ExitCause.FINISHED),
        (ended(code=1), None, ExitCause.ERROR),
        (ended(code=1), said("CRASHED"), ExitCause.ERROR),
        # Killed after its report: the run had ended well.
        (ended(signal=9), said("COMPLETED"), ExitCause.COMPLETED),
        (ended(signal=9), None, ExitCause.KILLED),
        (ended(signal=11), None, ExitCause.KILLED),
        (ended(signal=9, evidence="the killer struck"), None, ExitCause.OUT_OF_MEMORY),
        (ended(code=137, evidence="the killer struck"), None, ExitCause.OUT_OF_MEMORY),
        (ended(code=137), None, ExitCause.ERROR),
        (ended(signal=15, evidence="the killer struck"), None, ExitCause.KILLED),
        (ended(), None, ExitCause.UNKNOWN),
        (ended(signal=15, intent=Intent.CANCEL), None, ExitCause.CANCELLED),
        (ended(code=0, intent=Intent.CANCEL), said("CANCELLED"), ExitCause.CANCELLED),
        (ended(signal=9, intent=Intent.STOP), None, ExitCause.STOPPED),
        (ended(signal=9, intent=Intent.RESCHEDULE), None, ExitCause.STOPPED),
    ],
)
def test_the_cause_of_an_exit(end: Ended, word: Receipt | None, cause: ExitCause) -> None:
    assert exit_cause(end, word) is cause


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert histogram.cumulative() == [2, 4, 5]
    assert histogram.total == 7.5


def test_early_is_not_late_and_what_was_never_due_is_neither() -> None:
    metrics = Metrics()
    metrics.began(startup=0.3, due=NOW + timedelta(seconds=2), now=NOW)
    metrics.began(startup=0.3, due=NOW - timedelta(seconds=2), now=NOW)
    metrics.began(startup=0.3, due=None, now=NOW)
    assert metrics.startup.cumulative()[-1] == 3
    assert (metrics.lateness.cumulative()[-1], metrics.lateness.total) == (2, 2.0)


def test_peak_memory_is_counted_where_it_is_known() -> None:
    metrics = Metrics()
    metrics.exited(ExitCause.KILLED, peak_memory=None)
    metrics.exited(ExitCause.KILLED, peak_memory=1 << 20)
    assert metrics.exits == {ExitCause.KILLED: 2}
    assert metrics.peak_memory.cumulative()[-1] == 1


SEEN = Seen(
    version="1",
    work_pool='po"ol\n',
    worker="w",
    ready=True,
    draining=False,
    last_contact=NOW,
    slots=4,
    free=3,
    in_flight=1,
    starting=0,
    starting_allowed=2,
    reachable=True,
    outage_seconds=1.5,
    api_requests=12,
    api_errors={"503": 2},
    run_memory={"run-1": 5 << 20},
    metrics=Metrics(),
)


def served(seen: Seen) -> Scraped:
    content, kind = Exposition(lambda: seen).render(OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    return Scraped.openmetrics(content.decode())


def test_every_label_is_there_from_the_beginning() -> None:
    scraped = served(SEEN)
    assert scraped.by("cause", "headrace_exits_total") == dict.fromkeys(ExitCause, 0)
    assert scraped.by("result", "headrace_claims_total") == dict.fromkeys(ClaimResult, 0)
    assert scraped.by("method", "headrace_starts_total") == dict.fromkeys(StartMethod, 0)
    assert scraped.by("status", "headrace_api_errors_total") == {"none": 0, "503": 2}


def test_numbers_arrive_as_counted() -> None:
    metrics = Metrics(adoptions=3)
    metrics.claims[ClaimResult.WON] += 2
    metrics.reports[GIVEN_BACK] += 1
    metrics.began(startup=0.6, due=NOW, now=NOW + timedelta(seconds=400))
    scraped = served(replace(SEEN, metrics=metrics))
    assert scraped.value("headrace_claims_total", result="won") == 2
    assert scraped.value("headrace_reports_total", outcome="given_back") == 1
    assert scraped.value("headrace_adoptions_total") == 3
    assert scraped.value("headrace_startup_seconds_bucket", le="0.5") == 0
    assert scraped.value("headrace_startup_seconds_bucket", le="0.75") == 1
    assert scraped.value("headrace_lateness_seconds_sum") == 400
    assert scraped.value("headrace_info", work_pool='po"ol\n') == 1
    assert scraped.value("headrace_outage_seconds_total") == 1.5
    assert scraped.value("headrace_last_contact_timestamp_seconds") == NOW.timestamp()


def test_no_limit_and_no_contact_yet() -> None:
    scraped = served(replace(SEEN, slots=None, free=None, last_contact=None))
    assert scraped.value("headrace_slots") == scraped.value("headrace_slots_free") == math.inf
    assert scraped.value("headrace_last_contact_timestamp_seconds") == 0


def test_only_the_largest_runs_have_a_series_of_their_own() -> None:
    scraped = served(replace(SEEN, run_memory={f"run-{size}": size for size in range(100)}))
    shown = scraped.by("flow_run_id", "headrace_run_memory_bytes")
    assert sorted(shown.values()) == list(range(100 - LARGEST_RUNS, 100))
    assert scraped.value("headrace_runs_memory_bytes") == sum(range(100))


def test_the_document_names_what_is_served_with_type_and_labels() -> None:
    rows = re.findall(r"^\| `(headrace_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    suffixes = {"counter": "_total", "info": "_info"}
    exposed = {
        family.name + suffixes.get(family.type, ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in families(SEEN)
    }
    assert documented == exposed
    assert all(family.documentation.endswith(".") for family in families(SEEN))


@pytest.mark.parametrize("label", [*ExitCause, *ClaimResult, *StartMethod, *Verdict, GIVEN_BACK])
def test_the_document_names_every_value_of_a_label(label: str) -> None:
    assert f"`{label}`" in DOCUMENT.read_text()
