"""Outages that are more than one daemon's bad connection: of the server itself, of its tokens, of the flows, too."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.api import PrefectApi
from tests.support.daemons import Worker
from tests.support.outages import JOB, TOLD, proxied_daemon
from tests.support.project import Project
from tests.support.proxy import OutageProxy, outage_proxy
from tests.support.proxy_modes import Mode
from tests.support.server import PrefectServer, running_server
from tests.support.wait import wait_for

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

CSRF = {
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_API_CSRF_TOKEN_EXPIRATION": "PT2S",
}


@pytest.fixture
def proxy(prefect_server: PrefectServer) -> Iterator[OutageProxy]:
    with outage_proxy(prefect_server.api_url) as proxy:
        yield proxy


def told(worker: Worker) -> list[str]:
    return [event["event"] for event in worker.logs() if event["event"] in TOLD]


def alarms(worker: Worker) -> list[str]:
    """What was logged above INFO, but for what a busy SQLite server brings about by itself."""
    return [
        event["event"]
        for event in worker.logs()
        if event["level"] not in {"debug", "info"} and event.get("reason") != "Service Unavailable"
    ]


def job(project: Project, api_url: str, ending: str, *gate: Path) -> dict[str, str]:
    words: Sequence[object] = (sys.executable, JOB, api_url, project.out, ending, *gate)
    return {"command": " ".join(str(word) for word in words)}


def facts(project: Project, run_id: str) -> list[str]:
    ledger = project.out / f"{run_id}.ledger"
    return [line.split()[0] for line in ledger.read_text().splitlines()] if ledger.exists() else []


def test_a_daemon_started_before_its_server_waits_for_it(
    prefect_server: PrefectServer, api: PrefectApi, proxy: OutageProxy, tmp_path: Path
) -> None:
    proxy.switch(Mode.REFUSE)
    with proxied_daemon(prefect_server, tmp_path, pool=api.create_pool(), proxy=proxy) as worker:
        worker.wait_for_event("api.unreachable")
        assert "started!" not in worker.stdout()
        proxy.switch(Mode.PASS)
        worker.wait_started()
        assert told(worker)[:2] == list(TOLD)
        assert worker.stop() == 0


def test_flows_that_suffer_too_end_in_a_terminal_state(
    prefect_server: PrefectServer, api: PrefectApi, proxy: OutageProxy, tmp_path: Path
) -> None:
    project = Project(api=api, pool=api.create_pool(), out=tmp_path / "out")
    gate = project.gate()
    with proxied_daemon(prefect_server, tmp_path, pool=project.pool, proxy=proxy) as worker:
        worker.wait_started()
        patient, impatient = (
            project.run("waits_for_file", parameters={"gate": str(gate)}, job_variables={"env": env})
            for env in ({}, {"PREFECT_CLIENT_MAX_RETRIES": "1"})
        )
        for run_id in (patient, impatient):
            project.wait_for_fact(run_id, "waiting")
        proxy.switch(Mode.STATUS_503)
        gate.touch()
        worker.wait_for_event("api.unreachable", reason="made up by the outage proxy")
        worker.wait_for_event("flow_run.exited", flow_run_id=impatient, timeout=150)
        assert api.flow_run(impatient)["state_type"] == "RUNNING"
        proxy.switch(Mode.PASS)
        assert api.wait_for_final(impatient)["state_type"] == "CRASHED"
        assert api.wait_for_final(patient)["state_type"] == "COMPLETED"
        for run_id in (patient, impatient):
            worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
            assert len(project.facts(run_id, "waiting")) == 1
            assert len(project.facts(run_id, "finished")) == 1
        assert worker.service.returncode is None


def test_tokens_that_expire_and_a_server_that_is_killed_cost_nobody_a_run(
    start_prefect_server: Callable[..., AbstractContextManager[PrefectServer]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with start_prefect_server(**CSRF) as server, outage_proxy(server.api_url) as proxy:
        with server.api() as api:
            project = Project(api=api, pool=api.create_pool(), out=out)
            deployment = project.deploy()
        with proxied_daemon(server, tmp_path, pool=project.pool, proxy=proxy) as worker:
            worker.wait_started()
            tokens_are_renewed(server, project, deployment, proxy, worker)
            the_server_is_killed(server, project, deployment, worker)


def tokens_are_renewed(
    server: PrefectServer, project: Project, deployment: str, proxy: OutageProxy, worker: Worker
) -> None:
    with server.api() as api:
        gate = project.gate()
        command = job(project, server.api_url, "complete", gate)
        first = api.create_flow_run(deployment, job_variables=command)
        api.wait_for_state(first, "RUNNING")
        fetched = len(proxy.requests(path="/csrf-token"))
        wait_for(
            lambda: len(proxy.requests(path="/csrf-token")) >= fetched + 3,
            timeout=120,
            description="three more CSRF tokens",
        )
        gate.touch()
        api.wait_for_state(first, "COMPLETED")
    with server.api() as api:
        second = api.create_flow_run(deployment, job_variables=job(project, server.api_url, "die"))
        assert api.wait_for_final(second)["state_type"] == "CRASHED"
    for run_id in (first, second):
        worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
        assert facts(project, run_id) == ["start", "end"]
    assert alarms(worker) == ["flow_run.reported"]


def the_server_is_killed(server: PrefectServer, project: Project, deployment: str, worker: Worker) -> None:
    gate = project.gate()
    with server.api() as api:
        running, dying = (
            api.create_flow_run(deployment, job_variables=job(project, server.api_url, ending, gate))
            for ending in ("complete", "die")
        )
        for run_id in (running, dying):
            api.wait_for_state(run_id, "RUNNING")
            worker.wait_for_event("flow_run.launched", flow_run_id=run_id)
    with server.api() as api:
        # Later than the daemon looks ahead, so that it is claimed after the restart, or just before.
        due = datetime.now(UTC) + timedelta(seconds=15)
        coming = api.create_flow_run(
            deployment,
            state={"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}},
            job_variables=job(project, server.api_url, "complete"),
        )
    before = len(told(worker))
    server.service.signal(signal.SIGKILL)
    server.service.wait_exit()
    gate.touch()
    wait_for(lambda: told(worker)[before:] == ["api.unreachable"], description="the warning")
    worker.wait_for_event("flow_run.exited", flow_run_id=dying)
    assert facts(project, running) == ["start"]
    with (
        running_server(server.home, mark=server.mark, port=server.port, settings=CSRF) as again,
        again.api() as api,
    ):
        wait_for(lambda: told(worker)[before : before + 2] == list(TOLD), description="the recovery")
        for run_id, wanted in ((running, "COMPLETED"), (dying, "CRASHED"), (coming, "COMPLETED")):
            api.wait_for_state(run_id, wanted)
            worker.wait_for_event("flow_run.reported", flow_run_id=run_id)
            assert facts(project, run_id) == ["start", "end"]
            assert api.state_names(run_id).count("Pending") == 1
        assert set(alarms(worker)) == {"flow_run.reported", "api.unreachable"}
        assert worker.service.returncode is None
        assert worker.stop() == 0


def asked(proxy: OutageProxy, path: str = "/health") -> httpx.Response:
    return httpx.get(f"{proxy.api_url}{path}", timeout=2, trust_env=False)


@pytest.mark.parametrize(
    ("mode", "status", "error"),
    [
        (Mode.REFUSE, None, httpx.ConnectError),
        (Mode.HANG, None, httpx.ReadTimeout),
        (Mode.STATUS_500, 500, None),
        (Mode.STATUS_502, 502, None),
        (Mode.STATUS_503, 503, None),
        (Mode.THROTTLE_SECONDS, 429, None),
        (Mode.THROTTLE_DATE, 429, None),
        (Mode.CUT_BODY, None, httpx.TransportError),
        (Mode.LOST_ANSWER, None, httpx.TransportError),
        (Mode.SLOW, 200, None),
    ],
)
def test_the_proxy_does_as_it_is_told(
    proxy: OutageProxy, mode: Mode, status: int | None, error: type[Exception] | None
) -> None:
    assert asked(proxy).status_code == 200
    proxy.switch(mode)
    if error is not None:
        with pytest.raises(error):
            asked(proxy)
    else:
        answer = asked(proxy)
        assert answer.status_code == status
        assert ("Retry-After" in answer.headers) is (status == 429)
    assert len(proxy.requests(mode)) == (mode is not Mode.REFUSE)
    proxy.switch(mode, only="/elsewhere")
    if mode is not Mode.REFUSE:
        assert asked(proxy).status_code == 200
    proxy.switch(Mode.PASS)
    assert asked(proxy).status_code == 200


def test_a_lost_answer_is_one_to_a_request_that_was_carried_out(api: PrefectApi, proxy: OutageProxy) -> None:
    proxy.switch(Mode.LOST_ANSWER)
    name = f"variable_{proxy.api_url.rpartition(':')[2].removesuffix('/api')}"
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{proxy.api_url}/variables/", json={"name": name, "value": 1}, trust_env=False)
    assert api.get(f"/variables/name/{name}")["value"] == 1


def test_websockets_pass_are_cut_and_are_refused(proxy: OutageProxy) -> None:
    address = proxy.api_url.replace("http:", "ws:") + "/events/in"
    with connect(address, proxy=None) as through:
        through.ping()
        proxy.switch(Mode.NO_WEBSOCKET)
        with pytest.raises(ConnectionClosed):
            through.recv(timeout=30)
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, proxy=None)
    assert asked(proxy).status_code == 200
    assert [request.upgrades for request in proxy.requests(Mode.NO_WEBSOCKET)] == [True, False]
