"""What processes that a flow starts say about themselves; imports nothing of Prefect's."""

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any


def inherited() -> Any:
    with open("/proc/self/status") as file:
        status = file.read().splitlines()
    return {
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "descriptors": sorted(int(entry) for entry in os.listdir("/proc/self/fd"))[:3],
        "targets": [kind(f"/proc/self/fd/{number}") for number in (0, 1, 2)],
        "signals": [line.split() for line in status if line.startswith(("SigBlk", "SigIgn"))],
        "leads_session": os.getsid(0) == os.getpid(),
        "umask": [line.split() for line in status if line.startswith("Umask")],
        "term": str(signal.getsignal(signal.SIGUSR1)),
        "has_sockets": any(
            kind(f"/proc/self/fd/{entry}") == "socket" for entry in os.listdir("/proc/self/fd")
        ),
    }


def kind(path: str) -> Any:
    try:
        return os.readlink(path).split(":[")[0]
    except OSError:
        return "closed"


def describe(parent: int) -> Any:
    main = sys.modules["__main__"]
    return {
        "is_child": os.getppid() == parent,
        "another": os.getpid() != parent,
        "name": multiprocessing.current_process().name,
        "main": [main.__name__, getattr(main, "__file__", None), getattr(main.__spec__, "name", None)],
        "mp_main": sorted(name for name in sys.modules if "mp_main" in name),
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "path": sys.path,
        "threads": [thread.name for thread in threading.enumerate()],
        "executable": sys.executable,
    }


def leave(code: int) -> None:
    sys.exit(code)
