"""Block documents and Prefect variables that a populated configuration refers to.

Owns what a reference looks like, what part of a document it means and what replaces it. It
deliberately does not fetch: `References` is implemented over the API elsewhere and over a file by
`worker.explain`. Source of every rule: PROTOCOL 3.3.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

from worker.runs.job_variables_error import build_error, json_type
from worker.runs.placeholders import (
    BLOCK_PREFIX,
    MISSING,
    VARIABLE_PREFIX,
    Filling,
    Kind,
    Path,
    Placeholder,
    Record,
    find,
    is_list,
    is_object,
    lookup,
    whole,
)


class ReferenceNotFound(Exception):
    """The server (or the file) has no such block document or variable."""


class References(Protocol):
    """Reads what configurations refer to; raises ReferenceNotFound when it does not exist.

    Every other failure (no connection, no permission) is the implementation's own error and passes
    through the resolver untouched.
    """

    async def block_document(self, *, type_slug: str, name: str) -> dict[str, Any]:
        """Give the data of the named document, secrets included."""
        ...

    async def block_document_by_id(self, document_id: str) -> dict[str, Any]:
        """Give the data of the document with this id, secrets included."""
        ...

    async def variable(self, name: str) -> Any:
        """Give the value of the Prefect variable, which may be null."""
        ...


class BlockPass:
    """Replaces block references in one configuration; made for one build, reads each document once."""

    def __init__(self, *, references: References, record: Record) -> None:
        self._references = references
        self._record = record
        self._by_name: dict[tuple[str, str], dict[str, Any]] = {}
        self._by_id: dict[str, dict[str, Any]] = {}

    async def resolve(self, template: Any, path: Path = ()) -> Any:
        """Give `template` with its references replaced; a replacement is not searched again."""
        if is_object(template):
            document_id = _document_id(template, path)
            if document_id:
                data = await self._document_by_id(document_id, path)
                self._record(path, Filling(Kind.BLOCK, str(document_id), found=True, whole=True))
                return deepcopy(data)
            return {key: await self.resolve(value, (*path, key)) for key, value in template.items()}
        if is_list(template):
            return [await self.resolve(value, (*path, str(i))) for i, value in enumerate(template)]
        if isinstance(template, str):
            return await self._resolve_text(template, path)
        return template

    async def _resolve_text(self, text: str, path: Path) -> Any:
        found = find(text)
        if (only := whole(text, found, Kind.BLOCK)) is not None:
            return await self._value(only, path, whole=True)
        for placeholder in found:
            if placeholder.kind is not Kind.BLOCK:
                continue
            value = await self._value(placeholder, path, whole=False)
            if isinstance(value, (dict, list)):
                raise build_error(
                    "ValueError",
                    f"{place(path)}: {placeholder.text} stands inside a longer text, where its value"
                    f" (of type {json_type(value)}) has no place; name one of its fields",
                )
            text = text.replace(placeholder.text, str(value))
        return text

    async def _value(self, placeholder: Placeholder, path: Path, *, whole: bool) -> Any:
        parts = placeholder.name.replace(BLOCK_PREFIX, "").split(".", 2)
        if len(parts) < 2:  # noqa: PLR2004 - type and name
            raise build_error(
                "ValueError",
                f"{place(path)}: {placeholder.text} names no block document;"
                " write prefect.blocks.<type slug>.<document name>",
            )
        type_slug, name, *keypath = parts
        data: Any = await self._document(type_slug, name, path)
        self._record(path, Filling(Kind.BLOCK, f"{type_slug}/{name}", found=True, whole=whole))
        if len(data) == 1 and "value" in data and not (keypath and _starts_at_value(keypath[0])):
            data = data["value"]
        if keypath:
            data = lookup(data, keypath[0])
            if data is MISSING:
                raise build_error(
                    "ValueError",
                    f"{place(path)}: block {type_slug}/{name} has nothing at the path of {placeholder.text}",
                )
        return deepcopy(data)

    async def _document(self, type_slug: str, name: str, path: Path) -> dict[str, Any]:
        key = (type_slug, name)
        if key not in self._by_name:
            try:
                self._by_name[key] = await self._references.block_document(type_slug=type_slug, name=name)
            except ReferenceNotFound as error:
                raise build_error(
                    "ObjectNotFound",
                    f"{place(path)}: there is no block {name!r} of type {type_slug!r};"
                    " create it or correct the reference",
                ) from error
        return self._by_name[key]

    async def _document_by_id(self, document_id: Any, path: Path) -> dict[str, Any]:
        if isinstance(document_id, (dict, list)):
            raise build_error(
                "TypeError",
                f"{place(path)}: the block_document_id of a $ref must be a string,"
                f" got {json_type(document_id)}",
            )
        key = str(document_id)
        if key not in self._by_id:
            try:
                self._by_id[key] = await self._references.block_document_by_id(key)
            except ReferenceNotFound as error:
                raise build_error(
                    "ObjectNotFound",
                    f"{place(path)}: there is no block document with id {key!r};"
                    " create it or correct the $ref",
                ) from error
        return self._by_id[key]


class VariablePass:
    """Replaces Prefect variables in one configuration; made for one build, reads each once."""

    def __init__(self, *, references: References, record: Record) -> None:
        self._references = references
        self._record = record
        self._values: dict[str, Any] = {}

    async def resolve(self, template: Any, path: Path = ()) -> Any:
        """Give `template` with its variables replaced; an unknown one becomes empty text."""
        if is_object(template):
            return {key: await self.resolve(value, (*path, key)) for key, value in template.items()}
        if is_list(template):
            return [await self.resolve(value, (*path, str(i))) for i, value in enumerate(template)]
        if isinstance(template, str):
            return await self._resolve_text(template, path)
        return template

    async def _resolve_text(self, text: str, path: Path) -> Any:
        found = find(text)
        if (only := whole(text, found, Kind.VARIABLE)) is not None:
            value = await self._value(only, path, whole=True)
            return "" if value is MISSING else deepcopy(value)
        for placeholder in found:
            if placeholder.kind is Kind.VARIABLE:
                value = await self._value(placeholder, path, whole=False)
                text = text.replace(placeholder.text, "" if value is MISSING else str(value))
        return text

    async def _value(self, placeholder: Placeholder, path: Path, *, whole: bool) -> Any:
        name = placeholder.name.replace(VARIABLE_PREFIX, "")
        if name not in self._values:
            try:
                self._values[name] = await self._references.variable(name)
            except ReferenceNotFound:
                self._values[name] = MISSING
        value = self._values[name]
        self._record(path, Filling(Kind.VARIABLE, name, found=value is not MISSING, whole=whole))
        return value


def place(path: Path) -> str:
    """Name a place of the configuration for a message."""
    return ".".join(str(segment) for segment in path) or "job_configuration"


def _document_id(template: dict[str, Any], path: Path) -> Any:
    """Give the id that `{"$ref": {"block_document_id": id}}` names, if the object is such a reference."""
    if "$ref" not in template:
        return None
    reference = template["$ref"]
    if not is_object(reference):
        raise build_error(
            "AttributeError",
            f"{place((*path, '$ref'))} must be an object with a block_document_id,"
            f" got {json_type(reference)}; the name $ref is reserved",
        )
    return reference.get("block_document_id")


def _starts_at_value(keypath: str) -> bool:
    return keypath == "value" or keypath.startswith(("value.", "value["))
