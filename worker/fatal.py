"""What ends the daemon, and the exit codes that tell why."""

EXIT_CONFIGURATION = 1
EXIT_CREDENTIALS = 3
EXIT_POOL = 4
EXIT_INTERPRETER = 5
EXIT_HEALTH_ADDRESS = 6


class FatalError(Exception):
    """Ends the daemon: the message says why and what to do, `exit_code` is documented in the README."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
