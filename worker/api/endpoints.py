"""What every endpoint is made of: send, page through, read the answer.

Owns the base class of the endpoints, which are grouped by noun in `*_endpoints.py` and put together in
`client.py`. It knows no path and no model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from worker.api.errors import NotAnApi
from worker.api.models import ServerModel, read_each
from worker.api.transport import Patience, Transport

M = TypeVar("M", bound=ServerModel)
Answered = TypeVar("Answered")


class Endpoints:
    """The calls over one transport; an answer that cannot be read is `NotAnApi`, an item of a list left out."""

    def __init__(self, *, transport: Transport, log: FilteringBoundLogger) -> None:
        self.transport = transport
        self._log = log

    @property
    def url(self) -> str:
        """The API's base URL, without credentials."""
        return self.transport.url

    async def _get(
        self, where: str, operation: str, patience: Patience, params: Mapping[str, str] | None = None
    ) -> Any:
        return await self.transport.request(
            "GET", where, operation=operation, params=params, patience=patience
        )

    async def _post(self, where: str, operation: str, body: Any, patience: Patience) -> Any:
        return await self.transport.request("POST", where, operation=operation, body=body, patience=patience)

    async def _patch(self, where: str, operation: str, body: Any, patience: Patience) -> None:
        await self.transport.request("PATCH", where, operation=operation, body=body, patience=patience)

    async def _pages(
        self,
        model: type[M],
        where: str,
        operation: str,
        body: Mapping[str, Any],
        patience: Patience,
        *,
        most: int | None = None,
    ) -> list[M]:
        """All pages; their size is the server's own limit, which only it knows. `most`: there cannot be more items."""
        items: dict[Any, Any] = {}
        offset = 0
        while True:
            answer = await self._post(where, operation, {**body, "offset": offset}, patience)
            page = self._list(answer, operation)
            items |= {_identity(item, offset + n): item for n, item in enumerate(page)}
            if not page or (most is not None and len(items) >= most):
                return self._read_each(model, list(items.values()), operation)
            offset += len(page)

    def _read(self, model: type[M], data: Any, operation: str) -> M:
        return self._checked(lambda: model.read(data), operation)

    def _checked(self, read: Callable[[], Answered], operation: str) -> Answered:
        try:
            return read()
        except ValidationError as error:
            raise NotAnApi(operation, f"{self.url} answers in an unknown form: {error}") from None

    def _read_each(self, model: type[M], items: Sequence[Any], operation: str) -> list[M]:
        def skipped(identity: str, error: ValidationError) -> None:
            self._log.warning("api.item_unreadable", operation=operation, id=identity, reason=str(error))

        return read_each(model, items, skipped)

    def _list(self, answer: Any, operation: str) -> list[Any]:
        if isinstance(answer, list):
            return cast("list[Any]", answer)
        raise NotAnApi(operation, f"{self.url} answers in an unknown form: not a list")

    def _object(self, answer: Any, operation: str) -> dict[str, Any]:
        if isinstance(answer, dict):
            return cast("dict[str, Any]", answer)
        raise NotAnApi(operation, f"{self.url} answers in an unknown form: not an object")


def _identity(item: Any, position: int) -> Any:
    """What makes an item one of a page; one without an id is its position."""
    return cast("dict[str, Any]", item).get("id", position) if isinstance(item, dict) else position
