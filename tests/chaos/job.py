"""A run without an engine: begins, works, ends, and itself tells the server so. Costs a hundredth of an engine's start.

Run by its path as a custom `command`, with the standard library only. Outages are waited out: a run must not fail
because the driver restarts the server. A run that the server does not let begin has been cancelled, and leaves.
"""

import http.client
import json
import os
import sys
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

import ledger

PATIENCE = 600.0
ANSWER_TIMEOUT = 60.0
PAUSE = 0.5


class Server:
    """The two things that are said to the server, each until it is answered."""

    def __init__(self, api_url: str, *, run_id: str) -> None:
        self._url = urlsplit(api_url)
        self._path = f"{self._url.path}/flow_runs/{run_id}/set_state"

    def propose(self, state_type: str) -> bool:
        """Propose the state; whether the run is now in it. The same proposal is repeated until it is answered.

        Raises TimeoutError when there was no answer for `PATIENCE` seconds.
        """
        body = {"state": {"type": state_type, "state_details": {"transition_id": str(uuid.uuid4())}}}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self._post(body)
            if answer is None:
                time.sleep(PAUSE)
            elif answer["status"] == "WAIT":
                time.sleep(answer["details"]["delay_seconds"])
            else:
                return bool(answer["state"]["type"] == state_type)
        raise TimeoutError(f"{self._url.netloc} did not answer for {PATIENCE:g} s")

    def _post(self, body: object) -> Any:
        """The JSON answer, None when there was none or the server was not able to give one."""
        connection = http.client.HTTPConnection(self._url.netloc, timeout=ANSWER_TIMEOUT)
        try:
            connection.request(
                "POST", self._path, json.dumps(body), headers={"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if response.status >= http.client.INTERNAL_SERVER_ERROR:
            return None
        if response.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{response.status}: {text.decode(errors='replace')}")
        return json.loads(text)


def main() -> None:
    run_id = os.environ[ledger.RUN_ID]
    writer = ledger.Writer(os.environ, run_id=run_id)
    writer.begin()
    server = Server(os.environ["PREFECT_API_URL"], run_id=run_id)
    if not server.propose("RUNNING"):
        sys.exit("the server did not let the run begin")
    time.sleep(float(os.environ[ledger.SECONDS]))
    writer.end()
    if not server.propose("COMPLETED"):
        sys.exit("the server did not take the run's completion")


if __name__ == "__main__":
    main()
