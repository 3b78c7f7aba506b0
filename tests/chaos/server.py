"""The Prefect server of a chaos run: restarted on its own port with its own database."""

import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.support.server import PrefectServer, running_server

STOP_PATIENCE = 3.0


class Server:
    """Running from the beginning; `current` is its latest life. `stop` may be called twice.

    `database` is a migrated one to begin with, which saves most of the first start.
    """

    def __init__(self, directory: Path, *, mark: str, database: Path | None) -> None:
        self._directory = directory
        self._mark = mark
        self._stack = ExitStack()
        self.current: PrefectServer = self._stack.enter_context(
            running_server(directory, mark=mark, database=database)
        )

    def stop(self) -> None:
        """SIGTERM, and before long SIGKILL: it waits for connections that the daemons have no reason to close."""
        service = self.current.service
        if service.returncode is None:
            service.signal(signal.SIGTERM)
            try:
                service.process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                service.process.kill()
        self._stack.close()

    def start(self) -> None:
        """Start it again and wait until it is healthy."""
        self.current = self._stack.enter_context(
            running_server(self._directory, mark=self._mark, port=self.current.port)
        )
