"""Asks the server for the latest run of each schedule that has missed ones: what `--only-latest` has to know.

Which runs are missed, and what becomes of them, is `lateness`' judgement.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

import anyio
import structlog

from worker.api.client import PrefectClient
from worker.api.errors import ApiError
from worker.api.models import FlowRun
from worker.runs.lateness import STANDING, Due, Series, all_due, latest_of_each

# How many seconds the server is asked for the latest runs of schedules: other runs are waiting.
LOOKUP_LIMIT = 20.0


class LatestRuns:
    """One for the daemon's life; remembers whether the server could tell the last time."""

    def __init__(self, *, client: PrefectClient, now: Callable[[], datetime]) -> None:
        self._client = client
        self._now = now
        self._unknown = False
        self._log = structlog.get_logger()

    async def of(self, flow_runs: Sequence[FlowRun]) -> dict[Series, Due]:
        """The latest run of each series with a missed one in this answer, begun already or not.

        When the server cannot tell, nothing is judged at first; when it still cannot, the answer's own latest are
        taken: better a run too many than none.
        """
        now = self._now()
        deadline = anyio.current_time() + LOOKUP_LIMIT
        latest = latest_of_each(one for one in all_due(flow_runs, now=now) if one.missed)
        sought, offset = set(latest), 0
        try:
            while sought:
                deployments = {series.deployment_id for series in sought}
                page = await self._client.flow_runs_due(deployments, STANDING, now, offset, deadline=deadline)
                if not page:
                    break
                found = {
                    series: one
                    for series, one in latest_of_each(all_due(page, now=now)).items()
                    if series in sought
                }
                latest = latest_of_each([*latest.values(), *found.values()])
                sought -= found.keys()
                narrowed = deployments != {series.deployment_id for series in sought}
                offset = 0 if narrowed else offset + len(page)
        except ApiError as error:
            if self._unknown:
                return latest
            self._unknown = True
            self._log.warning("poll.latest_unknown", reason=str(error))
            return {}
        if self._unknown:
            self._log.info("poll.latest_known")
        self._unknown = False
        return latest
