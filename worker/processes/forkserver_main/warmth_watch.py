"""Watching what imports do: which variables they read, what they fail to find, what they leave running or open.

Owns observers that are in place while modules are imported, and are gone afterwards. Does not own what follows from it.
"""

from __future__ import annotations

import inspect
import os
import random
import stat
import sys
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any


class EnvironmentReads:
    """The names of variables that were looked up by name within the block, but for those that begin with `again`.

    Going through the whole environment (`dict(os.environ)`, `items()`) is not looking up: who does that usually
    picks a prefix, and which one cannot be seen.
    """

    def __init__(self, *, again: tuple[str, ...]) -> None:
        self.names: set[str] = set()
        self._again = again
        self._walk: tuple[int, int] | None = None

    def __enter__(self) -> None:
        environment = type(os.environ)
        self._lookup = environment.__getitem__
        self._iterate = environment.__iter__

        def lookup(mapping: Any, name: str) -> str:
            self._note(name, _caller())
            return self._lookup(mapping, name)

        def iterate(mapping: Any) -> Iterator[str]:
            self._walk = _place(_caller())
            return self._iterate(mapping)

        environment.__getitem__ = lookup  # type: ignore[method-assign]
        environment.__iter__ = iterate  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        environment = type(os.environ)
        environment.__getitem__ = self._lookup  # type: ignore[method-assign]
        environment.__iter__ = self._iterate  # type: ignore[method-assign]

    def _note(self, name: object, frame: FrameType | None) -> None:
        if frame is None or not isinstance(name, str) or name.startswith(self._again):
            return
        if frame.f_globals.get("__name__") == "_collections_abc" and frame.f_code.co_name == "__iter__":
            return
        if _place(frame) != self._walk:
            self.names.add(name)


def _caller() -> FrameType | None:
    """The frame that called the function which calls this one."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = None if frame is None else frame.f_back
    return frame


def _place(frame: FrameType | None) -> tuple[int, int] | None:
    """Which call this is: `dict(os.environ)` asks for the names and for each value from one and the same place."""
    while frame is not None and frame.f_globals.get("__name__") in (
        "_collections_abc",
        "collections.abc",
        "os",
    ):
        frame = frame.f_back
    return None if frame is None else (id(frame), frame.f_lasti)


class Misses:
    """The top-level names that were imported within the block and not found: a module of that name changes the result."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __enter__(self) -> None:
        sys.meta_path.append(self)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)  # type: ignore[arg-type]

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Asked last, when no other finder knows the name."""
        del path, target
        if "." not in name:
            self.names.add(name)


class Seeding:
    """The random generators seeded from entropy within the block: each process has to seed them anew.

    Those that were seeded with a value have the same state in every fresh process too. The generator behind the
    functions of `random` is seeded anew by Python itself after a fork.
    """

    def __init__(self) -> None:
        self._generators: weakref.WeakSet[random.Random] = weakref.WeakSet()

    def __enter__(self) -> None:
        self._seed = random.Random.seed

        def seed(generator: random.Random, a: object = None, version: int = 2) -> None:
            if a is None:
                self._generators.add(generator)
            else:
                self._generators.discard(generator)
            self._seed(generator, a, version)  # type: ignore[arg-type]

        random.Random.seed = seed  # type: ignore[assignment,method-assign]

    def __exit__(self, *_: object) -> None:
        random.Random.seed = self._seed  # type: ignore[method-assign]

    def renew(self) -> None:
        """Seed them from entropy; numpy's legacy generator too, which numpy seeds when it is imported."""
        for generator in list(self._generators):
            generator.seed()
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()


class Descriptors:
    """The descriptors that were open when this was made, to tell those that have been opened since."""

    def __init__(self) -> None:
        self._before = _descriptors()

    def opened(self) -> list[str]:
        """What later descriptors are; devices such as /dev/urandom can be shared and do not count."""
        return [what for number, what in sorted(_descriptors().items()) if self._before.get(number) != what]


def _descriptors() -> dict[int, str]:
    directory = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    found: dict[int, str] = {}
    for name in os.listdir(directory):
        number = int(name)
        try:
            mode = os.fstat(number).st_mode
            if not stat.S_ISCHR(mode):
                found[number] = (
                    os.readlink(f"{directory}/{name}") if sys.platform == "linux" else f"descriptor {number}"
                )
        except OSError:  # the one that listing needed
            continue
    return found


def thread_names() -> list[str]:
    """The threads of this process besides the calling one; those that Python did not start are called by number."""
    own = threading.get_native_id()
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return sorted(name for number, name in known.items() if number != own)
    return sorted(known.get(number, f"native thread {number}") for number in numbers if number != own)
