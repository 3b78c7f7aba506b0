"""Our daemon on a terminal of its own; what it shows there goes to standard output."""

import os
import pty
import sys

if __name__ == "__main__":
    sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, "-m", "worker.cli", *sys.argv[1:]])))
