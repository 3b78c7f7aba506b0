"""What the daemon does not load, and that everything is as before afterwards."""

import gc
import importlib
import json
import os
import subprocess
import sys

import pytest

from worker.lean_imports import UNUSED, lean_imports

SPARE = "colorsys"
PLUGINS = "PYDANTIC_DISABLE_PLUGINS"
# As `headrace start` imports the daemon; then what is loaded, and HTTP/2 as its setting asks for it.
PROBE = """
import json, sys
from worker.lean_imports import lean_imports
with lean_imports():
    import worker.start
loaded = sorted(sys.modules)
import httpx, importlib.util
if importlib.util.find_spec("h2") is not None:
    httpx.AsyncClient(http2=True)
    from httpcore._async.http2 import AsyncHTTP2Connection
print(json.dumps(loaded))
"""


def test_what_is_kept_out_is_missing_meanwhile_and_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, SPARE, raising=False)
    with pytest.raises(ImportError), lean_imports([SPARE]):
        importlib.import_module(SPARE)
    assert importlib.import_module(SPARE).rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_what_is_loaded_already_stays() -> None:
    with lean_imports(["json"]):
        assert importlib.import_module("json") is json
    assert sys.modules["json"] is json


@pytest.mark.parametrize("before", [None, "logfire-plugin"])
def test_environment_and_collector_are_left_as_they_were(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PLUGINS, raising=False)
    if before is not None:
        monkeypatch.setenv(PLUGINS, before)
    with lean_imports():
        assert not gc.isenabled()
        assert os.environ[PLUGINS] == "__all__"
    assert os.environ.get(PLUGINS) == before
    assert gc.isenabled()


def test_the_daemon_loads_nothing_that_it_does_not_need_to_start() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)} | set(json.loads(done.stdout))
    assert not loaded & {*UNUSED, "prefect", "jinja2", "psutil", "wsproto", "dotenv", "http.server"}
    assert "worker.daemon" in loaded


def test_what_carries_out_runs_is_loaded_later() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    later = {
        "worker.assembly",
        "worker.observers",
        "worker.processes.control",
        "worker.runs.execution",
        "worker.runs.job_variables",
        "worker.runs.preparation",
        "worker.runs.recovery",
        "wsproto",
    }
    assert not later & set(json.loads(done.stdout))
