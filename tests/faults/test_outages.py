"""Ten minutes of every kind of outage between a real daemon and a real server: nobody notices but the log."""

import re
from contextlib import ExitStack

import pytest

from tests.support.api import PrefectApi
from tests.support.outages import LASTING, TOLD, Case, Outage, Run, in_step, outage
from tests.support.proxy_modes import Mode
from tests.support.server import PrefectServer

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

REFUSED = "ConnectError: Connection refused"
CUT = "Connection reset by peer|RemoteProtocolError|ReadError"
MADE_UP = "made up by the outage proxy"

OUTAGES = [
    Case(mode=Mode.REFUSE, reason=REFUSED),
    Case(mode=Mode.HANG, reason="ReadTimeout: no answer in time", request_timeout=3, try_seconds=60),
    Case(mode=Mode.STATUS_500, reason=MADE_UP),
    Case(mode=Mode.STATUS_502, reason=MADE_UP),
    Case(mode=Mode.STATUS_503, reason=MADE_UP),
    Case(mode=Mode.THROTTLE_SECONDS, reason=MADE_UP),
    Case(mode=Mode.THROTTLE_DATE, reason=MADE_UP),
    Case(mode=Mode.CUT_BODY, reason=CUT),
    Case(mode=Mode.LOST_ANSWER, reason=CUT),
    Case(mode=Mode.TRICKLE, reason="no complete answer within 8 s", request_timeout=2, try_seconds=240),
]
NUISANCES = [
    Case(mode=Mode.SLOW, reason=None),
    Case(mode=Mode.LOST_ANSWER, only="/set_state", reason=None),
    Case(mode=Mode.NO_WEBSOCKET, reason=None),
]
# What a real server on SQLite says while somebody else writes.
BUSY = "Service Unavailable"
# The server calls a run late that nobody has taken for a while.
BEFORE_THE_END = {"Scheduled", "Late", "Pending", "Running"}
Evidence = dict[str, Outage]


@pytest.fixture(scope="module")
def evidence(
    request: pytest.FixtureRequest,
    prefect_server: PrefectServer,
    api: PrefectApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Evidence, dict[str, AssertionError]]:
    """What every outage of the module's selected tests left in the log, the ledgers and the server."""
    wanted = {
        str(item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    directory = tmp_path_factory.mktemp("outages")
    with ExitStack() as stack:
        outages = [
            stack.enter_context(outage(case, server=prefect_server, api=api, directory=directory))
            for case in [*OUTAGES, *NUISANCES]
            if str(case) in wanted
        ]
        failed = in_step(outages)
    return {str(one.case): one for one in outages}, failed


@pytest.fixture
def story(evidence: tuple[Evidence, dict[str, AssertionError]], case: Case) -> Outage:
    """The outage of this test; an `AssertionError` when its story did not come to its end."""
    outages, failed = evidence
    if str(case) in failed:
        raise failed[str(case)]
    return outages[str(case)]


every_outage = pytest.mark.parametrize("case", OUTAGES, ids=str)
everything = pytest.mark.parametrize("case", [*OUTAGES, *NUISANCES], ids=str)


@everything
def test_the_daemon_lives_and_leaves_running_flows_alone(case: Case, story: Outage) -> None:
    assert story.alive
    assert story.exit_code == 0
    assert not story.left
    for run in story.runs:
        assert run.facts == ["start", "end"], run
        assert len(run.pids) == 1


@everything
def test_every_run_ends_right_and_runs_once(case: Case, story: Outage) -> None:
    assert len(story.runs) == 3
    for run in story.runs:
        assert run.final["state_type"] == run.wanted, run
        assert run.facts.count("start") == 1, run
        assert [state for state in run.states if state not in BEFORE_THE_END] == [run.final["state_name"]], (
            run
        )
        assert run.states.count("Pending") == 1
        assert run.states.count("Running") == 1


@every_outage
def test_one_warning_and_one_line_at_its_end(case: Case, story: Outage) -> None:
    told = [event for event in story.log if event["event"] in TOLD]
    during = [event for event in story.during if event["event"] in TOLD]
    assert [event["event"] for event in during] == ["api.unreachable"]
    assert re.search(str(case.reason), during[0]["reason"])
    assert [event["event"] for event in told] == list(TOLD) * (len(told) // 2)
    assert [event["level"] for event in told[:2]] == ["warning", "info"]
    assert told[1]["outage_seconds"] > 0


@everything
def test_nothing_else_is_warned_of(case: Case, story: Outage) -> None:
    warnings = [event for event in story.log if event["level"] not in {"debug", "info"}]
    crashed = [event for event in warnings if event["event"] == "flow_run.reported"]
    assert [event["flow_run_id"] for event in crashed] == [required(story.dies).id]
    others = [event for event in warnings if event not in crashed]
    assert {event["event"] for event in others} <= {"api.unreachable"}
    # Besides the outage itself: the real server may have been too busy, or too slow for a time-out so short.
    harmless = f"{BUSY}|PREFECT_API_REQUEST_TIMEOUT" if case.request_timeout < 60 else BUSY
    others = [event for event in others if not re.search(harmless, event["reason"])]
    assert len(others) <= 1 if case.reason or case.only else not others


@every_outage
def test_claims_resume_with_the_first_poll(case: Case, story: Outage) -> None:
    comes = required(story.comes).id
    names = [event["event"] for event in story.log]
    recovered = names.index("api.recovered")
    claimed = next(
        place
        for place, event in enumerate(story.log)
        if event["event"] == "flow_run.claimed" and event["flow_run_id"] == comes
    )
    assert recovered < claimed
    assert names[recovered:claimed].count("poll.done") <= 1


@every_outage
def test_requests_stay_few(case: Case, story: Outage) -> None:
    minutes = story.lasted / 60
    assert story.lasted >= LASTING
    retried = [event for event in story.log if event["event"] == "api.retried"]
    # Besides what is tried again: what was under way at the end, and the question whether the server is ready.
    asked = [request for request in story.requests if not request.target.endswith("/ready")]
    assert len(asked) <= len(retried) + 20
    assert len(story.requests) <= 2 * len(asked)
    assert len(retried) / minutes <= 40


@pytest.mark.parametrize("case", [one for one in OUTAGES if "429" in one.mode], ids=str)
def test_retry_after_is_obeyed(case: Case, story: Outage) -> None:
    during = [event for event in story.log if event["event"] == "api.retried" and MADE_UP in event["reason"]]
    assert during
    for event in during:
        assert 115 <= event["delay_seconds"] <= 120 * 1.2, event


def required(run: Run | None) -> Run:
    assert run is not None
    return run
