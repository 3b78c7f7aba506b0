"""Blocks and variables that job variables refer to, as the server has them.

Owns the reading and the hiding of secrets from logs. Where references stand and what they become is
`references`' business.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast
from uuid import UUID

from worker.api.client import PrefectClient
from worker.api.errors import NotFound
from worker.runs.references import ReferenceNotFound


class ApiReferences:
    """Reads for one resolution; `hide` is told each secret value before anybody else sees it."""

    def __init__(self, *, client: PrefectClient, hide: Callable[[str], None]) -> None:
        self._client = client
        self._hide = hide

    async def block_document(self, *, type_slug: str, name: str) -> dict[str, Any]:
        """The data of a block document, secrets in the clear; ReferenceNotFound if there is none."""
        try:
            document = await self._client.read_block_document_by_name(type_slug, name)
        except NotFound as error:
            raise ReferenceNotFound(str(error)) from error
        return self._data(document)

    async def block_document_by_id(self, document_id: str) -> dict[str, Any]:
        """The data of the block document with that id."""
        try:
            document = await self._client.read_block_document(UUID(document_id))
        except (NotFound, ValueError) as error:
            raise ReferenceNotFound(str(error)) from error
        return self._data(document)

    async def variable(self, name: str) -> Any:
        """The value of a workspace variable."""
        try:
            return await self._client.read_variable(name)
        except NotFound as error:
            raise ReferenceNotFound(str(error)) from error

    def _data(self, document: dict[str, Any]) -> dict[str, Any]:
        for secret in secret_values(document):
            self._hide(secret)
        return document.get("data") or {}


def secret_values(document: dict[str, Any]) -> Iterator[str]:
    """The texts in a block document that its schema marks as secret (`secret_fields`, dotted, `*` for any key)."""
    schema = cast("dict[str, Any]", document.get("block_schema") or {})
    fields = cast("dict[str, Any]", schema.get("fields") or {})
    paths = cast("list[Any]", fields.get("secret_fields") or [])
    for path in paths:
        yield from _texts(document.get("data"), str(path).split("."))


def _texts(value: Any, path: list[str]) -> Iterator[str]:
    if path and isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        keys = mapping if path[0] == "*" else [path[0]]
        for key in keys:
            yield from _texts(mapping.get(key), path[1:])
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        items = cast("dict[str, Any] | list[Any]", value)
        for item in items.values() if isinstance(items, dict) else items:
            yield from _texts(item, [])
