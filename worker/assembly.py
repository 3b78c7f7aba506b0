"""Wiring: the daemon's services, each made once and handed to those that use it.

Owns no behaviour. What the parts do is theirs; in which order they live and die is `daemon`'s.
"""

import random
import socket
import time
from functools import partial

import anyio
from anyio.abc import TaskGroup

from worker import __version__
from worker.api.events import (
    DEPLOYMENT_CHANGED,
    FLOW_RUN_CANCELLING,
    FLOW_RUN_CLAIMABLE,
    FLOW_RUN_ENDED,
    FLOW_RUN_LATE,
    FLOW_RUN_SCHEDULED,
    EventStream,
    Heard,
)
from worker.api.models import FlowRun
from worker.going_online import FirstParts, utc_now
from worker.metrics import Metrics
from worker.options import Options
from worker.parts import Parts
from worker.processes.control import ControlChannel
from worker.processes.forkserver import ForkServer
from worker.processes.interpreters import Interpreters
from worker.processes.launcher import Launcher
from worker.processes.machine import available_memory, processors
from worker.processes.tree import OrphanReaper
from worker.runs.cancellations import Cancellations
from worker.runs.claim_gate import ClaimGate, free_bytes
from worker.runs.claims import Claims
from worker.runs.execution import Execution
from worker.runs.forkservers import ForkServers
from worker.runs.hooks import HookRunner
from worker.runs.in_flight import InFlight
from worker.runs.latest_runs import LatestRuns
from worker.runs.lookahead import Agenda, Leads
from worker.runs.lost_runs import LostRuns
from worker.runs.outbox import Outbox
from worker.runs.pacing import Pacing
from worker.runs.poller import Poller
from worker.runs.preparation import Preparation
from worker.runs.questions import Questions
from worker.runs.readings import Readings
from worker.runs.readying import Readying
from worker.runs.recovery import Recovery
from worker.runs.services import Services
from worker.runs.serving import Serving
from worker.runs.shortcut import Shortcut
from worker.runs.sparing import Sparing
from worker.runs.start_method import Starter, StartMethod, forkserver_environment, why_never_warm
from worker.runs.starts import Starts
from worker.runs.states import States
from worker.runs.wake import Wake
from worker.runs.worker_events import WorkerEvents
from worker.settings import Settings


def assemble(
    options: Options,
    settings: Settings,
    first: FirstParts,
    control: ControlChannel,
    *,
    executions: TaskGroup,
    attending: TaskGroup,
    subreaper: bool,
) -> Parts:
    """Make all parts. Executions are started in `executions`, what outlives them in `attending`; the caller enters both.

    `subreaper`: orphaned descendants become our children, without which nothing can be started warm.
    """
    client, journal, pool, stopping = first.client, first.journal, first.pool, first.stopping
    metrics = Metrics()
    freed = Wake()
    pacing = Pacing(
        most=settings.headrace.max_starting or processors(),
        starting=lambda: in_flight.starting,
        monotonic=anyio.current_time,
    )
    in_flight = InFlight(
        limit=options.limit,
        freed=freed,
        starts=Starts(most=lambda: pacing.allowed, monotonic=anyio.current_time),
    )
    leads = Leads(most=options.prefetch_seconds, fixed=options.run_once)
    launcher = Launcher()
    forkservers = None
    why_cold = why_never_warm(StartMethod(settings.headrace.start_method), subreaper=subreaper)
    if why_cold is None:
        forkservers = ForkServers(
            python=options.python,
            environment=forkserver_environment(
                worker_environment=options.environment, settings=settings.child_environment
            ),
            make=partial(ForkServer, preload=settings.headrace.preload, launcher=launcher),
            directory=options.state.path,
            monotonic=anyio.current_time,
        )
    sparing = Sparing(
        client=client,
        in_flight=in_flight,
        cloud=settings.api.is_cloud,
        wake=freed,
        monotonic=anyio.current_time,
    )

    def observe(seconds: float, failed: bool) -> None:
        pacing.observe(seconds, failed)
        if failed:
            sparing.failed()

    client.transport.watch(observe)
    outbox = Outbox(
        client=client,
        now=utc_now,
        redact=options.redact,
        enabled=settings.logging.to_api_enabled,
        max_message=settings.logging.to_api_max_log_size,
        interval=settings.logging.to_api_batch_interval,
        calm=lambda: poller.ended or (poller.idle and not len(in_flight)),
        hold=sparing.pause,
        many_writers=lambda: sparing.needless,
    )
    events = WorkerEvents(outbox=outbox, worker_name=options.name, version=__version__)
    gate = ClaimGate(
        journal=journal,
        free_bytes=partial(free_bytes, options.state.path),
        free_memory=available_memory,
        min_free_memory=settings.headrace.min_free_memory,
        monotonic=anyio.current_time,
    )
    readings = Readings(client=client, pool=pool, monotonic=anyio.current_time)
    preparation = Preparation(
        client=client,
        readings=readings,
        mode=options.job_variables,
        python=options.python,
        interpreters=Interpreters(),
        worker_name=options.name,
        worker_environment=options.environment,
        settings=settings.child_environment,
        sleep=anyio.sleep,
        hide=options.hide,
    )
    services = Services(
        client=client,
        metrics=metrics,
        claims=Claims(client=client, sleep=anyio.sleep),
        states=States(client=client, redact=options.redact),
        preparation=preparation,
        launcher=launcher,
        readying=Readying(
            preparation=preparation,
            starter=Starter(launcher=launcher, forkservers=forkservers, why_cold=why_cold),
        ),
        control=control,
        journal=journal,
        gate=gate,
        stopping=stopping,
        in_flight=in_flight,
        leads=leads,
        outbox=outbox,
        events=events,
        hooks=HookRunner(launcher=launcher, mask=options.mask),
        python=options.python,
        now=utc_now,
        worker_name=options.name,
        hostname=socket.gethostname(),
        runs_directory=options.state.runs,
        kill_grace=settings.headrace.kill_grace_seconds,
        output_limit=settings.headrace.output_limit,
        print_output=options.print_output,
        mask=options.mask,
    )

    def start(flow_run: FlowRun, skip: str | None = None) -> Execution:
        execution = Execution(flow_run=flow_run, services=services, skip=skip)
        executions.start_soon(execution.run)
        return execution

    questions = Questions(
        client=client,
        pool=options.pool,
        work_queues=options.work_queues,
        answered=readings.answered,
        now=utc_now,
    )
    poller = Poller(
        questions=questions,
        serving=Serving(
            questions=questions,
            leads=leads,
            in_flight=in_flight,
            start=start,
            skip=start,
            max_late=settings.headrace.max_late,
            latest=LatestRuns(client=client, now=utc_now) if settings.headrace.only_latest else None,
            marking=sparing.marking,
            tidying=sparing.tidying,
            pause=sparing.pause,
            now=utc_now,
        ),
        agenda=Agenda(
            interval=settings.worker.query_seconds, random=random.random, monotonic=anyio.current_time
        ),
        leads=leads,
        in_flight=in_flight,
        wake=freed,
        may_claim=gate.closed,
        pause=sparing.pause,
        now=utc_now,
        run_once=options.run_once,
        sleep=anyio.sleep,
        settled=readings.settled,
        shortcut=Shortcut(
            questions=questions,
            enabled=not settings.api.is_cloud,
            pool=lambda: pool.current,
            pool_of=readings.pool_ahead,
            settled=readings.settled,
            monotonic=anyio.current_time,
        ),
    )
    cancellations = Cancellations(
        client=client,
        in_flight=in_flight,
        interval=settings.headrace.cancel_poll_seconds,
        sleep=anyio.sleep,
    )

    def scheduled(heard: Heard) -> None:
        sparing.made(heard.flow_run_id)
        claimable(heard)

    def ended(heard: Heard) -> None:
        sparing.arrivals.ended(heard.flow_run_id)
        cancellations.hint_end(heard.flow_run_id)

    def deployment_changed(_: Heard) -> None:
        readings.forget()
        poller.expect_scheduler()

    def claimable(heard: Heard) -> None:
        if heard.flow_run_id and heard.deployment_id and poller.would_start:
            attending.start_soon(readings.read_ahead, heard.flow_run_id, heard.deployment_id)
            poller.hint(heard.flow_run_id)
        else:
            poller.hint()

    push = EventStream(
        transport=client.transport,
        settings=settings.api,
        work_pool_id=lambda: pool.current.id if pool.current is not None else None,
        bells={
            FLOW_RUN_CANCELLING: lambda heard: cancellations.hint(heard.flow_run_id),
            FLOW_RUN_LATE: lambda heard: sparing.marked(heard.flow_run_id),
            **dict.fromkeys(FLOW_RUN_ENDED, ended),
            **dict.fromkeys(FLOW_RUN_CLAIMABLE, claimable),
            FLOW_RUN_SCHEDULED: scheduled,
            **dict.fromkeys(DEPLOYMENT_CHANGED, deployment_changed),
        },
        random=random.random,
    )
    return Parts(
        client=client,
        metrics=metrics,
        pacing=pacing,
        push=push,
        pool=pool,
        poller=poller,
        cancellations=cancellations,
        outbox=outbox,
        launcher=launcher,
        forkservers=forkservers,
        in_flight=in_flight,
        freed=freed,
        events=events,
        reaper=OrphanReaper(),
        journal=journal,
        recovery=Recovery(
            services=services, executions=executions, settling=attending, clock=time.time, now=utc_now
        ),
        lost_runs=LostRuns(
            services=services, pool=options.pool, work_queues=options.work_queues, now=utc_now
        ),
        stopping=stopping,
        sparing=sparing,
    )
