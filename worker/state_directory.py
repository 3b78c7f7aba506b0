"""Where a daemon keeps what must outlive it: one directory per server, pool and worker name, used by one daemon."""

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


class StateDirectoryInUseError(Exception):
    """Another daemon serves the same pool of the same server under the same name; the message names it and the fix."""


class UnlockableError(Exception):
    """The directory cannot be kept to ourselves; the message names it and the fix."""


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The directory and what is in it."""

    path: Path

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.db"

    @property
    def runs(self) -> Path:
        """The directory of the attempts' directories."""
        return self.path / "runs"

    @property
    def lock(self) -> Path:
        """The file that a running daemon holds a lock on, and that has its pid."""
        return self.path / "lock"

    @property
    def label(self) -> Path:
        """The file that says which pool and which name the directory is for."""
        return self.path / "worker.json"

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep the directory to ourselves: two daemons would settle each other's attempts (flock(2)).

        The lock goes with the process, however it ends. Raises StateDirectoryInUseError or UnlockableError.
        """
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unlockable(error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip() or "unknown"
                msg = (
                    f"another headrace (pid {holder}) serves this pool under this name here ({self.path}):"
                    " stop it first, or give this one another --name"
                )
                raise StateDirectoryInUseError(msg) from None
            except OSError as error:
                raise self._unlockable(error) from error
            with suppress(OSError):  # a full disk: the pid is only told to whoever comes second
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            with self._only_one_on_this_machine():
                yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _only_one_on_this_machine(self) -> Generator[None]:
        """Keep the name to ourselves: a daemon of the same name with another state directory would take our runs for lost.

        An abstract socket is there as long as its process (unix(7)); where there is none, nothing is kept.
        """
        with socket.socket(socket.AF_UNIX) as name:
            try:
                name.bind(f"\0headrace/{self.path.name}")
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    msg = (
                        "another headrace serves this pool under this name on this machine, with another state directory:"
                        " stop it first, or give this one another --name"
                    )
                    raise StateDirectoryInUseError(msg) from None
            yield

    def _unlockable(self, error: OSError) -> UnlockableError:
        return UnlockableError(
            f"the state directory {self.path} cannot be locked: {error.strerror};"
            " make it writable, or choose one on a file system with locks with --state-dir"
        )


def for_worker(root: Path, *, api_url: str, pool: str, name: str) -> StateDirectory:
    """The state directory of this worker, made if need be, readable by its owner only.

    Raises OSError when it cannot be made.
    """
    directory = path_for_worker(root, api_url=api_url, pool=pool, name=name)
    (directory / "runs").mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    state = StateDirectory(directory.resolve())
    with suppress(OSError):  # a full disk: whoever looks in sees the directory's name only
        _write_label(state, {"pool": pool, "name": name})
    return state


def path_for_worker(root: Path, *, api_url: str, pool: str, name: str) -> Path:
    """Where the state directory of this worker is, or would be."""
    identity = hashlib.sha256(f"{api_url}\0{pool}\0{name}".encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    return root.expanduser() / f"{readable}-{identity}"


def _write_label(state: StateDirectory, label: dict[str, str]) -> None:
    """Say whose directory it is, for `headrace ps`: its name holds only a part of that."""
    text = json.dumps(label)
    draft = state.label.with_name(f".{state.label.name}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(state.label)
