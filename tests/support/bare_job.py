"""A run's `command` without an engine: reports Running and Completed itself, and keeps a ledger. Standard library only.

For tests in which the engine is not the point: it starts in a tenth of a second. Usage:
`python bare_job.py LEDGER [GATE]`; it ends once the file GATE exists. The ledger gets a line when it begins and one
when it ends, each in one write: run, execution, pid, what.
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path


def report(state: str) -> None:
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{os.environ['PREFECT__FLOW_RUN_ID']}/set_state"
    body = json.dumps({"state": {"type": state}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status = json.load(answer)["status"]
        except OSError:
            time.sleep(0.2)  # a SQLite server refuses writes for milliseconds, a restarting one for seconds
        else:
            break
    if status != "ACCEPT":
        sys.exit(f"the server did not accept {state}: {status}")


def note(ledger: str, what: str) -> None:
    words = (os.environ["PREFECT__FLOW_RUN_ID"], os.environ["HEADRACE_EXECUTION_ID"], str(os.getpid()), what)
    descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, (" ".join(words) + "\n").encode())
    os.close(descriptor)


def main() -> None:
    ledger, gate = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
    note(ledger, "begin")
    report("RUNNING")
    while gate is not None and not gate.exists():
        time.sleep(0.05)
    report("COMPLETED")
    note(ledger, "end")


if __name__ == "__main__":
    main()
