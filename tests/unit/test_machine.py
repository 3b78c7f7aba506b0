"""How much memory is left, from the files of a made-up machine."""

from pathlib import Path

import pytest

from worker.processes.machine import available_memory

MIB = 1 << 20
MOUNT = "35 1 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
MOUNT_V1 = "36 1 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(mib: int) -> dict[str, str]:
    return {"proc/meminfo": f"MemTotal:  9999999 kB\nMemAvailable:   {mib * 1024} kB\n"}


def group(path: str, *, limit: str, used: int, inactive: int) -> dict[str, str]:
    directory = f"sys/fs/cgroup{path}"
    return {
        f"{directory}/memory.events": "oom 0\noom_kill 0\n",
        f"{directory}/memory.max": f"{limit}\n",
        f"{directory}/memory.current": f"{used * MIB}\n",
        f"{directory}/memory.stat": f"anon 1\ninactive_file {inactive * MIB}\n",
    }


V2 = {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": MOUNT}


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        pytest.param(meminfo(500), 500, id="no control group"),
        pytest.param(
            meminfo(500) | V2 | group("/a/b", limit="max", used=400, inactive=0), 500, id="without a limit"
        ),
        pytest.param(
            meminfo(500) | V2 | group("/a/b", limit=str(300 * MIB), used=200, inactive=50),
            150,
            id="its cached files can be had",
        ),
        pytest.param(
            meminfo(500)
            | V2
            | group("/a/b", limit=str(300 * MIB), used=10, inactive=0)
            | group("/a", limit=str(100 * MIB), used=80, inactive=0),
            20,
            id="the group around it is tighter",
        ),
        pytest.param(
            meminfo(50) | V2 | group("/a/b", limit=str(300 * MIB), used=10, inactive=0),
            50,
            id="the machine is",
        ),
        pytest.param(
            meminfo(500) | V2 | group("/a/b", limit=str(30 * MIB), used=31, inactive=0),
            0,
            id="over the limit",
        ),
        pytest.param(
            meminfo(500)
            | {
                "proc/self/cgroup": "4:memory:/a\n",
                "proc/self/mountinfo": MOUNT_V1,
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{300 * MIB}\n",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{250 * MIB}\n",
                "sys/fs/cgroup/memory/a/memory.stat": f"inactive_file 0\ntotal_inactive_file {20 * MIB}\n",
            },
            70,
            id="version 1",
        ),
    ],
)
def test_memory_left(tmp_path: Path, files: dict[str, str], mib: int) -> None:
    assert available_memory(root=write(tmp_path, files)) == mib * MIB


def test_what_cannot_be_told_is_unknown(tmp_path: Path) -> None:
    assert available_memory(root=tmp_path) is None
    assert available_memory(root=write(tmp_path, {"proc/meminfo": "MemTotal: 5 kB\n"})) is None


def test_this_machine_can_tell() -> None:
    left = available_memory()
    assert left is not None
    assert left > 0
