"""What `headrace doctor` makes of what it finds: tables of findings and judgements."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from worker.api.errors import ApiError, NotFound, Unauthorized, Unreachable
from worker.api.models import WorkPool
from worker.api.probe import Reached
from worker.commands.checks import Status, fail, line, ok, report, skipped, warn
from worker.commands.machine_checks import (
    Place,
    judge_disk,
    judge_fork_server,
    judge_interpreter,
    judge_kernel,
    judge_limits,
    judge_memory,
    judge_place,
    look_at,
)
from worker.commands.server_findings import (
    is_loopback,
    judge_clock,
    judge_credentials,
    judge_csrf,
    judge_pool,
    judge_reached,
    judge_template,
    judge_tls,
    judge_version,
    judge_websocket,
    numbers,
    skew,
)
from worker.processes.interpreter import Interpreter
from worker.processes.kernel import Limits
from worker.settings import ApiSettings, load_settings

ERROR = ApiError("ask", "no luck")
GIB = 1024**3
DAY = 86400.0
NOW = 1_700_000_000.0
REACHED = Reached(status=200, healthy=True, sent=NOW, received=NOW + 0.1, date=NOW)
POOL = WorkPool(id=uuid4(), name="p", type="process", base_job_template={"variables": {}})
UNLIMITED = Limits(open_files=None, processes=None, group_processes=None, group_memory=None)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> ApiSettings:
    directory = tmp_path_factory.mktemp("settings")
    environ = {"HOME": str(directory), "PREFECT_API_URL": "http://127.0.0.1:4200/api"}
    return load_settings(environ=environ, cwd=directory).api


def test_lines_and_report() -> None:
    checks = [
        ok("a", "well"),
        warn("b", "odd", "Mend it"),
        fail("c", "broken.", "Replace it"),
        skipped("d", "no c"),
    ]
    assert [line(check) for check in checks] == [
        "ok      a: well.",
        "warn    b: odd. Mend it.",
        "FAIL    c: broken. Replace it.",
        "skipped d: no c.",
    ]
    assert report(checks)["ok"] is False
    assert report(checks[:2]) == {
        "ok": True,
        "checks": [
            {"check": "a", "status": "ok", "found": "well", "advice": ""},
            {"check": "b", "status": "warn", "found": "odd", "advice": "Mend it"},
        ],
    }
    assert "\n" not in line(ok("a", "two\nlines"))


@pytest.mark.parametrize(
    ("reached", "status", "words"),
    [
        (REACHED, Status.OK, "100 ms"),
        (replace(REACHED, healthy=False, status=404), Status.FAIL, "/api?"),
        (Unreachable("ask", "connection refused"), Status.FAIL, "connection refused"),
    ],
)
def test_reached(reached: Reached | ApiError, status: Status, words: str) -> None:
    check = judge_reached("http://h/api", reached)
    assert check.status is status
    assert words in line(check)


@pytest.mark.parametrize(
    ("url", "secret", "insecure", "expires", "status", "words"),
    [
        ("http://127.0.0.1:4200/api", True, False, None, Status.OK, "not used"),
        ("http://prefect.example/api", False, False, None, Status.OK, "not used"),
        ("http://prefect.example/api", True, False, None, Status.WARN, "credentials"),
        ("https://prefect.example/api", True, False, NOW + 90 * DAY, Status.OK, "default certificate bundle"),
        ("https://prefect.example/api", True, False, NOW + 3.5 * DAY, Status.WARN, "3 more days"),
        ("https://prefect.example/api", True, True, None, Status.WARN, "not checked"),
    ],
)
def test_tls(
    api: ApiSettings,
    url: str,
    secret: bool,
    insecure: bool,
    expires: float | None,
    status: Status,
    words: str,
) -> None:
    settings = replace(
        api, url=url, key=SecretStr("key-1234") if secret else None, tls_insecure_skip_verify=insecure
    )
    check = judge_tls(settings, replace(REACHED, expires=expires), now=NOW)
    assert check.status is status
    assert words in line(check)
    assert "key-1234" not in line(check)


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("10.0.0.1", False), ("h", False)],
)
def test_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("date", "ahead"),
    [(NOW, 0.0), (NOW - 0.9, 0.0), (NOW + 10.1, 10.0), (NOW - 11, -10.0), (None, None)],
)
def test_skew(date: float | None, ahead: float | None) -> None:
    found = skew(replace(REACHED, date=date))
    assert found == (ahead if ahead is None else pytest.approx(ahead, abs=0.01))


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (None, Status.SKIPPED),
        (0.0, Status.OK),
        (-2.0, Status.OK),
        (10.0, Status.WARN),
        (-29.0, Status.WARN),
        (31.0, Status.FAIL),
        (-3600.0, Status.FAIL),
    ],
)
def test_clock(found: float | None, status: Status) -> None:
    assert judge_clock(found).status is status


def test_credentials(api: ApiSettings) -> None:
    refused = Unauthorized("count", "Unauthorized", status=401)
    key = replace(api, key=SecretStr("key-1234"))
    assert judge_credentials(api, 3).found == "accepted (none given)"
    assert judge_credentials(key, 3).found == "accepted (PREFECT_API_KEY)"
    assert "PREFECT_API_AUTH_STRING" in judge_credentials(key, refused).advice
    cloud = replace(key, url=f"{key.cloud_api_url}/accounts/a/workspaces/w")
    assert "PREFECT_API_KEY" in judge_credentials(cloud, refused).advice
    assert judge_credentials(api, ERROR).status is Status.FAIL
    inline = replace(api, url="http://user:password-1@h/api")
    assert judge_credentials(inline, 0).found == "accepted (from PREFECT_API_URL)"


def test_csrf_and_websocket() -> None:
    assert judge_csrf(True).found.startswith("on")
    assert judge_csrf(False).found.startswith("off")
    assert judge_csrf(ERROR).status is Status.FAIL
    assert judge_websocket(None).status is Status.OK
    assert judge_websocket(ERROR).status is Status.WARN


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("3.8.8", Status.OK),
        ("3.0.0", Status.OK),
        (None, Status.OK),
        ("3.9.1", Status.WARN),
        ("2.20.1", Status.FAIL),
        ("4.0.0", Status.FAIL),
        ("0+unknown", Status.FAIL),
        (ERROR, Status.WARN),
    ],
)
def test_version(version: str | ApiError | None, status: Status) -> None:
    assert judge_version(version).status is status


def test_numbers() -> None:
    assert numbers("3.8.8") == (3, 8)
    assert numbers("3.8.8.dev1+7.g") == (3, 8)
    assert numbers("3") == (3, 0)


@pytest.mark.parametrize(
    ("name", "pool", "status"),
    [
        ("p", POOL, Status.OK),
        ("p", POOL.model_copy(update={"type": "docker"}), Status.FAIL),
        ("p", POOL.model_copy(update={"is_paused": True}), Status.WARN),
        ("p", POOL.model_copy(update={"concurrency_limit": 0}), Status.WARN),
        ("p", NotFound("read", "gone", status=404), Status.WARN),
        ("prefect-p", NotFound("read", "gone", status=404), Status.FAIL),
        ("p", ERROR, Status.FAIL),
    ],
)
def test_pool(name: str, pool: WorkPool | ApiError, status: Status) -> None:
    assert judge_pool(name, pool).status is status


def test_template() -> None:
    assert judge_template(POOL, None).status is Status.OK
    assert judge_template(POOL, "no block of that name").status is Status.WARN
    assert judge_template(POOL.model_copy(update={"base_job_template": {}}), None).status is Status.WARN


def test_interpreter_and_fork_server() -> None:
    found = Interpreter(executable="/x/python", python_version="3.11.7", prefect_version="3.8.8")
    assert judge_interpreter(found, "3.8.1").status is Status.OK
    assert judge_interpreter(found, None).status is Status.OK
    assert judge_interpreter(found, "3.7.0").status is Status.WARN
    assert "pandas" in judge_fork_server(None, seconds=2.0, preload=("pandas",)).found
    assert judge_fork_server("it died", seconds=2.0, preload=()).status is Status.WARN


def test_a_state_directory_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    place = look_at(tmp_path / "a" / "b")
    assert (place.existing, place.trouble) == (tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    under_file = look_at(tmp_path / "file" / "b")
    assert under_file.existing == tmp_path / "file"
    assert [check.status for check in judge_place(under_file, worker_known=True)] == [
        Status.FAIL,
        Status.SKIPPED,
    ]


def test_state_directories() -> None:
    place = Place(path=Path("/s"), existing=Path("/s"), trouble=None, free=10 * GIB)

    def status(**facts: object) -> Status:
        return judge_place(replace(place, **facts), worker_known=True)[0].status

    assert status() is Status.OK
    assert status(existing=Path("/")) is Status.OK
    assert status(holder=7, open_entries=2) is Status.OK
    assert status(open_entries=2) is Status.WARN
    assert status(unreadable="by a later version") is Status.FAIL
    assert status(trouble="Read-only file system") is Status.FAIL


def test_disk_memory_limits_kernel() -> None:
    root = Path("/")
    assert judge_disk(root, 10 * GIB).status is Status.OK
    assert judge_disk(root, GIB // 2).status is Status.WARN
    assert judge_disk(root, 1024).status is Status.FAIL
    assert judge_disk(root, None).status is Status.SKIPPED
    assert judge_memory(GIB, least=GIB // 4, limits=UNLIMITED).status is Status.OK
    assert judge_memory(1024, least=GIB // 4, limits=UNLIMITED).status is Status.FAIL
    assert judge_memory(None, least=GIB // 4, limits=UNLIMITED).status is Status.SKIPPED
    limited = judge_memory(GIB, least=0, limits=replace(UNLIMITED, group_memory=2 * GIB))
    assert "limited to 2.0 GiB" in limited.found
    assert judge_limits(UNLIMITED).status is Status.OK
    assert "open files" in judge_limits(replace(UNLIMITED, open_files=256)).found
    assert "100 processes" in judge_limits(replace(UNLIMITED, processes=5000, group_processes=100)).found
    assert judge_kernel(pidfd=True, subreaper=True).status is Status.OK
    assert "pidfds" in judge_kernel(pidfd=False, subreaper=True).found
