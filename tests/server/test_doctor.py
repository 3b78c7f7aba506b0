"""`headrace doctor` against real servers, well and ill."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.api import PrefectApi
from tests.support.daemons import Worker
from tests.support.project import Project
from tests.support.server import PrefectServer, free_port

pytestmark = [pytest.mark.timeout(300), pytest.mark.thorough]

ROOT = Path(__file__).parent.parent.parent
# A fork server takes seconds; where it is not what a test is about, it is left out.
COLD = {"HEADRACE_START_METHOD": "cold"}
OF_THE_SERVER = ["tls", "clock", "credentials", "csrf", "version", "websocket", "work pool", "template"]

Checks = dict[str, dict[str, Any]]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Where nothing has ever been."""
    return tmp_path / "state"


@pytest.fixture
def doctor(prefect_server: PrefectServer, state_dir: Path) -> Callable[..., Checks]:
    """Run `headrace doctor --json`, which must exit with `code`; its checks by name."""

    def examine(
        *arguments: str, code: int, at: PrefectServer | None = None, env: dict[str, str] | None = None
    ) -> Checks:
        finished = (at or prefect_server).python(
            *("-m", "worker.cli", "doctor", "--json", "--state-dir", str(state_dir), *arguments),
            cwd=ROOT,
            env={**COLD, **(env or {})},
            check=False,
        )
        assert finished.returncode == code, finished
        assert finished.stderr == ""
        answer = json.loads(finished.stdout)
        assert answer["ok"] == (code == 0)
        return {check["check"]: check for check in answer["checks"]}

    return examine


def statuses(checks: Checks) -> dict[str, str]:
    return {name: check["status"] for name, check in checks.items()}


def test_all_is_well_and_nothing_is_changed(
    doctor: Callable[..., Checks], prefect_server: PrefectServer, pool: str, api: PrefectApi, state_dir: Path
) -> None:
    before = api.pool(pool)
    checks = doctor("--pool", pool, code=0, env={"HEADRACE_START_METHOD": "warm"})
    assert set(statuses(checks).values()) <= {"ok", "warn"}, checks
    for name in ("server", "credentials", "csrf", "version", "websocket", "work pool", "template"):
        assert checks[name]["status"] == "ok", checks[name]
    assert "3.8.8" in checks["version"]["found"]
    assert sys.executable in checks["interpreter"]["found"]
    assert checks["fork server"]["status"] == "ok", checks["fork server"]
    assert api.workers(pool) == []
    assert {key: value for key, value in api.pool(pool).items() if key != "updated"} == {
        key: value for key, value in before.items() if key != "updated"
    }
    assert not state_dir.exists()
    lines = prefect_server.python(
        *("-m", "worker.cli", "doctor", "--pool", pool, "--state-dir", str(state_dir)), cwd=ROOT, env=COLD
    ).stdout.splitlines()
    assert len(lines) == len(checks)
    assert all(line.startswith(("ok ", "warn ", "skipped ")) for line in lines), lines
    assert any(line.startswith("ok      work pool: ") for line in lines)


def test_beside_a_running_daemon(
    doctor: Callable[..., Checks], worker: Worker, module_project: Project
) -> None:
    checks = doctor(
        *("--pool", module_project.pool, "--name", worker.name, "--state-dir", str(worker.state_dir)), code=0
    )
    assert f"pid {worker.pid}" in checks["state directory"]["found"]


def test_a_server_that_is_not_there(doctor: Callable[..., Checks]) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    checks = doctor("--pool", "any", code=1, env={"PREFECT_API_URL": url})
    assert checks["server"]["status"] == "fail"
    assert url in checks["server"]["found"]
    assert {checks[name]["status"] for name in OF_THE_SERVER} == {"skipped"}
    assert checks["interpreter"]["status"] == "ok"


def test_an_address_that_is_no_api(doctor: Callable[..., Checks], prefect_server: PrefectServer) -> None:
    checks = doctor(code=1, env={"PREFECT_API_URL": prefect_server.api_url.removesuffix("/api")})
    assert checks["server"]["status"] == "fail"
    assert "/api" in checks["server"]["advice"]


def test_no_address_and_no_settings(doctor: Callable[..., Checks]) -> None:
    checks = doctor(code=1, env={"PREFECT_API_URL": ""})
    assert "PREFECT_API_URL" in checks["server"]["found"]
    checks = doctor("--profile", "nobody", code=1)
    assert "nobody" in checks["settings"]["found"]
    assert checks["server"]["status"] == "skipped"


@pytest.mark.long
def test_credentials_and_csrf_tokens(
    doctor: Callable[..., Checks], start_prefect_server: Callable[..., AbstractContextManager[PrefectServer]]
) -> None:
    with start_prefect_server(
        PREFECT_SERVER_API_AUTH_STRING="admin:right-one", PREFECT_SERVER_CSRF_PROTECTION_ENABLED="true"
    ) as strict:
        right = doctor("--pool", "new-pool", code=0, at=strict)
        assert right["credentials"]["status"] == "ok"
        assert right["csrf"]["found"].startswith("on")
        assert right["websocket"]["status"] == "ok"
        assert right["work pool"]["status"] == "warn"
        with strict.api() as api:
            assert api.request("GET", "/work_pools/new-pool").status_code == 404
        wrong = doctor(
            "--pool", "new-pool", code=1, at=strict, env={"PREFECT_API_AUTH_STRING": "admin:wrong-one"}
        )
        assert wrong["server"]["status"] == "ok"
        assert wrong["credentials"]["status"] == "fail"
        assert "PREFECT_API_AUTH_STRING" in wrong["credentials"]["advice"]
        assert wrong["work pool"]["status"] == "skipped"
        assert "wrong-one" not in json.dumps(wrong)
        assert "right-one" not in json.dumps(right)
        refused = strict.python(
            *("-m", "worker.cli", "stop", str(uuid4())),
            cwd=ROOT,
            env={"PREFECT_API_AUTH_STRING": "admin:wrong-one"},
            check=False,
        )
        assert refused.returncode == 3, refused
        assert "credentials" in refused.stderr


def test_pools_that_cannot_be_served(doctor: Callable[..., Checks], api: PrefectApi) -> None:
    other = api.create_pool(kind="kubernetes")
    checks = doctor("--pool", other, code=1)
    assert checks["work pool"]["status"] == "fail"
    assert "'kubernetes'" in checks["work pool"]["found"]
    broken = api.create_pool(template=api.template(configuration={"labels": 7}))
    checks = doctor("--pool", broken, code=0)
    assert checks["template"]["status"] == "warn", checks["template"]


def test_a_state_directory_that_cannot_be_written(
    doctor: Callable[..., Checks], tmp_path: Path, pool: str
) -> None:
    (tmp_path / "file").touch()
    checks = doctor("--pool", pool, "--state-dir", str(tmp_path / "file" / "state"), code=1)
    assert checks["state directory"]["status"] == "fail"
    assert "--state-dir" in checks["state directory"]["advice"]
    assert checks["disk"]["status"] == "skipped"


def test_an_interpreter_without_prefect(doctor: Callable[..., Checks], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.symlink_to(os.path.realpath(sys.executable))
    checks = doctor("--python", str(bare), code=1, env={"PYTHONPATH": ""})
    assert checks["interpreter"]["status"] == "fail"
    assert checks["fork server"]["status"] == "skipped"
    checks = doctor("--python", str(tmp_path / "nowhere"), code=1)
    assert "does not exist" in checks["interpreter"]["found"]
