"""A run's process that needs nobody's SDK: it keeps a ledger and reports itself straight to the real server.

Run as `python outage_job.py API_URL LEDGER ENDING [GATE]`: says Running, waits for the file GATE if there is one,
then says Completed (`ENDING` = complete) or exits with code 3 and says nothing (`ENDING` = die). Every line of
the ledger is one fact: start, signal or end, with the pid. Owns no Prefect rules beyond two states.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIES_WITH = 3
_ANSWER_TIMEOUT = 120.0
_BUSY = 503
_UNPROTECTED = 422


class Reporter:
    """Says to the server how the run stands, around any proxy."""

    def __init__(self, api_url: str, run_id: str) -> None:
        self._api_url = api_url
        self._run_id = run_id
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._client = str(uuid.uuid4())

    def say(self, state: str) -> None:
        """Set the run's state, trying until the server is there and its database is not busy."""
        body = json.dumps({"state": {"type": state}, "force": False}).encode()
        while True:
            try:
                headers = {"Content-Type": "application/json", **self._csrf()}
                request = urllib.request.Request(
                    f"{self._api_url}/flow_runs/{self._run_id}/set_state", body, headers
                )
                with self._open(request, timeout=_ANSWER_TIMEOUT):
                    return
            except urllib.error.HTTPError as error:
                if error.code != _BUSY:
                    raise
            except (urllib.error.URLError, OSError):
                # The server itself is away: the test restarts it.
                pass
            time.sleep(0.1)

    def _csrf(self) -> Mapping[str, str]:
        try:
            with self._open(
                f"{self._api_url}/csrf-token?client={self._client}", timeout=_ANSWER_TIMEOUT
            ) as answer:
                token: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != _UNPROTECTED:
                raise
            return {}
        return {"Prefect-Csrf-Token": token["token"], "Prefect-Csrf-Client": self._client}


def main(api_url: str, ledger: str, ending: str, gate: str | None = None) -> None:
    run_id = os.environ["PREFECT__FLOW_RUN_ID"]
    pages = os.open(Path(ledger) / f"{run_id}.ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(fact: str) -> None:
        os.write(pages, f"{fact} {os.getpid()}\n".encode())

    def noted(number: int, _frame: object) -> None:
        note(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
        signal.signal(number, noted)
    note("start")
    reporter = Reporter(api_url, run_id)
    reporter.say("RUNNING")
    while gate is not None and not Path(gate).exists():
        time.sleep(0.05)
    if ending == "complete":
        reporter.say("COMPLETED")
    note("end")
    if ending == "die":
        sys.exit(DIES_WITH)


if __name__ == "__main__":
    main(*sys.argv[1:])
