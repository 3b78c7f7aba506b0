"""Command, environment and directory: the layers of the child's environment, word for word."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from worker.api.models import Deployment, Flow, FlowRun
from worker.runs.job_variables import JobConfiguration
from worker.runs.launch_spec import (
    DEFAULTS,
    CommandError,
    ControlAddress,
    attribution,
    child_environment,
    command_line,
    environment_layers,
    launch_spec,
    protected_environment,
)

RUN = FlowRun.read(
    {"id": str(uuid4()), "name": "amber", "flow_id": str(uuid4()), "deployment_id": str(uuid4())}
)


def child(**layers: Any) -> dict[str, str]:
    return child_environment(environment_layers(**layers))


def environment(*, command_configured: bool, **layers: str) -> dict[str, str]:
    """A variable X set in each of the named layers, to the layer's name."""
    return child(
        worker_environment={"X": "worker", "HOME": "/h"} if "worker" in layers else {"HOME": "/h"},
        settings={"X": "settings"} if "settings" in layers else {},
        attributed={"X": "attributed"} if "attributed" in layers else {},
        job={"X": "job"} if "job" in layers else {},
        protected={"X": "protected"} if "protected" in layers else {},
        command_configured=command_configured,
    )


@pytest.mark.parametrize(
    ("layers", "engine", "command"),
    [
        ("worker settings attributed job protected", "protected", "protected"),
        ("worker settings attributed job", "job", "settings"),
        ("worker settings attributed", "attributed", "settings"),
        ("worker settings", "settings", "settings"),
        ("worker", "worker", "worker"),
        ("worker attributed job", "job", "job"),
        ("worker attributed", "attributed", "attributed"),
    ],
)
def test_the_later_layer_wins(layers: str, engine: str, command: str) -> None:
    chosen = dict.fromkeys(layers.split(), "")
    assert environment(command_configured=False, **chosen) == {**DEFAULTS, "HOME": "/h", "X": engine}
    assert environment(command_configured=True, **chosen) == {**DEFAULTS, "HOME": "/h", "X": command}


def test_a_null_lets_the_worker_environment_show_through() -> None:
    result = child(
        worker_environment={"A": "worker"},
        settings={},
        attributed={},
        job={"A": None, "B": None},
        protected={},
        command_configured=False,
    )
    assert result == {**DEFAULTS, "A": "worker"}


@pytest.mark.parametrize("layer", ["worker_environment", "settings", "attributed", "job"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_yields_to_everybody(name: str, layer: str) -> None:
    layers: dict[str, dict[str, str]] = {
        "worker_environment": {},
        "settings": {},
        "attributed": {},
        "job": {},
    }
    layers[layer] = {name: "said otherwise"}
    for command_configured in (False, True):
        result = child(
            worker_environment=layers["worker_environment"],
            settings=layers["settings"],
            attributed=layers["attributed"],
            job=layers["job"],
            protected={},
            command_configured=command_configured,
        )
        assert result[name] == "said otherwise"


def test_a_job_cannot_take_another_runs_identity() -> None:
    protected = protected_environment(flow_run_id=RUN.id, control=ControlAddress(port=1, token="t"))
    result = child(
        worker_environment={},
        settings={},
        attributed={},
        job={"PREFECT__FLOW_RUN_ID": "other", "PREFECT__CONTROL_PORT": "9"},
        protected=protected,
        command_configured=True,
    )
    assert result == {
        **DEFAULTS,
        "PREFECT__FLOW_RUN_ID": str(RUN.id),
        "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "true",
        "PREFECT__CONTROL_PORT": "1",
        "PREFECT__CONTROL_TOKEN": "t",
    }


def test_without_a_control_channel_none_is_announced() -> None:
    assert "PREFECT__CONTROL_PORT" not in protected_environment(flow_run_id=RUN.id, control=None)


def test_attribution_names_what_is_known() -> None:
    flow = Flow.read({"id": str(uuid4()), "name": "etl"})
    deployment = Deployment.read({"id": str(uuid4()), "name": "nightly"})
    full = attribution(flow_run=RUN, flow=flow, deployment=deployment, worker_name="w", worker_id="id")
    assert full == {
        "PREFECT__WORKER_ID": "id",
        "PREFECT__WORKER_NAME": "w",
        "PREFECT__FLOW_ID": str(RUN.flow_id),
        "PREFECT__FLOW_NAME": "etl",
        "PREFECT__DEPLOYMENT_ID": str(RUN.deployment_id),
        "PREFECT__DEPLOYMENT_NAME": "nightly",
    }
    bare = FlowRun.read({"id": str(uuid4())})
    assert attribution(flow_run=bare, flow=None, deployment=None, worker_name="w", worker_id=None) == {
        "PREFECT__WORKER_NAME": "w"
    }


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (None, ("py", "-m", "prefect.engine")),
        ("python -m prefect.engine", ("python", "-m", "prefect.engine")),
        ("sh -c 'echo \"a b\"'", ("sh", "-c", 'echo "a b"')),
    ],
)
def test_commands_are_split_as_a_shell_would(command: str | None, argv: tuple[str, ...]) -> None:
    assert command_line(command, python="py") == argv


@pytest.mark.parametrize(("command", "words"), [("   ", "empty"), ("echo 'oops", "cannot be split")])
def test_unusable_commands_are_named(command: str, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        command_line(command, python="py")


@pytest.mark.parametrize(
    ("working_dir", "cwd"),
    [(None, Path("/fresh")), ("/srv", Path("/srv")), (".", Path()), ("a/b", Path("a/b"))],
)
def test_the_directory_is_the_configured_one_or_a_fresh_one(working_dir: str | None, cwd: Path) -> None:
    job = JobConfiguration(
        command=None,
        env={},
        labels={},
        name="n",
        python=None,
        stream_output=False,
        working_dir=working_dir,
        provenance={},
    )
    spec = launch_spec(job, python="py", environment={"A": "1"}, fresh_directory=Path("/fresh"))
    assert (spec.cwd, spec.stream_output, spec.env) == (cwd, False, {"A": "1"})
