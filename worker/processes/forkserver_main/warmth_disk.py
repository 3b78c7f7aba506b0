"""What lies where modules are found, and whether a fresh interpreter would find the same.

Owns: which files a loaded module came from, and which entries of a directory on the path change what an import finds.
Does not own: settings files of Prefect, which are no modules.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import sysconfig
from _imp import is_frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SUFFIXES = tuple(sorted(importlib.machinery.all_suffixes(), key=len, reverse=True))
_METADATA = (".dist-info", ".egg-info", ".egg-link")
# Groups of entry points that are looked for on the whole path when Prefect is imported.
_GROUPS = ("[pydantic", "[opentelemetry", "[prefect.")


class Hiding:
    """The top-level names whose import gives something else when a directory in front has an entry of that name."""

    def __init__(self, *, missed: Iterable[str]) -> None:
        # The fork server's own are gone from a flow's process.
        own = {name for name, module in list(sys.modules.items()) if _is_own(module)}
        tops = {name.partition(".")[0] for name in list(sys.modules) if name not in own}
        self.found = frozenset(
            n for n in tops if n not in sys.builtin_module_names and not is_frozen(n) and n != "__main__"
        )
        self.missed = frozenset(missed) - tops

    def within(self, directory: str) -> list[str]:
        """The entries that hide an installed module or supply a missing one; none if the directory cannot be read."""
        try:
            entries = os.listdir(directory)
        except OSError:
            return []
        return sorted(entry for entry in entries if self._hides(directory, entry))

    def _hides(self, directory: str, entry: str) -> bool:
        if entry in self.found:
            return _is_package(os.path.join(directory, entry))
        if entry in self.missed:
            return os.path.isdir(os.path.join(directory, entry))
        for suffix in _SUFFIXES:
            if entry.endswith(suffix):
                name = entry[: -len(suffix)]
                return name in self.found or name in self.missed
        return False


class Packages:
    """The state on disk of all that is imported, as it was when this was made."""

    def __init__(self, *, missed: Iterable[str]) -> None:
        self._hiding = Hiding(missed=missed)
        standard = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
        self._files = _signatures(_files(standard))
        self._directories = {path: _mtime(path) for path in sys.path if os.path.isdir(path)}
        self._listings = {path: self._listing(path) for path in self._directories}

    def hiding(self, directory: str) -> str | None:
        """An entry of this directory, were it first on the path, that changes what is imported."""
        for entry in self._hiding.within(directory):
            return entry
        for entry in _plugins(directory):
            return entry
        return None

    def changed(self) -> str | None:
        """The first thing found on disk that is no longer what was imported, as a sentence."""
        stat = os.stat
        for path, (mtime, size) in self._files.items():
            try:
                now = stat(path)
            except OSError:
                return f"{path} is gone since it was imported"
            if now.st_mtime_ns != mtime or now.st_size != size:
                return f"{path} has changed since it was imported"
        for path, mtime in self._directories.items():
            now_mtime = _mtime(path)
            if now_mtime != mtime:
                if self._listing(path) != self._listings[path]:
                    return f"packages in {path} have changed since they were imported"
                self._directories[path] = now_mtime
        return None

    def _listing(self, path: str) -> list[str]:
        try:
            entries = os.listdir(path)
        except OSError:
            return []
        return [*self._hiding.within(path), *sorted(e for e in entries if e.endswith((*_METADATA, ".pth")))]


def _files(standard: tuple[str, ...]) -> list[str]:
    """The interpreter, the files of modules that are not its own library, and what extends its path."""
    files = {sys.executable}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and (not file.startswith(standard) or "site-packages" in file):
            files.add(file)
    for directory in sys.path:
        try:
            entries = os.listdir(directory)
        except OSError:
            continue
        files.update(os.path.join(directory, entry) for entry in entries if entry.endswith(".pth"))
    prefix = os.path.join(sys.prefix, "pyvenv.cfg")
    return sorted(files | {prefix})


def _signatures(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # a module may name a file that never was
            continue
        found[path] = status.st_mtime_ns, status.st_size
    return found


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def _is_package(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, "__init__" + suffix)) for suffix in _SUFFIXES)


def _is_own(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and os.path.dirname(file) == os.path.dirname(__file__)


def _plugins(directory: str) -> list[str]:
    """Packages here whose entry points Prefect or pydantic would load when imported with this directory on the path."""
    try:
        entries = os.listdir(directory)
    except OSError:
        return []
    found: list[str] = []
    for entry in entries:
        if entry.endswith(_METADATA):
            try:
                with open(
                    os.path.join(directory, entry, "entry_points.txt"), encoding="utf-8", errors="replace"
                ) as file:
                    text = file.read()
            except OSError:
                continue
            if any(group in text for group in _GROUPS):
                found.append(entry)
    return found
