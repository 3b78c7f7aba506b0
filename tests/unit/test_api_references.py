"""Reading blocks and variables: what is missing, and what must not be shown."""

from typing import Any
from uuid import uuid4

import pytest

from tests.support.canned import CannedServer
from worker.runs.api_references import ApiReferences, secret_values
from worker.runs.references import ReferenceNotFound

pytestmark = pytest.mark.anyio


def document(data: Any, *secret_fields: str) -> dict[str, Any]:
    return {"data": data, "block_schema": {"fields": {"secret_fields": list(secret_fields)}}}


@pytest.mark.parametrize(
    ("block", "secrets"),
    [
        (document({"value": "s3cr3t"}, "value"), ["s3cr3t"]),
        (document({"user": "u", "password": "p"}, "password"), ["p"]),
        (document({"auth": {"token": "t", "kind": "k"}}, "auth.token"), ["t"]),
        (document({"keys": {"a": "1st", "b": "2nd"}}, "keys.*"), ["1st", "2nd"]),
        (document({"value": {"a": ["x", {"b": "y"}], "n": 1}}, "value"), ["x", "y"]),
        (document({"value": "plain"}), []),
        (document({"other": 1}, "value", "a.b"), []),
        ({"data": {"value": "x"}}, []),
    ],
)
def test_what_the_schema_marks_as_secret(block: dict[str, Any], secrets: list[str]) -> None:
    assert list(secret_values(block)) == secrets


async def test_secrets_are_hidden_and_given() -> None:
    server = CannedServer()
    by_name = "/block_types/slug/secret/block_documents/name/tok"
    server.on("GET", by_name, document({"value": "s3cr3t"}, "value"))
    hidden: list[str] = []
    async with server.client() as client:
        references = ApiReferences(client=client, hide=hidden.append)
        assert await references.block_document(type_slug="secret", name="tok") == {"value": "s3cr3t"}
    assert hidden == ["s3cr3t"]


async def test_what_does_not_exist_is_said_so() -> None:
    server = CannedServer()
    missing = uuid4()
    server.on("GET", f"/block_documents/{missing}", {"detail": "Block document not found"}, status=404)
    server.on("GET", "/variables/name/nope", {"detail": "Variable not found."}, status=404)
    async with server.client() as client:
        references = ApiReferences(client=client, hide=lambda _: None)
        for call in (
            references.block_document_by_id(str(missing)),
            references.block_document_by_id("not-a-uuid"),
            references.variable("nope"),
        ):
            with pytest.raises(ReferenceNotFound):
                await call
