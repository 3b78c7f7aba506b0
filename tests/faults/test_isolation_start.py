"""One bad run hurts no other and never the daemon: a table of runs that cannot start.

One daemon with two slots gets all of them, each with a healthy run beside it. What is asserted of each: it ends, with
a message that names the cause; its neighbour completes. Of all: both slots are free, nothing is left.
"""

from pathlib import Path

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


def prepare(directory: Path) -> None:
    """The files that the table speaks of."""
    (directory / "raises.py").write_text("raise RuntimeError('broken on import, on purpose')\n")
    (directory / "closes.py").write_text(
        "import os, sys\nfrom prefect import flow\n\n@flow\ndef closes():\n"
        "    sys.stdout.close()\n    sys.stderr.close()\n    os.close(1)\n    os.close(2)\n"
    )
    for name, text, mode in (
        ("not-executable.sh", "#!/bin/sh\ntrue\n", 0o644),
        ("lost-interpreter.sh", "#!/no/such/interpreter\n", 0o755),
        ("just-text", "this is no program\n", 0o755),
    ):
        (directory / name).write_text(text)
        (directory / name).chmod(mode)
    (directory / "closed").mkdir(mode=0)


def code() -> dict[str, Bad]:
    """What is wrong with the flow's code: the engine says so, in its output."""
    return {
        "code file missing": Bad(
            entrypoint="nowhere.py:flow", words=("status code: 1", "output"), logged="nowhere.py"
        ),
        "module raises on import": Bad(
            entrypoint="raises.py:flow",
            words=("status code: 1", "output"),
            logged="broken on import, on purpose",
        ),
        "flow closes its stdout": Bad(entrypoint="closes.py:closes", state="COMPLETED"),
    }


def variables() -> dict[str, Bad]:
    """Job variables that no process can be made of."""
    return {
        "env is null": Bad(patched={"env": None}, words=("env must be an object", "null", "deployment")),
        "env is a list": Bad(patched={"env": ["A=1"]}, words=("env must be an object", "list", "deployment")),
        "command is a number": Bad(patched={"command": 7}, words=("command must be a string", "number")),
        "working_dir is a number": Bad(
            patched={"working_dir": 7}, words=("working_dir must be a string", "number")
        ),
        "stream_output is nonsense": Bad(
            patched={"stream_output": "perhaps"}, words=("stream_output must be true or false",)
        ),
        "several are wrong": Bad(
            patched={"command": 7, "working_dir": []}, words=("command must be", "working_dir must be")
        ),
        "block is missing": Bad(
            variables={"env": {"A": "{{ prefect.blocks.secret.no-such-block }}"}},
            words=("env.A", "no block 'no-such-block' of type 'secret'"),
        ),
        "block reference is incomplete": Bad(
            variables={"env": {"A": "{{ prefect.blocks.secret }}"}}, words=("env.A", "prefect.blocks.secret")
        ),
        "referenced block is missing": Bad(
            patched={"env": {"A": {"$ref": {"block_document_id": "00000000-0000-0000-0000-000000000000"}}}},
            words=("env.A", "no block document", "00000000-0000-0000-0000-000000000000"),
        ),
        # Prefect's rule: an unknown variable is empty text; what it leaves behind is what goes wrong.
        "variable is missing": Bad(
            variables={"working_dir": "/no-such-root/{{ prefect.variables.no_such_variable }}/x"},
            words=("working directory", "/no-such-root/", "does not exist"),
        ),
        "variable has a wrong type": Bad(
            patched={"command": "{{ prefect.variables.isolation_list }}"},
            words=("command must be a string", "list"),
        ),
        "env name is impossible": Bad(
            variables={"env": {"A=B": "x"}}, words=("'A=B'", "name of an environment variable")
        ),
        "env value has a NUL": Bad(
            patched={"env": {"BAD": "a\0b"}}, words=("environment variable BAD", "NUL character")
        ),
        "env value is too big": Bad(
            variables={"env": {"BIG": "x" * 200_000}}, words=("environment variable BIG", "bytes", "file")
        ),
        "env is too big": Bad(
            variables={"env": {f"BIG_{number}": "x" * 100_000 for number in range(40)}},
            words=("more than the system takes", "BIG_", "file"),
        ),
        "env values of wrong types become text": Bad(
            state="COMPLETED",
            statements=RUNNING
            + "e = os.environ; ok = (e['N'], e['T'], e['L'], e['D']) == ('1', 'True', \"['a']\", \"{'a': 1}\");"
            " report('COMPLETED' if ok else 'FAILED')",
            patched={"env": {"N": 1, "T": True, "L": ["a"], "D": {"a": 1}}},
        ),
    }


def commands(directory: Path) -> dict[str, Bad]:
    """Commands and directories with which nothing starts, or nothing that runs the flow."""
    script, lost, text, closed, file = (
        directory / name
        for name in ("not-executable.sh", "lost-interpreter.sh", "just-text", "closed", "job.py")
    )
    return {
        "command not found": Bad(
            command="no-such-program --now", words=("'no-such-program'", "is not in PATH")
        ),
        "command's path not found": Bad(
            command="/no/such/program", words=("/no/such/program", "does not exist")
        ),
        "command not executable": Bad(
            command=str(script), words=(script.name, "may not be executed", "chmod +x")
        ),
        "command's interpreter missing": Bad(command=str(lost), words=(lost.name, "interpreter")),
        "command is no program": Bad(command=str(text), words=(text.name, "#! line")),
        "command is a directory": Bad(command=str(directory), words=("is a directory",)),
        "command is whitespace": Bad(command=" \t ", words=("command", "empty")),
        "command has an open quotation": Bad(command='sh -c "never', words=("'command'", "quotation")),
        "command has a NUL": Bad(patched={"command": "tr\0ue"}, words=("argument 0", "NUL character")),
        "shell finds no command": Bad(
            command="sh -c 'no-such-program'", words=("status code: 127", "not found")
        ),
        "shell may not execute": Bad(
            command=f"sh -c {script}", words=("status code: 126", "could not be executed")
        ),
        "command does nothing": Bad(command="true", words=("status code: 0", "Pending", "without finishing")),
        "command only begins": Bad(
            statements="report('RUNNING')", words=("status code: 0", "Running", "without finishing")
        ),
        "working_dir missing": Bad(
            variables={"working_dir": str(directory / "missing")},
            words=("working directory", "missing", "does not exist"),
        ),
        "working_dir is a file": Bad(
            variables={"working_dir": str(file)}, words=(file.name, "is not a directory")
        ),
        "working_dir is below a file": Bad(
            variables={"working_dir": str(file / "below")}, words=(file.name, "not a directory")
        ),
        "working_dir may not be entered": Bad(
            variables={"working_dir": str(closed)}, words=("closed", "may not be entered")
        ),
        "working_dir is too long": Bad(variables={"working_dir": "/" + "x" * 5000}, words=("name too long",)),
    }


def rows(directory: Path) -> dict[str, Bad]:
    return code() | variables() | commands(directory)


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
    prepare(jobs.directory)
    jobs.api.create_variable("isolation_list", ["a"])
    return run_table(jobs, rows(jobs.directory), patience=PATIENCE)


@pytest.mark.parametrize("case", rows(Path("/")))
def test_it_ends_and_its_cause_is_named(case: str, table: Table, jobs: Jobs) -> None:
    assert_as_described(table, case, jobs)


def test_the_neighbour_completes_the_slots_are_free_and_nothing_is_left(
    table: Table, worker: Worker, jobs: Jobs
) -> None:
    assert_neighbour_is_well(table, worker, jobs)
    assert_all_is_free(worker, jobs, slots=SLOTS)
