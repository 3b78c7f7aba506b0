"""Which runs may be started warm, from what can be told without trying."""

from pathlib import Path
from typing import Any

import pytest

from worker.processes.launch_problems import LARGEST_STRING, LaunchSpec
from worker.runs.start_method import LARGEST, eligible_for_warm_start, installing_step

PYTHON = "/opt/flows/bin/python"
ENVIRONMENT = {"PATH": "/usr/bin", "HOME": "/home/flows", "LANG": "C.UTF-8", "PREFECT_API_URL": "http://api"}


def reason(
    *,
    env: dict[str, str] | None = None,
    argv: tuple[str, ...] = (PYTHON, "-m", "prefect.engine"),
    command_configured: bool = False,
    pull_steps: Any = None,
    largest: int = LARGEST,
) -> str | None:
    return eligible_for_warm_start(
        spec=LaunchSpec(argv=argv, env=env or ENVIRONMENT, cwd=Path("/srv"), stream_output=True),
        command_configured=command_configured,
        pull_steps=pull_steps,
        environment=ENVIRONMENT,
        largest=largest,
    )


def test_an_engine_with_the_daemons_own_environment_is_started_warm() -> None:
    assert reason() is None


@pytest.mark.parametrize(
    "added",
    [
        {"MY_TOKEN": "x"},
        {"PREFECT_LOGGING_LEVEL": "DEBUG"},
        {"PREFECT__FLOW_RUN_ID": "1"},
        {"TZ": "Asia/Tokyo"},
        {"PATH": "/other/bin"},
        {"HTTPS_PROXY": "http://proxy:3128"},
        {"LANGUAGES": "no variable of the C library"},
        {"BIG": "x" * (LARGEST_STRING - len("BIG=") - 1)},
    ],
)
def test_variables_that_are_read_when_they_are_needed_do_not_matter(added: dict[str, str]) -> None:
    assert reason(env={**ENVIRONMENT, **added}) is None


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONPATH",
        "PYTHONHASHSEED",
        "PYTHONOPTIMIZE",
        "LD_PRELOAD",
        "LC_ALL",
        "LANG",
        "HOME",
        "GLIBC_TUNABLES",
        "MALLOC_ARENA_MAX",
        "OPENSSL_CONF",
        "OMP_NUM_THREADS",
        "COVERAGE_PROCESS_START",
    ],
)
def test_variables_that_are_read_once_go_cold_and_are_named(name: str) -> None:
    found = reason(env={**ENVIRONMENT, name: "another"})
    assert found is not None
    assert name in found
    assert "another" not in found  # a value may be a secret


def test_a_variable_that_the_run_does_not_have_counts_too() -> None:
    found = reason(env={name: value for name, value in ENVIRONMENT.items() if name != "LANG"})
    assert found is not None
    assert "LANG" in found


def test_the_reason_is_the_first_that_applies() -> None:
    found = reason(env={**ENVIRONMENT, "LANG": "de_DE.UTF-8"}, command_configured=True)
    assert found == "it has a command of its own"


def test_another_interpreter_is_no_reason_as_each_has_a_fork_server() -> None:
    assert reason(argv=("/usr/bin/python3", "-m", "prefect.engine")) is None


def test_what_exec_would_refuse_is_not_started_warm() -> None:
    assert reason(env={**ENVIRONMENT, "BIG": "é" * (LARGEST_STRING // 2)}) is not None


PULL_STEPS: list[tuple[Any, str | None]] = [
    (None, None),
    ([], None),
    ("not a list", None),
    (["not a step"], None),
    ([{"prefect.deployments.steps.git_clone": {"repository": "https://x/pip.git"}}], None),
    ([{"prefect.deployments.steps.set_working_directory": {"directory": "/srv/uv"}}], None),
    ([{"prefect.deployments.steps.run_shell_script": {"script": "echo pipeline"}}], None),
    ([{"prefect.deployments.steps.run_shell_script": None}], None),
    (
        [{"prefect.deployments.steps.run_shell_script": {"script": "cd x\nuv pip install -e ."}}],
        "prefect.deployments.steps.run_shell_script",
    ),
    (
        [
            {"prefect.deployments.steps.git_clone": {}},
            {"prefect.deployments.steps.pip_install_requirements": {}},
        ],
        "prefect.deployments.steps.pip_install_requirements",
    ),
]


@pytest.mark.parametrize(("pull_steps", "step"), PULL_STEPS)
def test_pull_steps_that_may_install_packages_are_found(pull_steps: Any, step: str | None) -> None:
    assert installing_step(pull_steps) == step
    assert (reason(pull_steps=pull_steps) is None) == (step is None)


def test_an_environment_that_no_command_could_be_given_goes_cold() -> None:
    many = {f"V{number}": "x" * 1000 for number in range(100)}
    assert reason(env={**ENVIRONMENT, **many}) is None
    assert reason(env={**ENVIRONMENT, **many}, largest=100_000) == (
        "its environment is larger than the system takes"
    )
