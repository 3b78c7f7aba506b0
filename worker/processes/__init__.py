"""Everything done to the operating system: starting, watching and ending the processes of flow runs.

Map of the package:

- `launcher`     a `LaunchSpec` becomes a running process in its own session, its output in a file
- `process`      `ProcessHandle`, one live child: identity, wait, interrupt, stop, kill; `Exit`, how it ended
- `tree`         which processes belong to a run, how all of them are ended, who reaps what is re-parented to us
                 (`process_table`: how it is read)
- `output`       following the output file while it grows, and its last lines once the run is dead
- `control`      the loopback channel on which an engine hears why it is stopped and says what it concluded
                 (`control_messages`: the words they use)
- `interpreter`  what the Python that runs the flows is, and whether Prefect is installed for it

Nothing here knows the Prefect API, a flow run's state, or what is to be concluded from an exit: `worker.runs` does.
"""
