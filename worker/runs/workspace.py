"""The directories of attempts: `<runs>/<flow run id>-<random>/`.

In each are `work` (a fresh working directory), `output`, and `delivered` (how much of the output has been passed on).
Owns making, finding and removing them. A flow may do anything to its own directory, so removing it is done with care.
"""

import errno
import os
import re
import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import anyio.to_thread
import structlog

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# While the machine is short of something no run can start, so holding the slot for these seconds costs nothing.
_TRIES = 10
_PAUSE = 1.0
# A flow may have put a pipe or a link in a file's place: neither waited for nor followed.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
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
            descriptor = os.open(self._delivered, os.O_RDONLY | _CAREFULLY)
            try:
                return int(os.read(descriptor, 32))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            return 0

    def note_delivered(self, offset: int) -> None:
        """Keep the offset for the next daemon; on a full disk that one repeats some lines."""
        with suppress(OSError):
            descriptor = os.open(self._delivered, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CAREFULLY, 0o600)
            try:
                os.write(descriptor, str(offset).encode("ascii"))
            finally:
                os.close(descriptor)

    @property
    def _delivered(self) -> Path:
        return self.directory / "delivered"

    async def remove(self) -> None:
        """Remove all of it; what cannot be removed is told and left."""
        with anyio.CancelScope(shield=True):
            for _ in range(_TRIES):
                if await anyio.to_thread.run_sync(partial(remove, self.directory, final=False)):
                    return
                await anyio.sleep(_PAUSE)
            await anyio.to_thread.run_sync(remove, self.directory)


def remove(directory: Path, *, final: bool = True) -> bool:
    """Remove a directory tree, whatever permissions a flow gave its directories; says whether there is no more to do.

    What only a shortage of the machine's keeps from being removed is told if this is the `final` try.
    """
    try:
        _remove_tree(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in _SHORTAGES and not final:
            return False
        structlog.get_logger().warning(
            "run_directory.left_behind", directory=str(directory), reason=str(error)
        )
    return True


def all_in(runs: Path) -> dict[Path, UUID]:
    """The directories of attempts, with the flow runs they were made for."""
    try:
        found = list(runs.iterdir())
    except FileNotFoundError:
        return {}
    return {directory: UUID(match[1]) for directory in found if (match := _NAME.fullmatch(directory.name))}


def _remove_tree(top: Path) -> None:
    """Remove it with one descriptor and no recursion, whatever its depth: nested directories are put side by side first.

    `shutil.rmtree` calls itself, and keeps a descriptor open, for every level; a flow may nest thousands.
    """
    if not stat.S_ISDIR(top.lstat().st_mode):
        top.unlink()
        return
    _permit(top)
    level = [top]
    while level:
        below: list[Path] = []
        for directory in level:
            with os.scandir(directory) as found:
                entries = list(found)
            for entry in entries:
                path = Path(entry.path)
                if not entry.is_dir(follow_symlinks=False):
                    path.unlink()
                    continue
                _permit(path)  # rename(2): a directory must be writable to be moved
                below.append(path.rename(top / uuid4().hex))
            if directory != top:
                directory.rmdir()
        level = below
    top.rmdir()


def _permit(directory: Path) -> None:
    """Give ourselves all rights to a directory."""
    mode = stat.S_IMODE(directory.lstat().st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        directory.chmod(mode | stat.S_IRWXU)
