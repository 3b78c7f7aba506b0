"""The directories of attempts: `<runs>/<flow run id>-<random>/`.

In each are `work` (a fresh working directory), `output`, and `delivered` (how much of the output has been passed on).
Owns making, finding and removing them. A flow may do anything to its own directory, so removing it is done with care.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio.to_thread
import structlog

_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\w+")


class Workspace:
    """One attempt's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def make(cls, runs: Path, flow_run_id: UUID) -> "Workspace":
        """A new one. Raises OSError."""
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{flow_run_id}-", dir=runs))
        try:
            (directory / "work").mkdir()
        except OSError:
            directory.rmdir()
            raise
        return cls(directory)

    @property
    def work(self) -> Path:
        """The fresh directory that the flow runs in, unless it has a `working_dir`."""
        return self.directory / "work"

    @property
    def output(self) -> Path:
        """The file its output goes to; there from the moment a process was about to be started."""
        return self.directory / "output"

    def delivered(self) -> int:
        """The offset of the output up to which a daemon has passed it on."""
        try:
            return int(self._delivered.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def note_delivered(self, offset: int) -> None:
        """Keep the offset for the next daemon; on a full disk that one repeats some lines."""
        with suppress(OSError):
            self._delivered.write_text(str(offset), encoding="ascii")

    @property
    def _delivered(self) -> Path:
        return self.directory / "delivered"

    async def remove(self) -> None:
        """Remove all of it; what cannot be removed is told and left."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(remove, self.directory)


def remove(directory: Path) -> None:
    """Remove a directory tree, whatever permissions a flow gave its directories."""
    try:
        shutil.rmtree(directory, onerror=_permit_and_retry)
    except FileNotFoundError:
        return
    except OSError as error:
        structlog.get_logger().warning(
            "run_directory.left_behind", directory=str(directory), reason=str(error)
        )


def all_in(runs: Path) -> dict[Path, UUID]:
    """The directories of attempts, with the flow runs they were made for."""
    try:
        found = list(runs.iterdir())
    except FileNotFoundError:
        return {}
    return {directory: UUID(match[1]) for directory in found if (match := _NAME.fullmatch(directory.name))}


def _permit_and_retry(function: Callable[..., Any], path: str, info: Any) -> None:
    """Grant ourselves what is missing on the directory or its parent, and try once more."""
    error: BaseException = info[1]
    if isinstance(error, FileNotFoundError):
        return
    if not isinstance(error, PermissionError) or not (_permit(os.path.dirname(path)) | _permit(path)):  # noqa: PTH120 - same below
        raise error
    if function in {os.unlink, os.rmdir}:
        function(path)
    else:
        shutil.rmtree(path, onerror=_permit_and_retry)


def _permit(path: str) -> bool:
    """Whether this was a directory that we may not have had all rights to, and now have."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode) or mode & stat.S_IRWXU == stat.S_IRWXU:
        return False
    os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXU)  # noqa: PTH101 - rmtree deals in text
    return True
