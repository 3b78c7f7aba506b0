"""Our daemon, looking for what was lost every two seconds instead of every minute: `-m tests.support.hasty_daemon start …`."""

from worker import cli
from worker.runs import lost_runs, recovery

if __name__ == "__main__":
    lost_runs.INTERVAL = 2.0
    recovery.INTERVAL = 2.0
    cli.main()
