"""Importing the daemon without what its libraries load merely because it is installed.

The daemon often lives in Prefect's environment, where everything is installed. There structlog and httpx load rich,
pygments, click, h2 and trio, up to a third of the time that a start takes, and pydantic looks through every distribution
for plugins, other people's code that the daemon has no use for. Owns leaving that out while the daemon is imported.
Nothing is kept out for good: what needs one of them later (HTTP/2, when it is asked for) finds it.
"""

import gc
import importlib
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import ModuleType
from typing import Final, cast

UNUSED: Final = (
    "rich",
    "pygments",
    "click",
    "better_exceptions",
    "greenlet",
    "twisted",
    "colorama",
    "h2",
    "trio",
)
"""What structlog, httpx and httpcore import if they can, and do without if they cannot.

httpcore imports its HTTP/2 again when a connection is to speak it, and needs trio only in a program that runs on it.
"""

LATE: Final = "httpcore"
"""What httpx imports only when a client is made, after the imports are over."""

_PLUGINS: Final = "PYDANTIC_DISABLE_PLUGINS"


@contextmanager
def lean_imports(unused: Iterable[str] = UNUSED) -> Generator[None]:
    """While this lasts, imports find none of `unused`, pydantic no plugins, and no garbage is collected.

    For a process of one thread: modules, environment and collector are the whole process's.
    """
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    # None makes an import fail as if there were no such module (Python's reference, "The module cache").
    kept_out = [name for name in unused if name not in modules]
    plugins = os.environ.get(_PLUGINS)
    collecting = gc.isenabled()
    modules.update(dict.fromkeys(kept_out))
    os.environ[_PLUGINS] = "__all__"
    # Next to nothing of what an import makes is garbage; looking for it is a tenth of the time.
    gc.disable()
    try:
        yield
        importlib.import_module(LATE)
    finally:
        for name in kept_out:
            if modules.get(name) is None:
                modules.pop(name, None)
        if plugins is None:
            del os.environ[_PLUGINS]
        else:
            os.environ[_PLUGINS] = plugins
        if collecting:
            gc.enable()
