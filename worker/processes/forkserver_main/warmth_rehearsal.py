"""What each run does first, done before the fork, on nothing: so that no run has to be the first.

Libraries put off to their first use what they may never need: regular expressions are compiled, parametrised models are
made, and the interpreter specialises code that has run a few times. A forked process that finds this done begins sooner.

Owns: the steps, and that nothing remains of them but this. Does not own: what an engine does (each step stands by itself; one
that another version of Prefect has no place for is left out, and told), and what the clients of the steps are answered
(`warmth_answers`).

Nothing is sent, started or configured: clients talk to a server in memory, lines of a log are rendered into memory, and the
event loop belongs to a step alone. Tasks are named, as those without a name are numbered, and a flow's begin with one.
"""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import ssl
import uuid
import warnings
from contextlib import contextmanager

from warmth_answers import ID, AsyncNetwork, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

# Code is specialised when it has run a few times (PEP 659); the first round costs as much as the others together.
ROUNDS = 8
_API = "http://rehearsal.invalid/api"


def rehearse(rounds: int = ROUNDS) -> tuple[list[str], list[object]]:
    """Go through all steps. Returns a sentence for each that failed, and what has to be held so that it is not made again."""
    failed: dict[str, str] = {}
    kept: list[object] = []
    with _quiet():
        for _ in range(rounds):
            for step in STEPS:
                if step.__name__ not in failed:
                    try:
                        kept.append(step())
                    except Exception as error:  # noqa: BLE001 - of whatever version of Prefect; the caller says it
                        failed[step.__name__] = f"{step.__name__}: {type(error).__name__}: {error}"
    return list(failed.values()), kept


@contextmanager
def _quiet() -> Generator[None]:
    """Nothing is logged, as a handler of the user's may send it anywhere, or warned of: that is said once, to the flow."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def read_and_propose() -> object:
    """The requests of a run's main thread. Returns the models that pydantic makes for them, and keeps only while used."""
    states: Any = _imported("prefect.states")
    responses: Any = _imported("prefect.client.schemas.responses")
    propose = _imported("prefect.utilities.engine").propose_state_sync
    run = uuid.UUID(ID)
    client = _imported("prefect.client.orchestration").SyncPrefectClient(_API, httpx_settings=_offline())
    try:
        flow_run = client.read_flow_run(run)
        client.update_flow_run(run, flow_version="1", empirical_policy=flow_run.empirical_policy)
        propose(client, states.Running(), flow_run_id=run)
        propose(client, states.Completed(message="done"), flow_run_id=run)
    finally:
        client._client.close()  # noqa: SLF001 - entering the client, which closes it, would do more
    return responses.OrchestrationResult[_imported("typing").Any]


def load() -> None:
    """What comes before a flow's file is loaded: its deployment, and the placeholders of a pull step."""
    core: Any = _imported("prefect.deployments.steps.core")
    templating: Any = _imported("prefect.utilities.templating")
    run = uuid.UUID(ID)

    async def main() -> None:
        settings = _offline(asynchronous=True)
        client = _imported("prefect.client.orchestration").PrefectClient(_API, httpx_settings=settings)
        try:
            deployment = await client.read_deployment(run)
            await client.read_flow_run(run)
            for step in deployment.pull_steps:
                name, inputs = core._get_step_fully_qualified_name_and_inputs(step)  # noqa: SLF001 - as a run does
                inputs = templating.apply_values(inputs, {})
                inputs = await templating.resolve_block_document_references(inputs, client=client)
                await templating.resolve_variables(inputs, client=client)
                core._get_function_for_step(name)  # noqa: SLF001 - same
        finally:
            await client._client.aclose()  # noqa: SLF001 - as above

    _run(main)


def validate() -> None:
    """What is derived from a function when it becomes a flow, and when its parameters are checked."""
    callables: Any = _imported("prefect.utilities.callables")
    validation: Any = _imported("prefect._internal.pydantic.validated_func")

    def function(name: str = "value", number: int = 1) -> None:
        del name, number

    inspect.signature(function)
    callables.parameter_schema(function)
    callables.get_call_parameters(function, (), {"number": 2})
    validated = validation.ValidatedFunction(function, config={"arbitrary_types_allowed": True})
    validated.validate_call_args((), {"number": 2})


def log() -> None:
    """A line of the run's log, on the console and as it is sent."""
    handlers: Any = _imported("prefect.logging.handlers")
    configured: Any = _imported("prefect.logging.configuration").PROCESS_LOGGING_CONFIG
    text = "Beginning flow run %r for flow 'flow', in /tmp at http://127.0.0.1:4200/runs/flow-run/%s"
    record = logging.LogRecord("prefect.flow_runs", logging.INFO, __file__, 1, text, ("run", ID), None)
    vars(record).update(flow_run_name="run", flow_name="flow", flow_run_id=ID)
    handlers.APILogHandler().prepare(record)
    console = configured.get("handlers", {}).get("console", {})
    handler = handlers.PrefectConsoleHandler(stream=io.StringIO(), styles=console.get("styles"))
    formatters = [it.formatter for it in logging.getLogger("prefect").handlers if it.formatter is not None]
    handler.setFormatter(formatters[0] if formatters else logging.Formatter("%(asctime)s | %(message)s"))
    handler.emit(record)


def tell() -> None:
    """An event as it is sent, and the filter of those that are listened to."""
    events: Any = _imported("prefect.events")
    observers: Any = _imported("prefect._internal.observers")
    event = events.Event(
        event="prefect.flow-run.pull-step.executed",
        resource=events.Resource({"prefect.resource.id": f"prefect.flow-run.{ID}"}),
        related=[
            events.RelatedResource(
                {
                    "prefect.resource.id": f"prefect.deployment.{ID}",
                    "prefect.resource.role": "deployment",
                }
            )
        ],
        payload={"index": 0},
    )
    event.model_dump_json()
    observer = observers.FlowRunSuspendingObserver(on_suspended=print)
    observer._event_filter.model_dump(mode="json")  # noqa: SLF001 - as it does itself


def converse() -> None:
    """A websocket's opening, and a frame each way; websockets' protocol does no input or output itself."""
    extensions: Any = _imported("websockets.extensions.permessage_deflate")
    uri = _imported("websockets.uri").parse_uri("ws://rehearsal.invalid/api/events/in")
    deflate = extensions.ClientPerMessageDeflateFactory(compress_settings={"memLevel": 5})
    protocol: Any = _imported("websockets.client").ClientProtocol
    client = protocol(uri, extensions=[deflate], subprotocols=["prefect"])
    client.send_request(client.connect())
    client.receive_data(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: prefect\r\n"
        b"Sec-WebSocket-Accept: "
        + _imported("websockets.utils").accept_key(client.key).encode()
        + b"\r\n\r\n"
    )
    client.send_text(b'{"type": "auth", "token": null}')
    client.send_ping(b"ping")
    client.data_to_send()
    client.receive_data(b"\x81\x02{}" + b"\x8a\x04ping")  # RFC 6455, 5.2: a text, and a pong
    if client.handshake_exc is not None:
        raise client.handshake_exc
    client.events_received()


STEPS: tuple[Callable[[], object], ...] = (read_and_propose, load, validate, log, tell, converse)


def _imported(name: str) -> Any:
    return importlib.import_module(name)


def _run(main: Callable[[], Any]) -> None:
    """Run it on a loop of its own, of which nothing can be seen afterwards: no policy is made or asked."""
    asyncio: Any = _imported("asyncio")

    def task(loop: Any, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **{**options, "name": "rehearsal"})

    loop = asyncio.SelectorEventLoop()
    try:
        loop.set_task_factory(task)
        loop.run_until_complete(main())
    finally:
        loop.close()


def _offline(*, asynchronous: bool = False) -> dict[str, Any]:
    """Settings of a client whose requests go through httpx, httpcore and h11, to a server in memory."""
    httpx: Any = _imported("httpx")
    httpcore: Any = _imported("httpcore")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is asked for nothing
    if asynchronous:
        transport = httpx.AsyncHTTPTransport(verify=context)
        transport._pool = httpcore.AsyncConnectionPool(network_backend=AsyncNetwork())  # noqa: SLF001 - httpx has no other seam
    else:
        transport = httpx.HTTPTransport(verify=context)
        transport._pool = httpcore.ConnectionPool(network_backend=Network())  # noqa: SLF001 - same
    return {"verify": context, "transport": transport, "trust_env": False}
