"""One bad run hurts no other and never the daemon: a table of runs that start and end badly.

The same is asserted as of those that cannot start (`test_isolation_start`); removing their directories is harder.
"""

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import StartWorker, Worker
from tests.support.isolation import (
    Bad,
    Jobs,
    Table,
    assert_all_is_free,
    assert_as_described,
    assert_neighbour_is_well,
    run_table,
    unprivileged,
)
from tests.support.server import PrefectServer

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

SLOTS = 2
# For all runs of the table together, in seconds.
PATIENCE = 300.0
RUNNING = "report('RUNNING'); "


def deaths() -> dict[str, Bad]:
    """Processes that start, and end as no flow should."""
    child = "subprocess.Popen([sys.executable, '-I', '-S', '-c', {!r}])"
    return {
        "exits with 7": Bad(statements=RUNNING + "os._exit(7)", words=("status code: 7",)),
        "kills itself": Bad(
            statements=RUNNING + "os.kill(os.getpid(), signal.SIGKILL)", words=("status code: -9", "SIGKILL")
        ),
        "kills its group": Bad(
            statements=RUNNING + "os.killpg(os.getpgrp(), signal.SIGKILL)",
            words=("status code: -9", "SIGKILL"),
        ),
        "its child kills the group's leader": Bad(
            statements=RUNNING
            + child.format("import os, signal; os.kill(os.getpgrp(), signal.SIGKILL)")
            + "; time.sleep(600)",
            words=("status code: -9", "SIGKILL"),
        ),
        "segmentation fault": Bad(
            statements=RUNNING + "os.kill(os.getpid(), signal.SIGSEGV)", words=("status code: -11", "SIGSEGV")
        ),
        "aborts": Bad(statements=RUNNING + "os.abort()", words=("status code: -6", "SIGABRT")),
        "killed by a signal without a name": Bad(
            statements=RUNNING + "os.kill(os.getpid(), 40)", words=("status code: -40", "signal 40")
        ),
        "raises": Bad(
            statements=RUNNING + "raise RuntimeError('broken on purpose')",
            words=("status code: 1",),
            logged="broken on purpose",
        ),
        "double-forked daemon": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "child = os.fork()\nif child == 0:\n os.setsid()\n if os.fork():\n  os._exit(0)\n time.sleep(600)\n"
            "os.waitpid(child, 0)\nreport('COMPLETED')",
        ),
        "deaf grandchild holds the output": Bad(
            state="COMPLETED",
            statements=RUNNING
            + child.format(
                "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            )
            + "; report('COMPLETED')",
        ),
        "grandchild in another session holds the output": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "subprocess.Popen(['sleep', '600'], start_new_session=True); report('COMPLETED')",
        ),
        "stopped grandchild": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "one = subprocess.Popen(['sleep', '600']); one.send_signal(signal.SIGSTOP); report('COMPLETED')",
        ),
        "closes its stdout": Bad(
            state="COMPLETED", statements=RUNNING + "os.close(1); os.close(2); report('COMPLETED')"
        ),
    }


def replaced(name: str, by: str) -> str:
    """Statements that put something else in the place of a file beside the working directory."""
    return (
        f"place = os.path.join(os.path.dirname(os.getcwd()), {name!r}); "
        f"os.path.exists(place) and os.unlink(place); {by}; "
    )


def directories() -> dict[str, Bad]:
    """What a run does to its own directory; it is to be removed all the same."""
    return {
        "closes its directory": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "os.chmod(os.path.dirname(os.getcwd()), 0o500); os.makedirs('a/b/c'); open('a/b/c/file', 'w').close();"
            " os.chmod('a/b/c', 0o555); os.chmod('a/b', 0); os.mkdir('empty', 0); os.chmod('.', 0); report('COMPLETED')",
        ),
        "deletes its directory": Bad(
            state="COMPLETED", statements=RUNNING + "os.rmdir(os.getcwd()); report('COMPLETED')"
        ),
        "deletes all of its directory": Bad(
            statements=RUNNING
            + "import shutil; say('said before'); shutil.rmtree(os.path.dirname(os.getcwd())); os._exit(7)",
            words=("status code: 7",),
        ),
        "puts a link where all of its directory was": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "import shutil; top = os.path.dirname(os.getcwd()); shutil.rmtree(top); os.symlink('/nowhere', top);"
            " report('COMPLETED')",
        ),
        "puts a link where its directory was": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "work = os.getcwd(); os.rmdir(work); os.symlink('/', work); report('COMPLETED')",
        ),
        "puts a link where its output was": Bad(
            statements=RUNNING + replaced("output", "os.symlink('/etc/hostname', place)") + "os._exit(7)",
            words=("status code: 7",),
        ),
        "puts a pipe where its output was": Bad(
            statements=RUNNING + replaced("output", "os.mkfifo(place)") + "os._exit(7)",
            words=("status code: 7",),
        ),
        "puts a directory where its output was": Bad(
            statements=RUNNING + replaced("output", "os.mkdir(place)") + "os._exit(7)",
            words=("status code: 7",),
        ),
        "puts a pipe where notes on its output were": Bad(
            statements=RUNNING
            + replaced("delivered", "os.mkfifo(place)")
            + "say('on'); time.sleep(1); os._exit(7)",
            words=("status code: 7",),
        ),
        "puts a link where notes on its output were": Bad(
            state="COMPLETED",
            # Where the link leads to, there must be nothing but what the run itself wrote.
            statements=RUNNING
            + "open('mine', 'w').write('precious'); "
            + replaced("delivered", "os.symlink(os.path.abspath('mine'), place)")
            + "say('on'); time.sleep(1); report('COMPLETED' if open('mine').read() == 'precious' else 'FAILED')",
        ),
        "closes its output": Bad(
            statements=RUNNING
            + "os.chmod(os.path.join(os.path.dirname(os.getcwd()), 'output'), 0); os._exit(7)",
            words=("status code: 7",),
        ),
        "digs deep": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "[(os.mkdir('deep'), os.chdir('deep')) for _ in range(3000)]; report('COMPLETED')",
        ),
        "names that are not text": Bad(
            state="COMPLETED",
            statements=RUNNING
            + r"os.mkdir(b'\xff\n'); open(b'\xff\n/\xfe', 'w').close(); report('COMPLETED')",
        ),
    }


def rows() -> dict[str, Bad]:
    return deaths() | directories()


@pytest.fixture(scope="module")
def jobs(api: PrefectApi, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(api=api, pool=api.create_pool(), directory=tmp_path_factory.mktemp("isolation"))


@pytest.fixture(scope="module")
def worker(module_daemon: StartWorker, prefect_server: PrefectServer, jobs: Jobs) -> Worker:
    environment = unprivileged(jobs.directory, prefect_server.env())
    return module_daemon(pool=jobs.pool, args=("--limit", str(SLOTS)), env=environment)


@pytest.fixture(scope="module")
def table(jobs: Jobs, worker: Worker) -> Table:
    """All rows on the server, and all of them over as far as they ever will be."""
    return run_table(jobs, rows(), patience=PATIENCE)


@pytest.mark.parametrize("case", rows())
def test_it_ends_and_its_cause_is_named(case: str, table: Table, jobs: Jobs) -> None:
    assert_as_described(table, case, jobs)


def test_the_neighbour_completes_the_slots_are_free_and_nothing_is_left(
    table: Table, worker: Worker, jobs: Jobs
) -> None:
    assert_neighbour_is_well(table, worker, jobs)
    assert_all_is_free(worker, jobs, slots=SLOTS)
