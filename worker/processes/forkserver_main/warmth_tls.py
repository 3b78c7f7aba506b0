"""TLS contexts made before the fork. Each is handed out once; no two clients of a process share one.

Owns: the stock and the places that take from it. Does not own what contexts are: they are what Prefect would have made at
that moment with the same arguments, or Prefect makes them.
"""

from __future__ import annotations

import importlib
import os
import ssl
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# They call `ssl.create_default_context(cafile=...)` for each client.
USERS = (
    "prefect.client.orchestration",
    "prefect._internal.version_checking",
    "prefect._internal.websockets",
)


class TlsStock:
    """So many contexts with the trust that Prefect's clients have by default."""

    def __init__(self, size: int) -> None:
        import certifi  # noqa: PLC0415 - Prefect's
        from prefect.settings import get_current_settings  # noqa: PLC0415 - after Prefect was imported

        self._cafile = get_current_settings().api.ssl_cert_file or certifi.where()
        self._class = ssl.SSLContext
        self._make = ssl.create_default_context
        self._contexts: list[Any] = []
        self._fresh: Iterator[ssl.SSLContext] = iter(())
        if "SSLKEYLOGFILE" not in os.environ and os.path.isfile(self._cafile):
            self._signature = _signature(self._cafile)
            self._contexts = [self._make(cafile=self._cafile) for _ in range(size)]
            # Freeing one costs a process a megabyte, as its certificates lie on hundreds of pages that are shared as long
            # as nobody writes to them. A cycle is freed by the collector only, which does not look at what was there
            # before the freeze.
            self._contexts.append(self._contexts)
            self._fresh = iter(self._contexts[:size])
            for name in USERS:
                module = importlib.import_module(name)
                if getattr(module, "ssl", None) is ssl:
                    module.ssl = _StockedSsl(self)  # type: ignore[attr-defined]

    def take(self, *args: Any, **kwargs: Any) -> ssl.SSLContext:
        """A context as `ssl.create_default_context` with these arguments makes it now."""
        same = not args and kwargs == {"cafile": self._cafile}
        unpatched = ssl.create_default_context is self._make and ssl.SSLContext is self._class
        if same and unpatched and "SSLKEYLOGFILE" not in os.environ:
            try:
                if self._contexts and _signature(self._cafile) == self._signature:
                    return next(self._fresh)
            except (OSError, StopIteration):  # the file is gone, or all are taken
                pass
        return ssl.create_default_context(*args, **kwargs)


class _StockedSsl(types.ModuleType):
    """The module `ssl` as it is at any moment, but for the one function."""

    def __init__(self, stock: TlsStock) -> None:
        super().__init__("ssl", ssl.__doc__)
        self.create_default_context = stock.take

    def __getattr__(self, name: str) -> Any:
        return getattr(ssl, name)


def _signature(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino
