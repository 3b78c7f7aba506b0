"""Where and with what was measured."""

import os
import platform
import shutil
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench import postgres
from bench.server import Database

_KIB_PER_GIB = 1024 * 1024
_ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, str]:
    """Processor, cores this process may use, memory, kernel."""
    memory = int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) / _KIB_PER_GIB
    return {
        "CPU": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def versions(database: Database) -> dict[str, str]:
    """Python, the server's database, Prefect, and headrace with its commit."""
    return {
        "Python": platform.python_version(),
        **_database(database),
        "Prefect": version("prefect"),
        "headrace": f"{version('headrace')} ({_commit()})",
    }


def _database(database: Database) -> dict[str, str]:
    programs = postgres.programs() if database is Database.POSTGRES else None
    return {str(database): sqlite3.sqlite_version if programs is None else postgres.version(programs)}


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _commit() -> str:
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return "commit unknown"
    commit = _git(git, "rev-parse", "--short", "HEAD")
    # What is measured is the worker: a page or a result that is not committed yet changes nothing.
    changed = _git(git, "status", "--porcelain", "--", "worker")
    return f"{commit} with changes" if changed else commit


def _git(git: str, *arguments: str) -> str:
    result = subprocess.run([git, "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()
