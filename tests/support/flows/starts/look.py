"""What a process can see of itself, as JSON: the two ways to start a flow are told apart by this or not at all.

`facts` must be equal under both; `own` must differ between any two processes. Nothing here changes the process but for
what it restores at once.
"""

import asyncio  # noqa: TID251 - a flow's is looked at
import atexit
import builtins
import contextvars
import ctypes
import decimal
import faulthandler
import fcntl
import gc
import hashlib
import importlib.machinery
import json
import locale
import logging
import mimetypes
import multiprocessing
import os
import pickle
import random
import resource
import secrets
import signal
import site
import socket
import ssl
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tracemalloc
import urllib.request
import uuid
import warnings
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect.context
import prefect.runtime
import prefect.settings
from prefect.settings.models.root import Settings

INSTANT = 1_720_000_000
STATUS_FIELDS = (
    *("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("SigQ", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "TracerPid", "Umask", "CoreDumping"),
    *("THP_enabled", "Speculation_Store_Bypass"),
)
PRCTL_READERS = {
    "pdeathsig": 2,
    "dumpable": 3,
    "keep_capabilities": 7,
    "timing": 13,
    "name": 16,
    "securebits": 27,
    "timer_slack": 30,
    "child_subreaper": 37,
    "no_new_privileges": 39,
    "no_transparent_huge_pages": 42,
}
# Modules of users that a careless starter would shadow; not one of them is in the standard library.
USERS_NAMES = (
    *(
        "worker",
        "runs",
        "warmth",
        "control",
        "output",
        "processes",
        "forkserver",
        "forkserver_main",
        "launcher",
    ),
    *("settings", "api", "health", "daemon", "flows", "tasks", "utils", "tests", "config", "models"),
)


def name_of(value: Any) -> Any:
    """A name for a function, class or object that is the same in every process."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    mark = "" if named is value else "instance of "
    return mark + f"{named.__module__}.{named.__qualname__}"


def attempt(action: Any) -> Any:
    """What `action` returns, or what it raises, as a fact."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is seen
        return f"{type(error).__name__}: {error}"


def digest(value: Any) -> Any:
    data = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(data).hexdigest()


# the interpreter ------------------------------------------------------------------------------------------


def interpreter() -> Any:
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": sys.executable,
        "base_executable": sys._base_executable,
        "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
        "path": sys.path,
        "flags": {name: getattr(sys.flags, name) for name in dir(sys.flags) if is_flag(name)},
        "xoptions": dict(sys._xoptions),
        "warnoptions": sys.warnoptions,
        "warnings.filters": [repr(one) for one in warnings.filters],
        "warnings.functions": [name_of(warnings.showwarning), name_of(warnings.formatwarning)],
        "warnings.onceregistry": len(warnings.onceregistry),
        "dont_write_bytecode": sys.dont_write_bytecode,
        "pycache_prefix": sys.pycache_prefix,
        "hooks": {
            name: name_of(getattr(sys, name))
            for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook")
        },
        "threading.excepthook": name_of(threading.excepthook),
        "trace": [name_of(sys.gettrace()), name_of(sys.getprofile()), name_of(threading.gettrace())],
        "interactive": [hasattr(sys, "ps1"), hasattr(sys, "last_value"), sys.flags.inspect],
        "switch_interval": sys.getswitchinterval(),
        "recursion_limit": sys.getrecursionlimit(),
        "int_max_str_digits": sys.get_int_max_str_digits(),
        "dlopen_flags": sys.getdlopenflags(),
        "asyncgen_hooks": [name_of(hook) for hook in sys.get_asyncgen_hooks()],
        "coroutine_origins": sys.get_coroutine_origin_tracking_depth(),
        "builtins": sorted(vars(builtins)),
        "sys.names": sorted(set(vars(sys)) - {"last_exc", "last_type", "last_value", "last_traceback"}),
        "site": [site.ENABLE_USER_SITE, site.USER_SITE, site.USER_BASE],
        "meta_path": [name_of(finder) for finder in sys.meta_path],
        "path_hooks": [name_of(hook) for hook in sys.path_hooks],
        "sysconfig": sysconfig.get_paths(),
        "default_encoding": sys.getdefaultencoding(),
        "gc.enabled": gc.isenabled(),
        "gc.thresholds": gc.get_threshold(),
        "gc.debug": gc.get_debug(),
        "gc.callbacks": [name_of(callback) for callback in gc.callbacks],
        "gc.frozen": gc.get_freeze_count() > 0,
        "faulthandler": faulthandler.is_enabled(),
        "tracemalloc": tracemalloc.is_tracing(),
        "atexit": atexit._ncallbacks(),
        "hash_randomization": sys.flags.hash_randomization,
        "importer_cache.missing": sorted(
            path
            for path, finder in sys.path_importer_cache.items()
            if finder is None and path.endswith(".py")
        ),
    }


def is_flag(name: str) -> Any:
    return not name.startswith(("_", "n_")) and name not in ("count", "index")


def main_module() -> Any:
    main = sys.modules["__main__"]
    spec = main.__spec__
    return {
        "name": main.__name__,
        "file": getattr(main, "__file__", None),
        "cached": getattr(main, "__cached__", None),
        "package": main.__package__,
        "doc": main.__doc__,
        "loader": name_of(main.__loader__),
        "spec": spec and [spec.name, spec.origin, spec.parent, name_of(spec.loader), spec.cached],
        "builtins": name_of(main.__dict__["__builtins__"]) if "__builtins__" in main.__dict__ else None,
        "names": sorted(vars(main)),
        "type": name_of(type(main)),
        "warned": sorted(map(str, getattr(main, "__warningregistry__", {}))),
        "is_the_globals_of_main": vars(main) is globals_of_main(),
        "bottom_frames": bottom_frames(),
        "source_is_found": attempt(lambda: pickle.dumps(main.__spec__.loader.__class__) != b""),
    }


def frames() -> Any:
    frame, found = sys._getframe(), []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def globals_of_main() -> Any:
    """The globals of the outermost frame that runs the main module's file."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    own = [frame for frame in reversed(frames()) if frame.f_code.co_filename == file]
    return own[0].f_globals if own else None


def bottom_frames() -> Any:
    """Where this process began: what a traceback shows first."""
    if threading.current_thread() is not threading.main_thread():
        return "in another thread"
    return [f"{frame.f_code.co_filename}:{frame.f_code.co_name}" for frame in reversed(frames())][:3]


def modules(before: set[str]) -> Any:
    """Names of everything imported that is not Prefect's, with whether it is installed or the user's own."""
    installed = [os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sys.base_exec_prefix)]
    names = {}
    for name, module in sorted(sys.modules.items()):
        if name not in before or name == "prefect" or name.startswith("prefect."):
            continue
        # Prefect loads its own files under names of their own, too: scripts, and the flow's file.
        file = getattr(module, "__file__", None)
        if file is None:
            names[name] = "without a file"
        else:
            path = os.path.realpath(file)
            names[name] = "installed" if any(path.startswith(root + os.sep) for root in installed) else path
    return names


def users_modules() -> Any:
    found = {}
    for name in USERS_NAMES:
        spec = attempt(lambda name=name: importlib.machinery.PathFinder.find_spec(name))
        found[name] = [name in sys.modules, getattr(spec, "origin", spec)]
    return found


# the process ----------------------------------------------------------------------------------------------


def process() -> Any:
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    parent = os.getppid()
    return {
        "cwd": os.getcwd(),
        "PWD": os.environ.get("PWD"),
        "umask": read_umask(),
        "parent": parent,
        "leads_session": os.getsid(0) == os.getpid(),
        "leads_group": os.getpgrp() == os.getpid(),
        "session_of_parent": os.getsid(parent) == os.getsid(0),
        "terminal": attempt(lambda: os.close(os.open("/dev/tty", os.O_RDWR))).split(":")[0],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": [os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        "affinity": sorted(os.sched_getaffinity(0)),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "limits": Path("/proc/self/limits").read_text().splitlines(),
        "rlimits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "status": {name: status.get(name, "").strip() for name in STATUS_FIELDS if name != "SigQ"},
        "command_name": Path("/proc/self/comm").read_text(),
        "command_line": Path("/proc/self/cmdline").read_text().split("\0"),
        "program": os.readlink("/proc/self/exe"),
        "root": os.readlink("/proc/self/root"),
        "personality": attempt(lambda: Path("/proc/self/personality").read_text()),
        "coredump_filter": attempt(lambda: Path("/proc/self/coredump_filter").read_text()),
        "namespaces": {
            name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))
        },
        "prctl": {name: read_prctl(option) for name, option in PRCTL_READERS.items()},
        "timers": [signal.getitimer(which) for which in (0, 1, 2)],
        "posix_timers": attempt(lambda: Path("/proc/self/timers").read_text()),
        "children": sorted(pid for one in os.listdir("/proc/self/task") for pid in read_children(one)),
    }


def read_children(thread: str) -> Any:
    try:
        return Path(f"/proc/self/task/{thread}/children").read_text().split()
    except FileNotFoundError:
        return []


def read_umask() -> Any:
    mask = os.umask(0o077)
    os.umask(mask)
    return oct(mask)


def read_prctl(option: int) -> Any:
    """prctl(2) of an option that reads: it answers in its result, or in the memory it is given."""
    library = ctypes.CDLL(None, use_errno=True)
    memory = ctypes.create_string_buffer(16)
    by_reference = option in (2, 16, 37)
    answer = library.prctl(option, memory if by_reference else 0, 0, 0, 0)
    if option == 16:
        return memory.value.decode()
    return struct.unpack("i", memory.raw[:4])[0] if by_reference else answer


def signals() -> Any:
    return {
        "handlers": {
            getattr(number, "name", str(number)): name_of(signal.getsignal(number))
            for number in sorted(signal.valid_signals())
        },
        "blocked": sorted(map(str, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "pending": sorted(map(str, signal.sigpending())),
        "wakeup_descriptor": read_wakeup(),
    }


def read_wakeup() -> Any:
    if threading.current_thread() is not threading.main_thread():
        return "only in the main thread"
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor != -1:
        signal.set_wakeup_fd(descriptor)
    return descriptor != -1


def descriptors() -> Any:
    """The standard ones in full; of the others what they are, as their numbers depend on who was first."""
    standard, others = {}, []
    for entry in sorted(os.listdir("/proc/self/fd"), key=int):
        number = int(entry)
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
            kept = fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            continue  # the descriptor of this listing
        kind = target.split(":")[0] if ":[" in target else target
        if kind == "socket":
            kind = f"socket {family(number)}"
        facts = {
            "target": kind,
            "access": flags & os.O_ACCMODE,
            "append": bool(flags & os.O_APPEND),
            "nonblocking": bool(flags & os.O_NONBLOCK),
            "large": bool(flags & getattr(os, "O_LARGEFILE", 0)),
            "close_on_exec": bool(kept),
        }
        if number <= 2:
            mode = os.fstat(number).st_mode
            facts["mode"] = stat.filemode(mode)
            standard[str(number)] = facts
        elif not target.startswith("/proc/"):
            others.append(json.dumps(facts, sort_keys=True))
    return {"standard": standard, "others": sorted(others)}


def family(number: int) -> str:
    """Of a socket."""
    other = socket.socket(fileno=os.dup(number))
    with other:
        return f"{other.family.name} {other.type.name}"


def one_stream(stream: Any) -> Any:
    if stream is None:
        return None
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", None)
    facts = {"type": name_of(type(stream)), "buffer": name_of(type(buffer)), "raw": name_of(type(raw))}
    for name in (
        "name",
        "mode",
        "encoding",
        "errors",
        "line_buffering",
        "write_through",
        "closed",
        "newlines",
    ):
        facts[name] = attempt(lambda name=name: getattr(stream, name, None))
    for name in ("isatty", "seekable", "readable", "writable", "fileno"):
        facts[name] = attempt(lambda name=name: getattr(stream, name)())
    facts["chunk"] = attempt(lambda: stream._CHUNK_SIZE)
    facts["raw.facts"] = [
        attempt(lambda name=name: getattr(raw, name)) for name in ("name", "mode", "closefd", "_blksize")
    ]
    facts["repr"] = repr(stream)
    return facts


def streams() -> Any:
    found = {name: one_stream(getattr(sys, name)) for name in ("stdin", "stdout", "stderr")}
    found["originals"] = [
        getattr(sys, name) is getattr(sys, f"__{name}__") for name in ("stdin", "stdout", "stderr")
    ]
    found["stdin.read"] = attempt(sys.stdin.read)
    found["stdin.position"] = attempt(lambda: os.read(0, 1).decode())
    return found


# the world ------------------------------------------------------------------------------------------------


def world() -> Any:
    here = datetime.fromtimestamp(INSTANT, tz=UTC).astimezone()
    categories = [name for name in dir(locale) if name.startswith("LC_") and name != "LC_ALL"]
    return {
        "locale": {name: locale.setlocale(getattr(locale, name)) for name in categories},
        "getlocale": attempt(locale.getlocale),
        "preferred_encoding": [locale.getpreferredencoding(False), locale.getencoding()],
        "file_system": [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()],
        "conventions": {name: repr(value) for name, value in sorted(locale.localeconv().items())},
        "time": [time.tzname, time.timezone, time.altzone, time.daylight],
        "local_time": [
            list(time.localtime(INSTANT)),
            time.localtime(INSTANT).tm_zone,
            str(here),
            here.tzname(),
        ],
        "zoneinfo": zoneinfo.TZPATH,
        "decimal": repr(decimal.getcontext()),
        "tempfile": [tempfile.gettempdir(), tempfile.gettempprefix()],
        "home": os.path.expanduser("~"),
        "shell_environment": shell_environment(),
        "socket_timeout": socket.getdefaulttimeout(),
        "ssl": [name_of(ssl._create_default_https_context), ssl.get_default_verify_paths()],
        "proxies": urllib.request.getproxies(),
        "opener": name_of(urllib.request._opener),
        "mimetypes": mimetypes.guess_type("a.csv"),
        "node": uuid.getnode() == uuid.getnode(),
        "files": sorted(os.listdir()),
    }


def shell_environment() -> Any:
    """The environment as a child gets it, which is what C has, not what `os.environ` says."""
    printed = subprocess.run(
        ["/usr/bin/env", "-0"], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    pairs = [entry.split("=", 1) for entry in printed.stdout.decode().split("\0") if entry]
    return dict(pairs) == dict(os.environ) and len(pairs) == len(os.environ)


def concurrency() -> Any:
    current = multiprocessing.current_process()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "in_main_thread": threading.current_thread() is threading.main_thread(),
        "main_thread": [threading.main_thread().name, threading.main_thread().native_id == os.getpid()],
        "stack_size": threading.stack_size(),
        "multiprocessing.process": [
            current.name,
            current.daemon,
            name_of(type(current)),
            current.pid == os.getpid(),
        ],
        "multiprocessing.parent": name_of(multiprocessing.parent_process()),
        "multiprocessing.children": len(multiprocessing.active_children()),
        "multiprocessing.method": multiprocessing.get_start_method(allow_none=True),
        "multiprocessing.methods": multiprocessing.get_all_start_methods(),
        "multiprocessing.config": sorted(current._config),
        "multiprocessing.executable": os.fsdecode(multiprocessing.spawn.get_executable())
        if hasattr(multiprocessing, "spawn")
        else sys.executable,
        "event_loop_policy": attempt(event_loop_policy),
        "contextvars": sorted(
            f"{variable.name}={name_of(type(value))}"
            for variable, value in contextvars.copy_context().items()
        ),
    }


def event_loop_policy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = asyncio.get_event_loop_policy()
    return name_of(type(policy))


# logging and Prefect --------------------------------------------------------------------------------------


def log() -> Any:
    loggers = {"(root)": logging.root, **logging.root.manager.loggerDict}
    found = {
        name: one_logger(logger)
        for name, logger in sorted(loggers.items())
        if isinstance(logger, logging.Logger)
    }
    return {
        "loggers": found,
        "disabled_below": logging.root.manager.disable,
        "raises": logging.raiseExceptions,
        "classes": [name_of(logging.getLoggerClass()), name_of(logging.getLogRecordFactory())],
        "last_resort": repr(logging.lastResort),
        "captures_warnings": logging._warnings_showwarning is not None,
        "level_names": dict(sorted(logging.getLevelNamesMapping().items())),
    }


def one_logger(logger: Any) -> Any:
    return {
        "level": logger.level,
        "effective": logger.getEffectiveLevel(),
        "disabled": logger.disabled,
        "propagate": logger.propagate,
        "filters": [name_of(one) for one in logger.filters],
        "handlers": [one_handler(handler) for handler in logger.handlers],
    }


def one_handler(handler: Any) -> Any:
    formatter = handler.formatter
    return {
        "type": name_of(type(handler)),
        "level": handler.level,
        "filters": [name_of(one) for one in handler.filters],
        "formatter": formatter
        and [name_of(type(formatter)), str(vars(formatter).get("_fmt")), formatter.datefmt],
        "stream": getattr(getattr(handler, "stream", None), "name", None),
        "console": attempt(
            lambda: [handler.console.file.name, handler.console.width, handler.console.is_terminal]
        )
        if hasattr(handler, "console")
        else None,
    }


def settings() -> Any:
    context = prefect.context.get_settings_context()
    current = prefect.settings.get_current_settings()
    return {
        "values": revealed(current.model_dump()),
        "set": sorted(revealed(current.to_environment_variables(exclude_unset=True)).items()),
        "environment": sorted(revealed(current.to_environment_variables()).items()),
        "made_afresh_are_equal": revealed(Settings().model_dump()) == revealed(current.model_dump()),
        "profile": [context.profile.name, str(context.profile.source), revealed_profile(context.profile)],
        "sources": [
            str(prefect.settings.PREFECT_HOME.value()),
            str(prefect.settings.PREFECT_PROFILES_PATH.value()),
        ],
        "api": prefect.settings.PREFECT_API_URL.value(),
    }


def revealed_profile(profile: Any) -> Any:
    return sorted((setting.name, str(value)) for setting, value in profile.settings.items())


def revealed(value: Any) -> Any:
    """JSON of it, a secret as its digest."""
    if isinstance(value, dict):
        return {str(key): revealed(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [revealed(inner) for inner in value]
    if hasattr(value, "get_secret_value"):
        return "secret " + digest(value.get_secret_value())
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def contexts() -> Any:
    found = {}
    for name, kind in sorted(vars(prefect.context).items()):
        if (
            isinstance(kind, type)
            and issubclass(kind, prefect.context.ContextModel)
            and hasattr(kind, "__var__")
        ):
            context = kind.get()
            found[name] = context and sorted(
                name for name in vars(context) if getattr(context, name) is not None
            )
    run = prefect.runtime.flow_run
    found["runtime"] = {
        name: str(attempt(lambda name=name: getattr(run, name)))
        for name in (
            "name",
            "tags",
            "parameters",
            "run_count",
            "flow_name",
            "parent_flow_run_id",
            "id",
            "job_variables",
        )
    }
    found["tags"] = sorted(prefect.context.TagsContext.get().current_tags)
    return found


# all of it ------------------------------------------------------------------------------------------------

SECTIONS = {
    "interpreter": interpreter,
    "main": main_module,
    "process": process,
    "signals": signals,
    "descriptors": descriptors,
    "streams": streams,
    "environment": lambda: dict(os.environ),
    "first_environment": lambda: dict(
        entry.split("=", 1) for entry in Path("/proc/self/environ").read_text().split("\0") if entry
    ),
    "world": world,
    "concurrency": concurrency,
    "users_modules": users_modules,
    "logging": log,
    "settings": settings,
    "contexts": contexts,
}


def own() -> Any:
    """What no two processes may have in common, whoever started them."""
    return {
        "random.state": digest(random.getstate()),
        "random.number": random.random(),
        "secret": secrets.token_hex(),
        "urandom": os.urandom(16).hex(),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "temporary_name": next(tempfile._get_candidate_names()),
        "authkey": digest(bytes(multiprocessing.current_process().authkey)),
        "ssl.random": ssl.RAND_bytes(16).hex(),
        "pid": os.getpid(),
        "hash_of_text": hash("a text"),
        "address": id(object),
        "sockets": sockets(),
    }


def sockets() -> Any:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith(("socket:", "pipe:")):
            found.append(target)
    return sorted(set(found))


def everything(before: set[str]) -> Any:
    """All of it; `before` are the names of the modules that were imported before anything of this project."""
    facts = {name: attempt(section) for name, section in SECTIONS.items()}
    return {"facts": {**facts, "modules": modules(before)}, "own": own()}
