"""Our daemon, whose event loop hangs on SIGUSR1 until a file is there: `-m tests.support.hanging_daemon start …`.

The handler runs in the main thread, where the event loop does, and nowhere else; so all that the loop does stands
still, and the other threads go on. `HANG_UNTIL` names the file; while it hangs, the same name with `.hanging` is there. As
shipped a loop may be silent for half a minute; here it is two seconds.
"""

import os
import signal
import time
from pathlib import Path

from worker import cli, health

HANG_UNTIL = "HANG_UNTIL"


def hang(_number: int, _frame: object) -> None:
    end = Path(os.environ[HANG_UNTIL])
    end.with_suffix(".hanging").touch()
    while not end.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    health.BEAT = 0.5
    health.LONGEST_SILENCE = 2.0
    signal.signal(signal.SIGUSR1, hang)
    cli.main()
