"""Attending a process from its start, or its adoption, to the report of its end.

The one place where the three ways an attempt can go on are told apart: the process ends, the daemon's end cuts it
short, or the daemon's end leaves it to the next daemon.
"""

import anyio
import structlog

from worker.runs.reports import FINAL_REPORT_LIMIT, Reports
from worker.runs.services import Services
from worker.runs.stopping import Stop
from worker.runs.supervision import Launched, Supervision


async def attend(
    launched: Launched, *, reports: Reports, services: Services, cancel_requested: anyio.Event
) -> None:
    """Supervise until the end and report it.

    When the daemon is ending, the process is ended and reported too, however late, unless it is to be left running:
    then its record stays open.
    """
    log = structlog.get_logger()
    supervision = Supervision(
        launched=launched, record=reports.record, services=services, cancel_requested=cancel_requested
    )
    try:
        ended = await supervision.until_exit()
    except anyio.get_cancelled_exc_class():
        how = services.stopping.how
        if how is Stop.DETACH and launched.handle.alive():
            with anyio.CancelScope(shield=True):
                await supervision.relinquish()
            log.info("flow_run.detached", pid=launched.handle.pid)
            raise
        with anyio.CancelScope(shield=True):
            ended = await supervision.stop(how)
            await reports.ended(launched, ended, limit=FINAL_REPORT_LIMIT)
        raise
    except Exception as error:
        log.exception("flow_run.unattended", reason=str(error))
        ended = await supervision.stop(Stop.CRASH)
    await reports.ended(launched, ended)
