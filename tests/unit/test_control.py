"""The words of the control channel: what is a receipt and what is not, and what the parent's side says without a child."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.processes.control import ControlChannel
from worker.processes.control_messages import Disposition, Intent, IntentResult, Receipt, decode_receipt

pytestmark = pytest.mark.anyio

STATE_ID = "5d8f2e9c-30cb-4a6b-8a3b-2a1c4b6d7e8f"
REPORTED = {
    "disposition": "STATE_REPORTED",
    "state_id": STATE_ID,
    "state_name": "Completed",
    "state_type": "COMPLETED",
}


@pytest.mark.parametrize(
    ("payload", "receipt"),
    [
        (REPORTED, Receipt(Disposition.STATE_REPORTED, UUID(STATE_ID), "Completed", "COMPLETED")),
        ({"disposition": "ORCHESTRATION_ABORTED"}, Receipt(Disposition.ORCHESTRATION_ABORTED)),
        (
            REPORTED | {"a_later_prefect": [1]},
            Receipt(Disposition.STATE_REPORTED, UUID(STATE_ID), "Completed", "COMPLETED"),
        ),
        (REPORTED | {"state_name": ""}, Receipt(Disposition.STATE_REPORTED, UUID(STATE_ID), "", "COMPLETED")),
    ],
)
def test_receipts(payload: dict[str, Any], receipt: Receipt) -> None:
    assert decode_receipt(json.dumps(payload).encode()) == receipt


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 4096,
        b'{"disposition":"ELSE"}',
        b'{"disposition":["STATE_REPORTED"]}',
        b'{"disposition":"STATE_REPORTED"}',
        json.dumps(REPORTED | {"state_id": "no uuid"}).encode(),
        json.dumps(REPORTED | {"state_id": 7}).encode(),
        json.dumps(REPORTED | {"state_type": ""}).encode(),
        json.dumps(REPORTED | {"state_type": "X" * 65}).encode(),
        json.dumps(REPORTED | {"state_name": None}).encode(),
    ],
)
def test_what_is_no_receipt(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_receipt(payload)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_receipt(payload)


def test_intents_on_the_wire() -> None:
    assert {intent: intent.byte for intent in Intent} == {
        Intent.CANCEL: b"c",
        Intent.RESCHEDULE: b"r",
        Intent.RELINQUISH: b"q",
    }


def test_tokens_are_32_hexadecimal_digits_and_never_the_same() -> None:
    channel = ControlChannel()
    tokens = {channel.register("run") for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)


def test_without_a_listener_there_is_no_port() -> None:
    with pytest.raises(RuntimeError, match="serve"):
        _ = ControlChannel().port


async def test_a_child_that_never_connected() -> None:
    channel = ControlChannel()
    token = channel.register("run")
    assert await channel.send_intent(token, Intent.CANCEL) is IntentResult.NOT_CONNECTED
    assert channel.receipt(token) is None
    assert await channel.finish(token) is None
    channel.unregister(token)


async def test_a_token_nobody_registered() -> None:
    channel = ControlChannel()
    assert await channel.send_intent("f" * 32, Intent.CANCEL) is IntentResult.NOT_CONNECTED
    assert await channel.wait_concluded("f" * 32) is None
    assert await channel.finish("f" * 32) is None
