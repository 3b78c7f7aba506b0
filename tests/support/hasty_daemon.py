"""Our daemon, looking for what was lost every two seconds, and giving its last words two: `-m tests.support.hasty_daemon start …`.

As shipped it is a minute and thirty seconds.
"""

from worker import cli
from worker.runs import attendance, lost_runs, recovery, reports

if __name__ == "__main__":
    lost_runs.INTERVAL = 2.0
    recovery.INTERVAL = 2.0
    attendance.FINAL_REPORT_LIMIT = reports.FINAL_REPORT_LIMIT = 2.0
    cli.main()
