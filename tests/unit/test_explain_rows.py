"""The environment's layers and the job's, put together: who set a variable, and whom it won over."""

from typing import Any

import pytest

from tests.support.job_variable_resolving import default_with, inputs_of, resolved
from worker.explain.rows import Row, environment_rows, job_rows, label_rows
from worker.runs.launch_spec import environment_layers


def rows_of(
    *,
    deployment: dict[str, Any] | None = None,
    flow_run: dict[str, Any] | None = None,
    everything: bool = False,
    layers: dict[str, dict[str, str]] | None = None,
) -> dict[str, Row]:
    layers = layers or {}
    template = default_with(env={"D": "default", "N": "default"})
    job = resolved(inputs_of(template=template, deployment=deployment, flow_run=flow_run))
    merged = environment_layers(
        worker_environment=layers.get("worker", {}),
        settings=layers.get("settings", {}),
        attributed=layers.get("attributed", {}),
        job=job.env,
        protected=layers.get("protected", {}),
        command_configured=job.command is not None,
    )
    sources = {"PREFECT_LOGGING_LEVEL": "profile 'lab'"}
    rows = environment_rows(job, merged, sources, everything=everything)
    return {row.key: row for row in (*job_rows(job), *rows, *label_rows(job))}


def told(row: Row) -> tuple[Any, str, tuple[str, ...]]:
    return row.value, row.layer, row.overrode


def test_a_job_variable_wins_over_what_is_below_it() -> None:
    rows = rows_of(
        deployment={"env": {"A": "dep"}}, flow_run={"env.A": "run"}, layers={"worker": {"A": "worker"}}
    )
    assert told(rows["env.A"]) == ("run", "flow run", ("worker environment", "deployment"))
    assert told(rows["env.D"]) == ("default", "pool default", ())
    assert "env.HOME" not in rows


def test_a_command_lets_the_settings_win() -> None:
    name = "PREFECT_LOGGING_LEVEL"
    layers = {"settings": {name: "INFO"}, "worker": {name: "WARNING"}}
    engine = rows_of(deployment={"env": {name: "DEBUG"}}, layers=layers)[f"env.{name}"]
    assert told(engine) == ("DEBUG", "deployment", ("worker environment", "prefect settings"))
    command = rows_of(deployment={"env": {name: "DEBUG"}, "command": "x"}, layers=layers)[f"env.{name}"]
    assert told(command) == ("INFO", "prefect settings", ("worker environment", "deployment"))
    assert command.filled_by == ("profile 'lab'",)


def test_nobody_wins_over_the_runs_own() -> None:
    name = "PREFECT__FLOW_RUN_ID"
    rows = rows_of(flow_run={"env": {name: "other"}}, layers={"protected": {name: "mine"}})
    assert told(rows[f"env.{name}"]) == ("mine", "the run's own", ("flow run",))


def test_a_null_lets_the_worker_environment_show_through() -> None:
    shows = rows_of(deployment={"env": {"N": None}}, layers={"worker": {"N": "worker"}})["env.N"]
    assert told(shows) == ("worker", "worker environment", ())
    assert shows.nulled == "deployment"
    assert shows.provenance()["nulled"] == "deployment"
    hidden = rows_of(deployment={"env": {"N": None}})["env.N"]
    assert told(hidden) == (None, "deployment", ("pool default",))


def test_everything_is_the_whole_environment() -> None:
    layers = {"worker": {"HOME": "/h"}, "attributed": {"PREFECT__WORKER_NAME": "w"}}
    rows = rows_of(everything=True, layers=layers)
    assert told(rows["env.HOME"]) == ("/h", "worker environment", ())
    assert told(rows["env.PREFECT__WORKER_NAME"]) == ("w", "attribution", ())
    default = rows["env.PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED"]
    assert told(default) == ("false", "headrace default", ())


def test_an_undeclared_variable_names_its_layer() -> None:
    row = rows_of(flow_run={"MY_VAR": 42})["env.MY_VAR"]
    assert (row.value, row.layer, row.on) == ("42", "undeclared", "flow run")
    assert rows_of(flow_run={"MY_VAR": 1, "env": {"MY_VAR": 2}})["env.MY_VAR"].overrode == ("undeclared",)


@pytest.mark.parametrize("key", ["command", "python", "working_dir", "stream_output", "name"])
def test_there_is_a_row_for_each_key(key: str) -> None:
    assert rows_of()[key].key == key
    assert rows_of(flow_run={"labels": {"a": "b"}})["labels.a"].value == "b"
