"""How a forked process ends: without taking apart what it has from the fork server.

When an interpreter ends it clears every module. In a forked process that touches, and so copies, nearly all that Prefect
is: 70 ms of a core for each run, to free what the kernel frees in one. So the modules that were there before the fork are
taken out of `sys.modules` last of all, and kept: the flow's own modules are cleared as ever, so that what they hold is
finalized (an open file is written out), and threads and atexit functions have ended before, as ever.

Runs in the interpreter of the flows; the standard library only.
"""

from __future__ import annotations

import atexit
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types

# Of these the interpreter needs, or holds for the flow, what it clears.
_ALWAYS_CLEARED = ("builtins", "sys", "__main__")


class Departure:
    """Make it before anything is imported: what is registered first with atexit is called last."""

    def __init__(self) -> None:
        self._kept: dict[str, types.ModuleType] = {}
        # A cycle is freed by the collector only, which does not look at what was there before the freeze.
        self._itself = self
        atexit.register(self._depart)

    def keep(self) -> None:
        """These modules are not cleared at the end. Once, before the freeze."""
        self._kept = {name: module for name, module in sys.modules.items() if name not in _ALWAYS_CLEARED}

    def _depart(self) -> None:
        for name, module in self._kept.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
