"""The pipeline: how a due flow run becomes a process and an answer to the server.

A run passes through these modules, each step handing a frozen value to the next:

    work_pool      the pool is found or created, kept ready, and read afresh (readings: with a run's deployment)
    poller         asks for due runs, as many as there are free slots (shortcut: or reads the one it has heard of)
    serving        starts or skips the runs of an answer, in the server's order, while it is fresh
    execution      one attempt of one run, from claim to report; reads as the list of steps below
      claims         Scheduled -> Pending, won once among all workers
      automations    job variables that an automation left as templates are rendered
      job_variables  the layers become one job configuration (placeholders fills the values in)
      launch_spec    configuration, settings and attribution become argv, environment and directory
      (processes)    the process is started, watched and ended by the package beside this one
      attendance     the process is attended to until it ends, or the daemon's end cuts it short or leaves it
      supervision    it is noted, listened to, its output bounded, cancelled if need be, cleaned up after
      conclusion     how the process ended and what the server says become one outcome
      reports        the outcome is told: states has the transitions (Crashed, Cancelled, Scheduled again)
      hook_duty      the hooks that a dead engine cannot run any more are run by a helper (hooks, hooks_main)
    record         the attempt's entry in the journal, written before each of these steps
    recovery       what an earlier daemon left open in the journal: adopted (adoption), reported, given back
    lost_runs      what the server has as ours and no journal knows
    lateness       which runs of schedules have been missed for good
    late_marking   when the server had better be left alone, as it marks runs (and arrivals: as somebody makes them)
    tidying        when the server had better collect its garbage (sparing: these judgements as one)
    claim_gate     whether this machine can take another run at all
    cancellations  asks which runs in flight are being cancelled
    in_flight      the executions that hold a slot: the one list of what is going on
    outbox         the daemon's lines in the run's own log, and its events, sent in the background

This is the only package that knows both the server (`worker.api`) and the operating system
(`worker.processes`). Decisions are pure functions over plain values; effects are thin.
"""
