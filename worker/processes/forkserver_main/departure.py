"""How a forked process ends: without taking apart what it has from the fork server.

When an interpreter ends it clears every module. In a forked process that touches, and so copies, nearly all that Prefect
is: 70 ms of a core for each run, to free what the kernel frees in one. So the modules that were there before the fork are
taken out of `sys.modules` last of all, and kept: the flow's own modules are cleared as ever, so that what they hold is
finalized, and threads and atexit functions have ended before, as ever. What of the flow's is held by the others only (by
typing's cache, by a registry of a library) is not finalized; its open files are written out.

Runs in the interpreter of the flows; the standard library only.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types

# Of these the interpreter needs, or holds for the flow, what it clears.
_ALWAYS_CLEARED = ("builtins", "sys", "__main__")
_BUFFERED = frozenset((io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper))


class Departure:
    """Make it before anything is imported: what is registered first with atexit is called last."""

    def __init__(self) -> None:
        self._kept: dict[str, types.ModuleType] = {}
        # A cycle is freed by the collector only, which does not look at what was there before the freeze.
        self._itself = self
        atexit.register(self._depart)

    def keep(self) -> None:
        """The modules there are now are not cleared at the end. Once, before the freeze and before what is the user's."""
        self._kept = {name: module for name, module in sys.modules.items() if name not in _ALWAYS_CLEARED}

    def _depart(self) -> None:
        if gc.isenabled():
            # As the interpreter does next: finalizers can still import what they need.
            gc.collect()
        _write_out()
        for name, module in self._kept.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _write_out() -> None:
    """Write what files have not yet written. Those of before the fork, frozen, are none of the flow's and not among these.

    Regular files only: they do not wait for a reader, whose end no one knows.
    """
    for it in gc.get_objects():
        # The type's own bases: what an object says of itself may be made up on the spot, by code of the flow's.
        if not _BUFFERED.isdisjoint(type(it).__mro__):
            try:
                if not it.closed and stat.S_ISREG(os.fstat(it.fileno()).st_mode):
                    it.flush()
            except Exception as error:  # noqa: BLE001 - as when an object's end fails: told, and the others are gone on with
                print(f"Exception ignored in: {it!r}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
