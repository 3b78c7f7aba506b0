"""`headrace` that retires a fork server which nobody asks for after two seconds, and not after ten minutes."""

import sys

from worker.cli import main
from worker.runs import forkservers

forkservers.IDLE_LIMIT = 2.0
forkservers.LOOK_INTERVAL = 0.5

if __name__ == "__main__":
    sys.exit(main())
