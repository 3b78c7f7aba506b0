"""What a process forked from a warm one finds is what a fresh interpreter finds; and when it would not, that is said."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.server import scrubbed_environment

OWN = Path(__file__).parents[2] / "worker" / "processes" / "forkserver_main"

# Builds a Warmth, then answers one JSON request per line; "enter" forks, and its child's own output is the answer.
HOST = """
import json, os, sys
own, preload, path = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
os.dup2(2, 1)
os.chdir("/")
sys.path[0:0] = [own, *path]
from departure import Departure
from warmth import PreloadError, Warmth
sys.path.remove(own)
def answer(content):
    answers.write(json.dumps(content).encode() + b"\\n")
try:
    warmth = Warmth(preload=preload, departure=Departure())
except PreloadError as error:
    answer({"failed": str(error)})
    sys.exit()
answer({"ready": True})
while line := requests.readline():
    request = json.loads(line)
    if request["do"] == "stale":
        answer({"value": warmth.stale()})
    elif request["do"] == "refusal":
        answer({"value": warmth.refusal(directory=request["directory"], env=request["env"])})
    else:
        pid = os.fork()
        if not pid:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(request["directory"])
            try:
                warmth.enter(env=request["env"])
                sys.argv = ["-m"]
                exec(request["code"], {"__name__": "__main__"})
            except Exception as error:
                print(type(error).__name__, error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        answer({"value": open(request["output"], errors="surrogateescape").read()})
"""

# What importing Prefect derives from variables, files and the directory.
PICTURE = """
import json, logging, os, time
import prefect.main, prefect.context, prefect.logging.configuration as configuration
context = prefect.context.get_settings_context()
def handler(it):
    console = getattr(it, "console", None)
    return [type(it).__name__, it.level, type(it.formatter).__name__,
            None if console is None else [console.width, console.no_color, console.color_system]]
def state(logger):
    return [logger.level, logger.propagate, logger.disabled, [handler(it) for it in logger.handlers]]
loggers = {n: state(logging.getLogger(n)) for n, v in list(logging.root.manager.loggerDict.items())
           if isinstance(v, logging.Logger)}
loggers["root"] = state(logging.root)
default = [0, True, False, []]
print(json.dumps({
    "profile": [context.profile.name, {s.name: str(v) for s, v in context.profile.settings.items()}],
    "settings": context.settings.model_dump(mode="json"),
    "set": context.settings.to_environment_variables(exclude_unset=True),
    "logging": configuration.PROCESS_LOGGING_CONFIG,
    "loggers": {n: s for n, s in loggers.items() if s != default},
    "environment": dict(os.environ),
    "timezone": [time.tzname, time.timezone, time.localtime(0).tm_hour],
    "home": os.path.isdir(context.settings.home),
}, default=str, sort_keys=True))
"""


@dataclass
class Warm:
    """A process with a Warmth, and the environment and directories it was started with."""

    process: subprocess.Popen[bytes]
    env: dict[str, str]
    root: Path
    opening: dict[str, Any]
    forked: int = 0

    def ask(self, **request: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["value"]

    def stale(self) -> str | None:
        return cast("str | None", self.ask(do="stale"))

    def refusal(self, directory: Path | None = None, **env: str) -> str | None:
        where = str(directory or self.root)
        return cast("str | None", self.ask(do="refusal", directory=where, env=self.env | env))

    def enter(self, code: str, *, directory: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What a forked process that enters this environment and runs this code prints."""
        self.forked += 1
        return cast(
            "str",
            self.ask(
                do="enter",
                code=textwrap.dedent(code),
                directory=str(directory or self.root),
                env=dict(self.env if env is None else env),
                output=str(self.root / f"output-{self.forked}"),
            ),
        )

    def end(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


def start(root: Path, *, mark: str, preload: str = "", path: Path | None = None) -> Warm:
    """Start one; `preload` are modules found in `path`."""
    env = scrubbed_environment(home=root / "home", mark=mark)
    env |= {
        "PREFECT_HOME": str(root / "home" / ".prefect"),
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "PYTHONHASHSEED": "0",  # settings that are sets are shown in an order that depends on it
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(OWN), preload, *([str(path)] if path else [])],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
    )
    assert process.stdout is not None
    return Warm(process=process, env=env, root=root, opening=json.loads(process.stdout.readline()))


def cold(code: str, *, directory: Path, env: Mapping[str, str]) -> str:
    """What a fresh interpreter prints, on both streams."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return finished.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of a user, on the path of the warm process."""
    directory = tmp_path_factory.mktemp("packages")
    (directory / "good_one.py").write_text(
        "import os, random, tempfile\n"
        "PLACE = tempfile.gettempdir()\n"
        "REGION = os.environ.get('REGION_OF_THE_MODULE')\n"
        "ALL = dict(os.environ)\n"
        "UNSEEDED, SEEDED = random.Random(), random.Random(7)\n"
    )
    return directory


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, packages: Path, session_mark: str) -> Iterator[Warm]:
    warm = start(tmp_path_factory.mktemp("warm"), mark=session_mark, preload="good_one", path=packages)
    try:
        assert warm.opening == {"ready": True}
        yield warm
    finally:
        warm.end()


PROFILES = """
active = "other"
[profiles.other]
PREFECT_API_URL = "http://127.0.0.1:2/api"
PREFECT_LOGGING_LEVEL = "ERROR"
[profiles.third]
PREFECT_CLIENT_MAX_RETRIES = "9"
"""
LOGGING = """
version: 1
disable_existing_loggers: false
handlers:
  mine:
    class: logging.StreamHandler
loggers:
  only.mine:
    level: ERROR
    handlers: [mine]
"""


@pytest.mark.parametrize(
    ("env", "files"),
    [
        pytest.param({"PREFECT__FLOW_RUN_ID": "x", "OTHER": "y"}, {}, id="variables of no setting"),
        pytest.param({"PREFECT_LOGGING_LEVEL": "DEBUG"}, {}, id="log level"),
        pytest.param(
            {
                "prefect_api_url": "http://127.0.0.1:3/api",
                "PREFECT_LOGGING_EXTRA_LOGGERS": "mine,yours",
                "PREFECT_LOGGING_ROOT_LEVEL": "ERROR",
            },
            {},
            id="lower case, extra loggers, part of the logging configuration",
        ),
        pytest.param(
            {"TZ": "Asia/Tokyo", "COLUMNS": "77", "FORCE_COLOR": "1", "NO_COLOR": ""},
            {},
            id="terminal and time zone",
        ),
        pytest.param({"PREFECT_PROFILE": "missing"}, {}, id="a profile that is missing is told"),
        pytest.param({}, {".env": "PREFECT_API_URL=http://127.0.0.1:4/api"}, id=".env"),
        pytest.param({}, {"pyproject.toml": "[project]\nname = 'x'"}, id="a project file of nothing"),
        pytest.param(
            {},
            {
                "prefect.toml": "[client]\nmax_retries = 8",
                "pyproject.toml": "[tool.prefect.api]\nurl = 'http://127.0.0.1:5/api'",
            },
            id="prefect.toml and pyproject.toml",
        ),
        pytest.param({"PREFECT_HOME": "home"}, {"home/profiles.toml": PROFILES}, id="home with profiles"),
        pytest.param(
            {"PREFECT_HOME": "home", "PREFECT_PROFILE": "third"},
            {"home/profiles.toml": PROFILES},
            id="profile",
        ),
        pytest.param(
            {"PREFECT_HOME": "made", "PREFECT_LOGGING_SETTINGS_PATH": "log.yml"},
            {"log.yml": LOGGING},
            id="logging file, and a home that is made",
        ),
    ],
)
def test_settings_and_logging_are_those_of_a_fresh_interpreter(
    warm: Warm, tmp_path: Path, env: dict[str, str], files: dict[str, str]
) -> None:
    pictures: list[tuple[str, dict[str, Any]]] = []
    directory = tmp_path / "project"
    for ask in (warm.enter, cold):
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        directory.mkdir(exist_ok=True)
        *said, picture = ask(PICTURE, directory=directory, env=warm.env | env).splitlines()
        # Lines of the log begin with the time.
        pictures.append(("\n".join(line.partition("|")[2] or line for line in said), json.loads(picture)))
        directory.rename(tmp_path / f"done-{len(pictures)}")
    (said_warm, warm_picture), (said_cold, cold_picture) = pictures
    assert said_warm == said_cold
    assert [name for name in cold_picture if warm_picture[name] != cold_picture[name]] == []
    assert warm_picture == cold_picture


def test_the_environment_is_exactly_that_of_the_run(warm: Warm) -> None:
    env = {"PATH": "/bin", "HOME": warm.env["HOME"], "ONLY": "ü\udcff"}
    assert json.loads(warm.enter("import json, os; print(json.dumps(dict(os.environ)))", env=env)) == env
    assert "PREFECT_API_URL" not in warm.enter("import subprocess; subprocess.run(['env'])", env=env)


IDENTITIES = """
import json, multiprocessing, random, tempfile, threading, uuid, os, gc
import good_one
print(json.dumps([
    random.random(), good_one.UNSEEDED.random(), multiprocessing.current_process().authkey.hex(), tempfile.mktemp(),
    str(uuid.uuid1()), str(uuid.uuid4()), threading.main_thread().native_id,
]))
"""


def test_two_processes_share_nothing_that_should_be_random(warm: Warm) -> None:
    one, other = (json.loads(warm.enter(IDENTITIES)) for _ in range(2))
    assert [a for a, b in zip(one, other, strict=True) if a == b] == []


def test_what_a_module_seeds_itself_stays_as_it_was_seeded(warm: Warm) -> None:
    expected = "import random; print(random.Random(7).random())"
    code = "import good_one; print(good_one.SEEDED.random())"
    assert warm.enter(code) == warm.enter(code) == warm.enter(expected)


def test_the_process_is_itself(warm: Warm) -> None:
    code = """
        import gc, logging, os, threading, time
        print(threading.main_thread().native_id == os.getpid(), gc.isenabled(), threading.active_count(),
              0 <= time.time() - logging._startTime < 60)
        """
    assert warm.enter(code) == "True True 1 True\n"


def test_temporary_files_go_where_the_run_says(warm: Warm, tmp_path: Path) -> None:
    env = warm.env | {"TMPDIR": str(tmp_path)}
    assert warm.enter("import tempfile; print(tempfile.gettempdir())", env=env) == f"{tmp_path}\n"


def test_a_preloaded_module_that_has_looked_for_the_temporary_directory_keeps_it(
    warm: Warm, tmp_path: Path
) -> None:
    assert "TMPDIR" in (warm.refusal(TMPDIR=str(tmp_path)) or "")


def test_there_are_no_gaps_in_what_is_shared(warm: Warm) -> None:
    """There are 1.7 MB of them when Prefect has been imported."""
    code = """
        import warmth_gaps
        print(sum(size * count for size, count in warmth_gaps._available().items()))
        """
    assert 0 < int(warm.enter(code)) < 800_000


def test_a_preloaded_module_is_there(warm: Warm) -> None:
    assert warm.enter("import sys; print('good_one' in sys.modules)") == "True\n"


def test_the_engine_is_found_without_a_warning_and_is_there_afterwards(warm: Warm) -> None:
    code = """
        import runpy, sys, warnings, prefect.flow_engine
        warnings.simplefilter("error")
        kept = sys.modules["prefect.engine"]
        sys.modules["__main__"].__dict__.clear()
        try:
            runpy._run_module_as_main("prefect.engine")
        except SystemExit as end:
            print(end.code, sys.modules["prefect.engine"] is kept, hasattr(sys.modules["__main__"], "engine_logger"))
            print(sys.argv[0].endswith("prefect/engine.py"), runpy._get_module_details.__module__)
        """
    lines = warm.enter(code, env=warm.env | {"PREFECT__FLOW_RUN_ID": "no id"}).splitlines()
    assert lines[-2:] == ["1 True True", "True runpy"]


TLS = """
import ssl, certifi, gc, os, threading
from prefect.client.orchestration import get_client
made = []
original = ssl.create_default_context
if {patched}:
    def counting(*args, **kwargs):
        made.append(kwargs)
        return original(*args, **kwargs)
    ssl.create_default_context = counting
def context(client):
    return client._client._transport._pool._ssl_context
clients = [get_client(sync_client=True) for _ in range(14)]
contexts = [context(client) for client in clients]
mine = original(cafile=certifi.where())
print(len(set(map(id, contexts))), len(made), all(type(c) is ssl.SSLContext for c in contexts),
      all(c.verify_mode == mine.verify_mode and c.check_hostname == mine.check_hostname and c.options == mine.options
          and c.verify_flags == mine.verify_flags and c.keylog_filename == mine.keylog_filename
          and c.minimum_version == mine.minimum_version and c.get_ciphers() == mine.get_ciphers()
          and c.get_ca_certs(True) == mine.get_ca_certs(True) for c in contexts))
"""


def test_each_client_has_a_context_of_its_own_as_prefect_makes_them(warm: Warm) -> None:
    assert warm.enter(TLS.format(patched=False)) == cold(
        TLS.format(patched=False), directory=warm.root, env=warm.env
    )


def test_a_context_that_was_used_is_not_freed(warm: Warm) -> None:
    """That would write to hundreds of pages which are shared as long as nobody does."""
    code = """
        import gc, weakref
        from prefect.client.orchestration import get_client
        seen = [weakref.ref(get_client(sync_client=True)._client._transport._pool._ssl_context) for _ in range(12)]
        gc.collect()
        print([one() is not None for one in seen].count(True))
        """
    assert warm.enter(code) == "10\n", "as many as were made before the fork"


def test_a_replaced_way_of_making_contexts_is_used(warm: Warm) -> None:
    assert warm.enter(TLS.format(patched=True)) == "14 14 True True\n"


def test_contexts_without_verification_are_made_when_they_are_asked_for(warm: Warm) -> None:
    code = """
        from prefect.client.orchestration import get_client
        context = get_client(sync_client=True)._client._transport._pool._ssl_context
        print(context.verify_mode.name, context.check_hostname)
        """
    insecure = {"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"}
    assert warm.enter(code, env=warm.env | insecure) == "CERT_NONE False\n"
    assert warm.enter(code) == "CERT_REQUIRED True\n"


def test_plugins_that_run_at_import_are_not_skipped_in_silence(warm: Warm) -> None:
    said = warm.enter("print('entered')", env=warm.env | {"PREFECT_PLUGINS_ENABLED": "true"})
    assert "PREFECT_PLUGINS_ENABLED" in said
    assert "entered" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", "/other.pem"),
        ("FSSPEC_FILE_AUTO_MKDIR", "1"),
        ("WEBSOCKETS_MAX_BODY_SIZE", "1"),
        ("PYDANTIC_DISABLE_PLUGINS", "1"),
        ("PROMETHEUS_MULTIPROC_DIR", "/metrics"),
        ("REGION_OF_THE_MODULE", "eu"),
        ("HOME", "/elsewhere"),
    ],
)
def test_a_variable_read_at_import_must_be_the_same(warm: Warm, name: str, value: str) -> None:
    assert name in (warm.refusal(None, **{name: value}) or "")


def test_other_variables_may_differ(warm: Warm) -> None:
    assert (
        warm.refusal(PREFECT_LOGGING_LEVEL="DEBUG", PREFECT__FLOW_RUN_ID="1", TZ="Asia/Tokyo", ANY="thing")
        is None
    )


@pytest.mark.parametrize(
    "entry",
    [
        "random.py",
        "json/__init__.py",
        "yaml.abi3.so",
        "uvicorn.py",
        "good_one.py",
        "winreg/x.py",
        "httpx.pyc",
    ],
)
def test_a_module_in_the_directory_that_would_be_imported_is_named(
    warm: Warm, tmp_path: Path, entry: str
) -> None:
    (tmp_path / entry).parent.mkdir(exist_ok=True)
    (tmp_path / entry).touch()
    imported = entry != "uvicorn.py"  # of the server only; an engine does not look for it
    assert (entry.partition("/")[0] in (warm.refusal(tmp_path) or "")) is imported


def test_entry_points_in_the_directory_that_prefect_would_load_are_named(warm: Warm, tmp_path: Path) -> None:
    for name, text in (("a", "[console_scripts]\nx = y:z\n"), ("b", "[prefect.collections]\nx = y\n")):
        (tmp_path / f"{name}.egg-info").mkdir()
        (tmp_path / f"{name}.egg-info" / "entry_points.txt").write_text(text)
    assert "b.egg-info" in (warm.refusal(tmp_path) or "")


@pytest.mark.parametrize(
    "entry", ["flow.py", "json/data.json", "notes.txt", "os.py", "sys.py", "worker/__init__.py"]
)
def test_other_files_do_not_matter(warm: Warm, tmp_path: Path, entry: str) -> None:
    (tmp_path / entry).parent.mkdir(exist_ok=True)
    (tmp_path / entry).touch()
    assert warm.refusal(tmp_path) is None


def test_what_changes_on_disk_is_noticed_and_what_does_not_matter_is_not(warm: Warm, packages: Path) -> None:
    assert warm.stale() is None
    (packages / "results.csv").touch()
    (packages / "another.py").touch()
    assert warm.stale() is None
    (packages / "new-1.0.dist-info").mkdir()
    assert str(packages) in (warm.stale() or "")
    (packages / "new-1.0.dist-info").rmdir()
    assert warm.stale() is None
    (packages / "yaml.py").touch()
    assert str(packages) in (warm.stale() or "")
    (packages / "yaml.py").unlink()
    status = (packages / "good_one.py").stat()
    os.utime(packages / "good_one.py", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "good_one.py has changed" in (warm.stale() or "")
    os.utime(packages / "good_one.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert warm.stale() is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='mine').start()",
            "mine",
        ),
        ("import socket\nKEPT = socket.socketpair()", "socket"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
    ids=["thread", "socket", "missing", "exits"],
)
def test_a_module_that_cannot_be_preloaded_is_named(
    tmp_path: Path, session_mark: str, source: str, words: str
) -> None:
    (tmp_path / "bad_one.py").write_text(source)
    warm = start(tmp_path, mark=session_mark, preload="bad_one", path=tmp_path)
    warm.end()
    assert "bad_one" in warm.opening["failed"]
    assert words in warm.opening["failed"]
