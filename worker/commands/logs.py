"""`headrace logs`: what a run in flight has printed so far, and goes on printing.

Owns finding the run's output file and when following it ends. The file belongs to the run's directory, which its daemon
removes when the run is over. Secrets of the settings are masked, as where the daemon prints the output.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

import anyio

from worker.commands.daemons import Attempt, attempts, find_daemons, the_one
from worker.commands.session import EXIT_DONE, CommandError
from worker.log import Redactor
from worker.processes.file_locks import lock_holder
from worker.processes.output import follow
from worker.processes.process_table import boot_id, read_process
from worker.runs.journal_entry import Entry, Phase
from worker.runs.journal_reader import JournalUnreadable, read_journal
from worker.runs.workspace import Workspace
from worker.settings import Settings

_LOOK_INTERVAL: Final = 0.5


def logs(arguments: argparse.Namespace, settings: Settings, *, stdout: TextIO) -> int:
    """Print the output of the run; with `--follow` until the run has ended. Raises CommandError."""
    root: Path = settings.headrace.state_dir
    found = the_one(attempts(find_daemons(root, pool=arguments.pool, name=arguments.name)), arguments.run)
    if found is None:
        raise CommandError(_not_here(arguments.run, root))
    mask = Redactor(settings.api.secrets())

    def sink(line: str) -> None:
        stdout.write(f"{line}\n")
        if arguments.follow:
            stdout.flush()

    try:
        anyio.run(_print, found, arguments.follow, sink, mask)
    except KeyboardInterrupt:
        return EXIT_DONE
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(
            f"the output of run {found.entry.flow_run_id} cannot be read: {error.strerror}"
        ) from error
    return EXIT_DONE


def _not_here(text: str, root: Path) -> str:
    return (
        f"no run in flight here (state directory {root.expanduser()}) is called {text!r}. The output of a run is removed"
        " when the run is over: what it logged, and the last lines of its output if it crashed, are in its log on the"
        " server: `prefect flow-run logs ID`, or the run's page"
    )


async def _print(
    attempt: Attempt,
    go_on: bool,
    sink: Callable[[str], None],
    mask: Redactor,
) -> None:
    done = anyio.Event()
    problem: OSError | None = None
    async with anyio.create_task_group() as tasks:
        if go_on:
            directory = await _directory(attempt)
            tasks.start_soon(_wait_for_end, attempt, done)
        else:
            directory = attempt.entry.directory
            done.set()
        if directory is not None:
            try:
                await follow(Workspace(Path(directory)).output, sink=sink, done=done, mask=mask)
            except OSError as error:  # raised below, and not in a group
                problem = error
        tasks.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _directory(attempt: Attempt) -> str | None:
    """Wait until the run has a directory; None when it ends without."""
    while True:
        entry = _current(attempt)
        if entry is None or entry.directory is not None:
            return entry and entry.directory
        if is_over(entry, alive=False, attended=_attended(attempt)):
            return None
        await anyio.sleep(_LOOK_INTERVAL)


async def _wait_for_end(attempt: Attempt, done: anyio.Event) -> None:
    while True:
        entry = _current(attempt)
        if is_over(entry, alive=entry is not None and _lives(entry), attended=_attended(attempt)):
            break
        await anyio.sleep(_LOOK_INTERVAL)
    done.set()


def is_over(entry: Entry | None, *, alive: bool, attended: bool) -> bool:
    """Whether nothing more can come: the entry is settled, its process has ended, or nobody will start one."""
    if entry is None or entry.phase is Phase.EXITED:
        return True
    if entry.process is not None:
        return not alive
    return not attended


def _lives(entry: Entry) -> bool:
    if entry.process is None or entry.boot != boot_id():
        return False
    found = read_process(entry.process.pid)
    return found is not None and found.identity == entry.process and not found.dead


def _current(attempt: Attempt) -> Entry | None:
    """The entry as it is now; as it was known where the journal cannot be read at present."""
    try:
        entries = read_journal(attempt.daemon.state.journal).entries
    except JournalUnreadable:
        return attempt.entry
    return next((entry for entry in entries if entry.attempt == attempt.entry.attempt), None)


def _attended(attempt: Attempt) -> bool:
    return lock_holder(attempt.daemon.state.lock) is not None
