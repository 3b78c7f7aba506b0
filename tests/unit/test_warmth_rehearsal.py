"""What is rehearsed before the fork is all of it, and nothing of it is left for a flow to see."""

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import scrubbed_environment

OWN = Path(__file__).parents[2] / "worker" / "processes" / "forkserver_main"

# Makes a Warmth, with a look around before and after the rehearsal, and prints what it saw as JSON.
WATCHED = """
import asyncio, atexit, contextvars, functools, gc, json, logging, os, random, signal, socket, sys, tempfile, threading, warnings
sys.path.insert(0, sys.argv[1])
import departure, warmth
sys.path.pop(0)
rehearse, seen, heard = warmth.rehearse, {}, []

def names(cache):
    return f"{cache.__module__}.{cache.__qualname__}"

def look():
    gc.collect()
    loggers = {n: v for n, v in logging.root.manager.loggerDict.items() if isinstance(v, logging.Logger)}
    return {
        "threads": [t.name for t in threading.enumerate()],
        "descriptors": {n: os.fstat(int(n)).st_ino for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")},
        "children": os.path.exists(f"/proc/self/task/{os.getpid()}/children") and open(f"/proc/self/task/{os.getpid()}/children").read(),
        "policy": repr(asyncio.events._event_loop_policy),
        "loop": repr(asyncio.events._get_running_loop()),
        "modules": sorted(sys.modules),
        "environment": dict(os.environ),
        "random": hash(random.getstate()),
        "temporary": [tempfile.tempdir, repr(tempfile._name_sequence)],
        "signals": [repr(signal.getsignal(n)) for n in signal.valid_signals()],
        "context": sorted(v.name for v in contextvars.copy_context()),
        "exit": [atexit._ncallbacks(), len(threading._threading_atexits)],
        "handlers": [len(logging._handlerList), len(logging._handlers)],
        "loggers": {n: [v.level, v.disabled, v.propagate, list(map(repr, v.handlers))] for n, v in loggers.items()},
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr), socket.getdefaulttimeout()],
        "filters": list(map(repr, warnings.filters)),
        "warned": sorted(n for n, m in list(sys.modules.items()) if "__warningregistry__" in vars(m)),
        "caches": {names(o): o.cache_info().currsize for o in gc.get_objects() if isinstance(o, functools._lru_cache_wrapper)},
        "settings": id(sys.modules["prefect.context"].get_settings_context()),
        "reads": sorted(READS[0].names),
    }

READS = []
class Reads(warmth.EnvironmentReads):
    def __init__(self, *, again):
        super().__init__(again=again)
        READS.append(self)
warmth.EnvironmentReads = Reads

listening = False
def listen(event, arguments):
    if listening and not event.startswith(("object.", "compile", "exec", "sys.", "builtins.", "gc.", "code.", "marshal.", "import", "ctypes.")):
        heard.append([event, *map(repr, arguments)])
sys.addaudithook(listen)

def watched():
    global listening
    seen["before"] = look()
    listening = True
    outcome = rehearse()
    listening = False
    seen["after"] = look()
    seen["failed"] = outcome[0]
    return outcome

warmth.rehearse = watched
warmth.Warmth(preload=[], departure=departure.Departure())
print(json.dumps([seen, heard]))
"""
# What keeps the values of pure functions: of an address, a style, the name of a setting, the name of a logger.
PURE = {
    "prefect.logging.loggers.get_logger",
    "prefect.settings.legacy._get_legacy_setting",
    "rich.style.Style._add",
    "rich.style.Style.parse",
    "urllib.parse.urlsplit",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, session_mark: str) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    # Were anything sent, it would be through this proxy.
    unreachable = {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    own = {"PREFECT_HOME": str(home / ".prefect"), "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    return scrubbed_environment(home=home, mark=session_mark) | unreachable | own


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(OWN)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture(scope="module")
def watched(environment: dict[str, str]) -> tuple[dict[str, Any], list[list[str]], str]:
    """What was seen before and after, what the interpreter's audit events told, and what was printed."""
    finished = run(WATCHED, environment)
    seen, heard = json.loads(finished.stdout)
    return seen, heard, finished.stderr


def test_all_of_it_is_rehearsed_with_this_prefect(
    watched: tuple[dict[str, Any], list[list[str]], str],
) -> None:
    seen, _, said = watched
    assert seen["failed"] == []
    assert "rehearsed" not in said


def test_nothing_of_it_is_left(watched: tuple[dict[str, Any], list[list[str]], str]) -> None:
    before, after = watched[0]["before"], watched[0]["after"]
    caches = before.pop("caches"), after.pop("caches")
    # Loggers that are made when they are first asked for have nothing of their own.
    new = {name: it for name, it in after["loggers"].items() if name not in before["loggers"]}
    assert {json.dumps(it) for it in new.values()} <= {"[0, false, true, []]"}
    after["loggers"] = {name: it for name, it in after["loggers"].items() if name not in new}
    # The daemon starts a run cold whose PYTHON* variables differ.
    after["reads"] = [name for name in after["reads"] if name != "PYTHONASYNCIODEBUG"]
    before["reads"] = [name for name in before["reads"] if name != "PYTHONASYNCIODEBUG"]
    assert [name for name in before if before[name] != after[name]] == []
    assert before == after
    filled = {name for name, size in caches[1].items() if size != caches[0].get(name, 0)}
    assert filled - PURE == set()


def test_nothing_is_sent_started_or_written(watched: tuple[dict[str, Any], list[list[str]], str]) -> None:
    # An event loop has a pair of sockets to wake itself up.
    pair = ["socket.__new__", str(int(socket.AF_UNIX))]
    assert [event for event in watched[1] if [event[0], *event[2:3]] != pair] == []


FIRSTS = """
import sys
if {warm}:
    sys.path.insert(0, sys.argv[1])
    import departure, warmth
    sys.path.pop(0)
    entered = warmth.Warmth(preload=[], departure=departure.Departure())
    entered.enter(env=dict(__import__("os").environ))
import asyncio, threading, warnings
import prefect.main, prefect.flow_engine
from prefect._internal.concurrency.threads import WorkerThread
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    asyncio.get_event_loop().close()
async def task():
    other = asyncio.create_task(asyncio.sleep(0))
    await other
    return asyncio.current_task().get_name(), other.get_name()
print(type(asyncio.get_event_loop_policy()).__name__, [str(it.message) for it in said])
print(asyncio.run(task()), threading.Thread().name, WorkerThread(daemon=True).name)
"""


def test_what_is_numbered_begins_where_it_does_in_a_fresh_interpreter(environment: dict[str, str]) -> None:
    warm, cold = (run(FIRSTS.format(warm=warm), environment).stdout for warm in (True, False))
    assert warm == cold
    assert "Task-1" in warm


FAILING = """
import sys
sys.path.insert(0, sys.argv[1])
import departure, warmth, warmth_rehearsal
sys.path.pop(0)
done = []
def breaks():
    done.append("breaks")
    raise LookupError("another version")
def works():
    done.append("works")
    return "kept"
warmth_rehearsal.STEPS = (breaks, works)
warm = warmth.Warmth(preload=[], departure=departure.Departure())
print(done.count("breaks"), done.count("works") == len(warm._kept) > 1, set(warm._kept))
"""


def test_a_step_that_fails_is_told_once_and_the_others_are_taken(environment: dict[str, str]) -> None:
    finished = run(FAILING, environment)
    assert finished.stderr == "not rehearsed before the fork: breaks: LookupError: another version\n"
    assert finished.stdout == "1 True {'kept'}\n"


LOGGED = """
import logging, sys
import prefect.main
sys.path.insert(0, sys.argv[1])
from warmth_rehearsal import rehearse
lines = []
class Handler(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.disable(logging.DEBUG)
root = logging.getLogger()
root.setLevel(logging.DEBUG)
root.addHandler(Handler())
rehearse(rounds=1)
root.info("afterwards")
root.debug("never")
print(lines)
"""


def test_no_line_of_it_goes_to_a_handler_that_the_user_has_configured(environment: dict[str, str]) -> None:
    assert run(LOGGED, environment).stdout == "['afterwards']\n"
