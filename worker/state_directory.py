"""Where a daemon keeps what must outlive it: one directory per server, pool and worker name, used by one daemon."""

import fcntl
import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


class StateDirectoryInUseError(Exception):
    """Another daemon serves the same pool of the same server under the same name; the message names it and the fix."""


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

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep the directory to ourselves: two daemons would settle each other's attempts (flock(2)).

        The lock goes with the process, however it ends. Raises StateDirectoryInUseError, or OSError when the lock's file
        cannot be had.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip() or "unknown"
                msg = (
                    f"another headrace (pid {holder}) serves this pool under this name here ({self.path}):"
                    " stop it first, or give this one another --name or --state-dir"
                )
                raise StateDirectoryInUseError(msg) from None
            with suppress(OSError):  # a full disk: the pid is only told to whoever comes second
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def for_worker(root: Path, *, api_url: str, pool: str, name: str) -> StateDirectory:
    """The state directory of this worker, made if need be, readable by its owner only.

    Raises OSError when it cannot be made.
    """
    identity = hashlib.sha256(f"{api_url}\0{pool}\0{name}".encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60]
    directory = root.expanduser() / f"{readable}-{identity}"
    (directory / "runs").mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    return StateDirectory(directory.resolve())
