"""What parent and engine say to each other on the control channel (PROTOCOL 4.4): intents and receipts.

Owns: their values and their form on the wire. Does not own: connections and the order of things (`control`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

MAX_RECEIPT = 4096
_MAX_STATE_TYPE = 64


class Intent(StrEnum):
    """Why a run is about to be stopped."""

    CANCEL = "cancel"
    RESCHEDULE = "reschedule"
    RELINQUISH = "relinquish"

    @property
    def byte(self) -> bytes:
        """Its form on the wire."""
        match self:
            case Intent.CANCEL:
                return b"c"
            case Intent.RESCHEDULE:
                return b"r"
            case Intent.RELINQUISH:
                return b"q"


class IntentResult(StrEnum):
    """What became of an intent.

    ACKNOWLEDGED: the engine knows it and will act on it when SIGTERM comes. NOT_CONNECTED, NO_ACK: it will take SIGTERM
    for a crash. ALREADY_CONCLUDED: it has reported its end before, and is to be left alone.
    """

    ACKNOWLEDGED = "acknowledged"
    NOT_CONNECTED = "not_connected"
    NO_ACK = "no_ack"
    ALREADY_CONCLUDED = "already_concluded"


class Disposition(StrEnum):
    """What an engine says about its end."""

    STATE_REPORTED = "STATE_REPORTED"
    ORCHESTRATION_ABORTED = "ORCHESTRATION_ABORTED"


@dataclass(frozen=True, slots=True)
class Receipt:
    """An engine's word that its attempt is concluded. The state is set exactly for STATE_REPORTED."""

    disposition: Disposition
    state_id: UUID | None = None
    state_name: str | None = None
    state_type: str | None = None


def decode_receipt(payload: bytes) -> Receipt:
    """Raises ValueError with the reason when it is not a receipt. Fields unknown to us are ignored."""
    try:
        decoded: object = json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(decoded, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one error for all that can be wrong with it
    values = cast("dict[str, Any]", decoded)
    match values.get("disposition"):
        case Disposition.ORCHESTRATION_ABORTED:
            return Receipt(Disposition.ORCHESTRATION_ABORTED)
        case Disposition.STATE_REPORTED:
            pass
        case _:
            raise ValueError("unknown disposition")
    match values:
        case {"state_id": str() as state_id, "state_name": str() as name, "state_type": str() as state_type}:
            if not 0 < len(state_type) <= _MAX_STATE_TYPE:
                raise ValueError("state_type is empty or too long")
            return Receipt(Disposition.STATE_REPORTED, UUID(state_id), name, state_type)
        case _:
            raise ValueError("a state field is missing or is not a string")
