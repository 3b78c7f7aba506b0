"""What the kernel says about deaths for lack of memory: its counters, read before and after, and what they mean.

Owns: finding the daemon's own memory cgroup (v2 and v1), its counters and limits, the counter of the whole machine. Does
not own: when to read them, and what is told about a run. The counters count processes and name none, so what is said is
that the out-of-memory killer struck while the run lived, not whom.

A run lives in the daemon's cgroup unless its command leaves it (`systemd-run`, `docker run`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_KILLER = "the kernel's out-of-memory killer struck"
_CGROUP2_MOUNT = "/sys/fs/cgroup"
_CGROUP1_MOUNT = "/sys/fs/cgroup/memory"
_NO_LIMIT = 1 << 62  # cgroup v1 writes "no limit" as the largest multiple of the page size


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """One memory cgroup; None is what cannot be read.

    `oom_kills`: processes killed for lack of memory in the group or below it. `ooms`: how often a limit of the group or
    below it was the reason for a search for something to kill. `limit` is in bytes, None also if there is none.
    `directory` is where its files are.
    """

    path: str
    oom_kills: int | None = None
    ooms: int | None = None
    limit: int | None = None
    directory: Path | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class MemoryEvidence:
    """The counters at one moment.

    `cgroups` are the daemon's own first and then those around it, as far as they are visible; a container sees none
    beyond its own. `oom_kills` is the whole machine's, containers included; None when not readable.
    """

    cgroups: tuple[CgroupMemory, ...] = ()
    oom_kills: int | None = None


def read_memory_evidence(*, root: Path = Path("/")) -> MemoryEvidence:
    """The counters now. Never raises: what cannot be read is absent. `root` is where /proc and /sys are found.

    Sources: proc(5) `vmstat`, cgroups(7) and the kernel's cgroup-v2 and cgroup-v1/memory documents.
    """
    return MemoryEvidence(
        cgroups=_cgroups(root),
        oom_kills=read_counter(root / "proc/vmstat", "oom_kill"),
    )


def explain_memory_death(before: MemoryEvidence, after: MemoryEvidence) -> str | None:
    """What moved between the two moments, as a clause for a process that was killed in between; None if nothing did.

    The counter of the daemon's cgroup, or of the closest one around it that has a counter, is as good as certain. That
    of the machine alone is a hint only; it says so where the cgroup's own counter stood still.
    """
    earlier = {cgroup.path: cgroup for cgroup in before.cgroups}
    own = after.cgroups[0].path if after.cgroups else None
    counted = False
    for position, cgroup in enumerate(after.cgroups):
        was = earlier.get(cgroup.path)
        if was is None or cgroup.oom_kills is None or was.oom_kills is None:
            continue
        counted = True
        if _moved(was.oom_kills, cgroup.oom_kills):
            around = after.cgroups[position:]
            place = (
                "the worker's cgroup" if cgroup.path == own else f"the worker's parent cgroup {cgroup.path}"
            )
            return f"{_KILLER} in {place}{_limit_hit(earlier, around)}"
        break  # the ones above count the rest of the machine's services as well
    if _moved(before.oom_kills, after.oom_kills):
        elsewhere = ", though not in the worker's cgroup" if counted else ""
        return f"{_KILLER} on this machine while it ran{elsewhere}"
    return None


def describe_bytes(count: int) -> str:
    """For people: `0.5 MiB`, `512 MiB`, `1.5 GiB`."""
    mebibytes = count / (1 << 20)
    if mebibytes < 10:  # noqa: PLR2004 - one digit more is worth having up to here
        return f"{mebibytes:.1f} MiB"
    if round(mebibytes) < 1 << 10:
        return f"{mebibytes:.0f} MiB"
    return f"{mebibytes / (1 << 10):.1f} GiB"


def _moved(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _limit_hit(earlier: dict[str, CgroupMemory], around: tuple[CgroupMemory, ...]) -> str:
    """Which limit it was: the lowest of those whose group counted a search; without these counters the tightest.

    None is named when no visible group counted one: the machine's memory, or a limit beyond the container, was the cause.
    """
    if all(cgroup.ooms is None for cgroup in around):
        limited = [cgroup for cgroup in around if cgroup.limit is not None]
        hit = min(limited, key=lambda cgroup: cgroup.limit or 0, default=None)
    else:
        hit = next((c for c in around if c.path in earlier and _moved(earlier[c.path].ooms, c.ooms)), None)
    if hit is None or hit.limit is None:
        return ""
    where = "" if hit is around[0] else f" of the parent cgroup {hit.path}"
    return f" (memory limit {describe_bytes(hit.limit)}{where})"


def _cgroups(root: Path) -> tuple[CgroupMemory, ...]:
    """The chain under v2 if any of it has the memory controller, else under v1 (both are mounted in hybrid set-ups)."""
    memberships = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    v2 = next((m[2] for m in memberships if m[:2] == ["0", ""] and len(m) > 2), None)  # noqa: PLR2004 - three fields
    v1 = next((m[2] for m in memberships if len(m) > 2 and "memory" in m[1].split(",")), None)  # noqa: PLR2004 - same
    mounts = _lines(root / "proc/self/mountinfo")
    if v2 is not None:
        mount = _mount(mounts, kind="cgroup2") or (_CGROUP2_MOUNT, "/")
        chain = tuple(_read_v2(root, mount[0], path) for path in _chain(v2, mount[1]))
        if any(cgroup.oom_kills is not None for cgroup in chain):
            return chain
    if v1 is not None:
        mount = _mount(mounts, kind="cgroup", option="memory") or (_CGROUP1_MOUNT, "/")
        return tuple(
            _read_v1(root, mount[0], path, own=position == 0)
            for position, path in enumerate(_chain(v1, mount[1]))
        )
    return ()


def _mount(mounts: list[str], *, kind: str, option: str | None = None) -> tuple[str, str] | None:
    """Where a cgroup file system is mounted, and which of its directories is seen there (proc(5) `mountinfo`)."""
    for line in mounts:
        front, _, back = line.partition(" - ")
        fields, source = front.split(), back.split()
        if len(fields) < 5 or not source or source[0] != kind:  # noqa: PLR2004 - the mount point is the fifth
            continue
        if option is None or option in source[-1].split(","):
            return _unescaped(fields[4]), _unescaped(fields[3])
    return None


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _chain(path: str, mounted: str) -> list[str]:
    """The paths below the mount point of a cgroup and all around it, closest first.

    A container may be told its path as the host sees it, while its mount shows its own directory only; and a path that
    leads out of its namespace (`/../…`) is not visible at all. The mount's top directory is then the closest.
    """
    own = PurePosixPath(path)
    if own.is_relative_to(mounted):
        own = "/" / own.relative_to(mounted)
    elif mounted != "/":
        own = PurePosixPath("/")
    if ".." in own.parts:
        own = PurePosixPath("/")
    return [str(own), *map(str, own.parents)]


def _read_v2(root: Path, mount: str, path: str) -> CgroupMemory:
    directory = _below(root, mount, path)
    return CgroupMemory(
        path=path,
        oom_kills=read_counter(directory / "memory.events", "oom_kill"),
        ooms=read_counter(directory / "memory.events", "oom"),
        limit=read_number(directory / "memory.max"),
        directory=directory,
    )


def _read_v1(root: Path, mount: str, path: str, *, own: bool) -> CgroupMemory:
    """In v1 a group counts only its own processes, so the counters of those around it say nothing of ours."""
    directory = _below(root, mount, path)
    limit = read_number(directory / "memory.limit_in_bytes")
    return CgroupMemory(
        path=path,
        oom_kills=read_counter(directory / "memory.oom_control", "oom_kill") if own else None,
        limit=limit if limit is not None and limit < _NO_LIMIT else None,
        directory=directory,
    )


def _below(root: Path, mount: str, path: str) -> Path:
    return root / mount.lstrip("/") / path.lstrip("/")


def read_counter(file: Path, name: str) -> int | None:
    """The value of a line `name value`."""
    for line in _lines(file):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return None


def read_number(file: Path) -> int | None:
    """The number a file consists of; None for `max`."""
    lines = _lines(file)
    return int(lines[0]) if len(lines) == 1 and lines[0].isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_bytes().decode(errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return []
