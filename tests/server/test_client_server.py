"""The client against the real server, and over real sockets where only those misbehave in the right way."""

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.api import PrefectApi
from tests.support.fake_prefect import CutMidBody, Hang, Reply, Reset, Step, api_settings, serving
from tests.support.server import PrefectServer, free_port
from tests.support.wait import wait_until
from worker.api.client import PrefectClient
from worker.api.errors import (
    Conflict,
    InvalidRequest,
    NotAnApi,
    NotFound,
    ServerFault,
    Unauthorized,
    Unreachable,
)
from worker.api.models import SetStateStatus, StateType
from worker.api.records import LogRecord, WorkerEvent

pytestmark = pytest.mark.anyio

StartServer = Callable[..., AbstractContextManager[PrefectServer]]

WEIRD = "pool #1? +é"  # all that a pool name may hold and a path may not
TEMPLATE: dict[str, Any] = {
    "job_configuration": {"command": "{{ command }}"},
    "variables": {"type": "object", "properties": {"command": {"type": "string"}}},
}


@asynccontextmanager
async def client_of(url: str, **settings: Any) -> AsyncGenerator[PrefectClient]:
    async with PrefectClient(
        settings=api_settings(url, **settings), worker_name="worker 1", random=lambda: 0.5
    ) as client:
        yield client


@pytest.fixture
async def client(prefect_server: PrefectServer) -> AsyncGenerator[PrefectClient]:
    async with client_of(prefect_server.api_url) as client:
        yield client


@pytest.fixture
def deployment(api: PrefectApi, pool: str) -> UUID:
    return UUID(
        api.create_deployment(pool=pool, entrypoint="flow.py:some_flow", job_variables={"env": {"A": "1"}})
    )


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=10)


def scheduled(api: PrefectApi, deployment: UUID, **fields: Any) -> UUID:
    return UUID(api.create_flow_run(str(deployment), **fields))


# work pools, queues, workers


async def test_a_pool_with_a_weird_name_from_birth_to_heartbeat(client: PrefectClient) -> None:
    name = f"{WEIRD} {uuid4().hex[:6]}"
    with pytest.raises(NotFound):
        await client.read_work_pool(name)
    created = await client.create_work_pool(name, "process", TEMPLATE)
    assert created.name == name
    with pytest.raises(Conflict, match="already exists"):
        await client.create_work_pool(name, "process", TEMPLATE)
    changed = {**TEMPLATE, "job_configuration": {"command": "echo"}}
    await client.update_work_pool(name, base_job_template=changed)
    assert await client.send_heartbeat(name, "worker 1", 30) is None
    pool = await client.read_work_pool(name)
    assert (pool.id, pool.type, pool.base_job_template, pool.status) == (
        created.id,
        "process",
        changed,
        "READY",
    )
    (queue,) = await client.filter_work_queues(name)
    assert (queue.id, queue.name) == (pool.default_queue_id, "default")
    assert await client.get_scheduled_flow_runs(name, ["default"], soon()) == []
    await client.delete_worker(name, "worker 1")
    await client.delete_worker(name, "worker 1")


async def test_an_empty_template_comes_back_empty(client: PrefectClient) -> None:
    pool = await client.create_work_pool(f"empty-{uuid4().hex[:6]}", "process", {})
    assert pool.base_job_template == {}


async def test_a_worker_is_shown_online_until_it_signs_off(
    client: PrefectClient, api: PrefectApi, pool: str
) -> None:
    await client.send_heartbeat(pool, "w/1 %", 30)
    assert [(worker["name"], worker["status"]) for worker in api.workers(pool)] == [("w/1 %", "ONLINE")]


async def test_a_reserved_name_and_a_bad_template_are_refused_in_the_servers_words(
    client: PrefectClient,
) -> None:
    await client.read_server_version()
    with pytest.raises(Unauthorized, match="reserved"):
        await client.create_work_pool("Prefect-mine", "process", TEMPLATE)
    bad = {**TEMPLATE, "job_configuration": {"command": "{{ undeclared }}"}}
    with pytest.raises(InvalidRequest, match=r"base_job_template: value_error"):
        await client.create_work_pool(f"bad-{uuid4().hex[:6]}", "process", bad)


async def test_queues(client: PrefectClient, api: PrefectApi, pool: str) -> None:
    api.create_queue(pool, "urgent #1", priority=1, concurrency_limit=3)
    (queue,) = await client.first_work_queues(pool, ["urgent #1", "nope"])
    assert (queue.priority, queue.concurrency_limit, queue.is_paused) == (1, 3, False)
    assert [queue.name for queue in await client.filter_work_queues(pool, ["urgent #1", "nope"])] == [
        "urgent #1"
    ]
    assert {queue.name for queue in await client.filter_work_queues(pool)} == {"urgent #1", "default"}
    with pytest.raises(NotFound):
        await client.first_work_queues("nope")
    with pytest.raises(NotFound, match="nope"):
        await client.get_scheduled_flow_runs(pool, ["default", "nope"], soon())


async def test_a_url_without_api_is_recognised(prefect_server: PrefectServer) -> None:
    async with client_of(prefect_server.api_url.removesuffix("/api")) as client:
        with pytest.raises(NotAnApi, match=r"does it end with /api\?"):
            await client.read_work_pool("any")


# finding, claiming and settling runs


async def test_due_runs_are_found_with_all_that_a_worker_needs(
    client: PrefectClient, api: PrefectApi, pool: str, deployment: UUID
) -> None:
    run_id = scheduled(api, deployment, job_variables={"env": {"B": "2"}})
    later = (soon() + timedelta(hours=1)).isoformat()
    scheduled(api, deployment, state={"type": "SCHEDULED", "state_details": {"scheduled_time": later}})
    (run,) = await client.get_scheduled_flow_runs(pool, [], soon(), limit=5)
    assert run.id == run_id
    assert (run.state_type, run.deployment_id, run.state) == (StateType.SCHEDULED, deployment, None)
    assert run.job_variables == {"env": {"B": "2"}}
    assert run.next_scheduled_start_time is not None
    assert await client.get_scheduled_flow_runs(pool, [], soon(), limit=0) == []
    full = await client.read_flow_run(run_id)
    assert full.state is not None
    assert (full.work_pool_name, full.state.type, full.name) == (pool, StateType.SCHEDULED, run.name)


async def test_of_eight_claims_at_once_one_wins(
    prefect_server: PrefectServer, client: PrefectClient, api: PrefectApi, deployment: UUID
) -> None:
    run_id = scheduled(api, deployment)
    claims: dict[UUID, bool] = {}

    async def claim() -> None:
        mine = uuid4()
        async with client_of(prefect_server.api_url) as own:
            answer = await own.set_state(run_id, type=StateType.PENDING, name="Pending", transition_id=mine)
        claims[mine] = answer.accepted

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(claim)
    (winner,) = [mine for mine, accepted in claims.items() if accepted]
    assert len(claims) == 8
    run = await client.read_flow_run(run_id)
    assert run.state is not None
    assert run.state.state_details.transition_id == winner


async def test_a_claim_whose_answer_was_lost_is_still_ours(
    client: PrefectClient, api: PrefectApi, deployment: UUID
) -> None:
    run_id, mine = scheduled(api, deployment), uuid4()
    for status in (SetStateStatus.ACCEPT, SetStateStatus.REJECT):
        answer = await client.set_state(run_id, type=StateType.PENDING, name="Pending", transition_id=mine)
        assert (answer.status, answer.accepted) == (status, True)
    other = await client.set_state(run_id, type=StateType.PENDING, name="Pending")
    assert (other.status, other.accepted) == (SetStateStatus.ABORT, False)
    assert other.reason
    assert other.state is not None
    assert other.state.state_details.transition_id == mine


async def test_giving_back_crashing_and_overwriting(
    client: PrefectClient, api: PrefectApi, deployment: UUID
) -> None:
    run_id = scheduled(api, deployment)
    await client.set_state(run_id, type=StateType.PENDING, name="Pending")
    due = datetime.now(UTC).replace(microsecond=0)
    back = await client.set_state(run_id, type=StateType.SCHEDULED, scheduled_time=due)
    assert back.accepted
    assert back.state is not None
    assert back.state.state_details.scheduled_time == due
    crashed = await client.set_state(run_id, type=StateType.CRASHED, message="exit \x00 code 1 \udcff")
    assert crashed.accepted
    assert crashed.state is not None
    assert crashed.state.message == "exit  code 1 ?"
    refused = await client.set_state(run_id, type=StateType.CANCELLING)
    assert (refused.status, refused.accepted) == (SetStateStatus.ABORT, False)
    assert (await client.set_state(run_id, type=StateType.CANCELLED, force=True)).accepted
    with pytest.raises(NotFound):
        await client.set_state(uuid4(), type=StateType.CRASHED)


async def test_runs_to_cancel_and_runs_of_the_pool(
    client: PrefectClient, api: PrefectApi, pool: str, deployment: UUID
) -> None:
    pending, cancelling, named = (scheduled(api, deployment) for _ in range(3))
    for run_id in (pending, cancelling, named):
        await client.set_state(run_id, type=StateType.PENDING, name="Pending")
    await client.set_state(cancelling, type=StateType.CANCELLING)
    await client.set_state(named, type=StateType.CANCELLED, name="Cancelling")
    found = await client.flow_runs_ending([pending, cancelling, named, uuid4()])
    assert {run.id for run in found} == {cancelling, named}
    types = [StateType.PENDING, StateType.CANCELLING]
    assert {run.id for run in await client.flow_runs_in_pool(pool, types)} == {pending, cancelling}
    assert {run.id for run in await client.flow_runs_in_pool(pool, types, ["default"])} == {
        pending,
        cancelling,
    }
    assert await client.flow_runs_in_pool(pool, types, ["nope"]) == []


async def test_pid_and_labels(client: PrefectClient, api: PrefectApi, deployment: UUID) -> None:
    run_id = scheduled(api, deployment)
    await client.update_flow_run(run_id, infrastructure_pid="host:1")
    assert await client.update_flow_run_labels(
        run_id, {"prefect.worker.name": "w", "n": 1, "f": 1.5, "t": True}
    )
    run = await client.read_flow_run(run_id)
    assert run.infrastructure_pid == "host:1"
    assert {key: run.labels[key] for key in ("prefect.worker.name", "n", "f", "t")} == {
        "prefect.worker.name": "w",
        "n": 1,
        "f": 1.5,
        "t": True,
    }
    await client.update_flow_run(run_id, infrastructure_pid=None)
    assert (await client.read_flow_run(run_id)).infrastructure_pid is None
    with pytest.raises(NotFound, match="not found"):
        await client.update_flow_run_labels(uuid4(), {"a": "b"})


# what a run is made of


async def test_deployment_and_flow(client: PrefectClient, pool: str, deployment: UUID) -> None:
    found = await client.read_deployment(deployment)
    assert (found.entrypoint, found.work_pool_name) == ("flow.py:some_flow", pool)
    assert found.job_variables == {"env": {"A": "1"}}
    assert found.updated is not None
    assert found.flow_id is not None
    assert (await client.read_flow(found.flow_id)).name == "some-flow"
    with pytest.raises(NotFound, match="Deployment not found"):
        await client.read_deployment(uuid4())


async def test_blocks_with_their_secrets_and_variables(client: PrefectClient, api: PrefectApi) -> None:
    name = f"secret-{uuid4().hex[:6]}"
    block_id = UUID(api.create_secret(name, "hush"))
    assert (await client.read_block_document(block_id))["data"] == {"value": "hush"}
    assert (await client.read_block_document_by_name("secret", name))["data"] == {"value": "hush"}
    for slug, missing in (("secret", "nope"), ("nope", name)):
        with pytest.raises(NotFound):
            await client.read_block_document_by_name(slug, missing)
    variable = f"variable_{uuid4().hex[:6]}"
    api.create_variable(variable, {"a": [1, None]})
    assert await client.read_variable(variable) == {"a": [1, None]}
    with pytest.raises(NotFound):
        await client.read_variable("nope")


# logs, events, version


async def test_logs_arrive_even_when_they_are_odd(
    client: PrefectClient, api: PrefectApi, deployment: UUID
) -> None:
    run_id = scheduled(api, deployment)
    messages = ["plain", "Grüße\n", "not \udcff utf-8", "nul \x00 byte"]
    now = datetime.now(UTC)
    records = [
        LogRecord(
            name="prefect.flow_runs.worker",
            level=20,
            message=message,
            timestamp=now + timedelta(milliseconds=n),
            flow_run_id=run_id,
        )
        for n, message in enumerate(messages)
    ]
    await client.create_logs(records)
    assert api.log_messages(str(run_id)) == ["plain", "Grüße\n", "not ? utf-8", "nul  byte"]


async def test_events_are_emitted_and_found(client: PrefectClient) -> None:
    resource = f"prefect.worker.process.{uuid4().hex[:6]}"
    first, second = (
        WorkerEvent(
            id=uuid4(),
            occurred=datetime.now(UTC),
            event="prefect.worker.started",
            resource={"prefect.resource.id": resource},
            related=[{"prefect.resource.id": "prefect.work-pool.x", "prefect.resource.role": "work-pool"}],
            payload={"n": n},
        )
        for n in range(2)
    )
    await client.create_events([first, second])

    async def persisted() -> bool:
        found = await client.filter_events({"any_resource": {"id": [resource]}}, 10)
        return {event.id for event in found} == {first.id, second.id}

    await wait_until(persisted, description="both events are persisted")
    (found,) = await client.filter_events({"id": {"id": [str(first.id)]}})
    assert (found.resource, found.payload) == ({"prefect.resource.id": resource}, {"n": 0})
    assert found.related[0]["prefect.resource.role"] == "work-pool"


async def test_the_servers_version(client: PrefectClient) -> None:
    version = await client.read_server_version()
    assert version is not None
    assert version.startswith("3.")


async def test_a_server_with_csrf_protection_and_basic_auth(start_prefect_server: StartServer) -> None:
    auth = "admin:pass:word"
    with start_prefect_server(
        PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true",
        PREFECT_SERVER_CSRF_TOKEN_EXPIRATION="PT2S",
        PREFECT_SERVER_API_AUTH_STRING=auth,
    ) as server:
        for wrong in (None, SecretStr("admin:wrong")):
            async with client_of(server.api_url, auth_string=wrong) as client:
                with pytest.raises(Unauthorized, match="PREFECT_API_AUTH_STRING"):
                    await client.read_work_pool("any")
                with pytest.raises(Unauthorized):
                    await client.create_work_pool("any", "process", TEMPLATE)
        async with client_of(server.api_url, auth_string=SecretStr(auth)) as client:
            pool = await client.create_work_pool("guarded", "process", TEMPLATE)
            async with anyio.create_task_group() as tasks:
                for n in range(8):
                    tasks.start_soon(client.send_heartbeat, "guarded", f"w{n}", 30)
            await anyio.sleep(2.5)  # the tokens' life; there is no other sign of its end
            async with anyio.create_task_group() as tasks:
                for n in range(8):
                    tasks.start_soon(client.send_heartbeat, "guarded", f"w{n}", 30)
            assert (await client.read_work_pool("guarded")).id == pool.id


# over real sockets, to a server that misbehaves


@asynccontextmanager
async def misbehaving(
    *steps: Step, **settings: Any
) -> AsyncGenerator[tuple[PrefectClient, Any, list[float]]]:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        await anyio.lowlevel.checkpoint()

    async with (
        serving(*steps) as fake,
        PrefectClient(
            settings=api_settings(fake.api_url, **settings), worker_name=None, random=lambda: 0.5, sleep=nap
        ) as client,
    ):
        yield client, fake, naps


VERSION = Reply(body="3.8.8")


async def test_the_client_waits_for_a_server_that_is_not_there_yet() -> None:
    port = free_port()
    answers: list[str | None] = []
    with capture_logs() as logs:
        async with client_of(f"http://127.0.0.1:{port}/api") as client, anyio.create_task_group() as tasks:

            async def ask() -> None:
                answers.append(await client.read_server_version())

            tasks.start_soon(ask)
            await wait_until(
                lambda: any(line["event"] == "api.unreachable" for line in logs), description="the warning"
            )
            async with serving(VERSION, port=port):
                await wait_until(lambda: answers, description="an answer")
    assert answers == ["3.8.8"]
    told = [(line["event"], line.get("reason")) for line in logs if line["log_level"] != "debug"]
    assert told == [("api.unreachable", "ConnectError: Connection refused"), ("api.recovered", None)]


@pytest.mark.parametrize("trouble", [CutMidBody(), Reset()], ids=repr)
async def test_a_broken_connection_is_tried_again_with_the_same_bytes(trouble: Step) -> None:
    async with misbehaving(trouble, trouble, Reply(status=204)) as (client, fake, naps):
        await client.update_flow_run(uuid4(), infrastructure_pid="1")
        assert len(naps) == 2
        assert len({(seen.method, seen.target, seen.body) for seen in fake.seen}) == 1
        assert len({seen.connection for seen in fake.seen}) == 3


async def test_a_connection_reset_after_a_500_costs_one_more_try() -> None:
    async with misbehaving(Reply(status=500, reset=True), VERSION) as (client, fake, _):
        assert await client.read_server_version() == "3.8.8"
        assert [seen.connection for seen in fake.seen] == [1, 2]


async def test_a_500_that_stays_is_a_fault_of_the_server() -> None:
    fault = Reply(status=500, body={"exception_message": "Internal"}, reset=True)
    async with misbehaving(*[fault] * 6, Reply()) as (client, _, _):
        with pytest.raises(ServerFault, match="Internal"):
            await client.read_server_version()


async def test_silence_is_a_timeout_and_tried_again() -> None:
    async with misbehaving(Hang(), VERSION, request_timeout=0.2) as (client, fake, naps):
        assert await client.read_server_version() == "3.8.8"
        assert len(fake.seen) == 2
        assert len(naps) == 1


async def test_silence_ends_at_the_deadline() -> None:
    async with misbehaving(Hang()) as (client, _, _):
        with pytest.raises(Unreachable):
            await client.read_server_version(deadline=anyio.current_time() + 0.2)


async def test_cancelling_gets_out_of_silence() -> None:
    async with misbehaving(Hang()) as (client, fake, _), anyio.create_task_group() as tasks:
        tasks.start_soon(client.read_server_version)
        await wait_until(lambda: fake.seen, description="the request")
        tasks.cancel_scope.cancel()


async def test_retry_after_in_both_forms_over_the_wire() -> None:
    date = (datetime.now(UTC) + timedelta(seconds=600)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    busy = (Reply(status=429, headers={"Retry-After": after}) for after in ("7", date))
    async with misbehaving(*busy, VERSION) as (client, _, naps):
        assert await client.read_server_version() == "3.8.8"
        assert naps[0] == 7
        assert 300 < naps[1] <= 600


@dataclass(frozen=True, slots=True)
class OwnAuthority:
    """A certificate for loopback that only those trust who are given `file`."""

    file: Path
    context: ssl.SSLContext


@pytest.fixture
def authority(tmp_path: Path) -> OwnAuthority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file, both = tmp_path / "ca.pem", tmp_path / "server.pem"
    public = certificate.public_bytes(serialization.Encoding.PEM)
    file.write_bytes(public)
    both.write_bytes(
        public
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return OwnAuthority(file, context)


@pytest.mark.parametrize("trusting", ["the file", "everybody"])
async def test_https_with_an_authority_of_ones_own(authority: OwnAuthority, trusting: str) -> None:
    settings = {
        "the file": {"ssl_cert_file": str(authority.file)},
        "everybody": {"tls_insecure_skip_verify": True},
    }[trusting]
    async with serving(VERSION, tls=authority.context) as fake, client_of(fake.api_url, **settings) as client:
        assert await client.read_server_version() == "3.8.8"


async def test_an_untrusted_certificate_is_told_with_its_fix_and_waited_out(authority: OwnAuthority) -> None:
    with capture_logs() as logs:
        async with serving(VERSION, tls=authority.context) as fake, client_of(fake.api_url) as client:
            with pytest.raises(Unreachable, match="certificate is not trusted"):
                await client.read_server_version(max_tries=4)
        assert fake.seen == []
    (told,) = [line for line in logs if line["log_level"] == "warning"]
    assert told["event"] == "api.unreachable"
    assert "PREFECT_API_SSL_CERT_FILE" in told["reason"]
    assert "the default certificate bundle" in told["reason"]


async def test_plain_http_spoken_to_as_https_is_told(authority: OwnAuthority) -> None:
    async with serving(VERSION) as fake, client_of(fake.api_url.replace("http:", "https:")) as client:
        with pytest.raises(Unreachable, match="does the server speak https"):
            await client.read_server_version(max_tries=1)


async def test_one_connection_serves_one_call_after_the_other() -> None:
    async with misbehaving(VERSION) as (client, fake, _):
        for _ in range(5):
            await client.read_server_version()
        assert {seen.connection for seen in fake.seen} == {1}
        assert fake.seen[0].headers["x-prefect-api-version"] == "0.8.4"
