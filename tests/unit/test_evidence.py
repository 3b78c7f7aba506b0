"""What the kernel's counters say: real files in a tree of the test's own, as different kernels lay them out."""

from pathlib import Path

import pytest

from worker.processes.evidence import (
    CgroupMemory,
    MemoryEvidence,
    describe_bytes,
    explain_memory_death,
    read_memory_evidence,
)

MEBI = 1 << 20
KILLER = "the kernel's out-of-memory killer struck"
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"


class Tree:
    """A machine's /proc and /sys."""

    def __init__(self, root: Path, *, cgroup: str, mounts: str = "", vmstat: int | None = 0) -> None:
        self.root = root
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", mounts)
        if vmstat is not None:
            self.machine(vmstat)

    def write(self, path: str, content: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def machine(self, kills: int) -> None:
        self.write("proc/vmstat", f"nr_free_pages 17\noom_kill {kills}\noom_kill_other 99\n")

    def v2(self, path: str, *, kills: int, ooms: int = 0, limit: str = "max") -> None:
        events = f"low 0\nhigh 0\nmax 12\noom {ooms}\noom_kill {kills}\noom_group_kill 0\n"
        self.write(f"sys/fs/cgroup{path}/memory.events", events)
        self.write(f"sys/fs/cgroup{path}/memory.max", f"{limit}\n")

    def v1(self, path: str, *, kills: int, limit: int = 9223372036854771712) -> None:
        self.write(
            f"sys/fs/cgroup/memory{path}/memory.oom_control",
            f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
        )
        self.write(f"sys/fs/cgroup/memory{path}/memory.limit_in_bytes", f"{limit}\n")

    def read(self) -> MemoryEvidence:
        return read_memory_evidence(root=self.root)


def service(root: Path) -> Tree:
    """A systemd service under v2, limited itself."""
    tree = Tree(root, cgroup="0::/system.slice/worker.service\n", mounts=V2_MOUNT)
    tree.v2("/system.slice/worker.service", kills=3, ooms=2, limit=str(512 * MEBI))
    tree.v2("/system.slice", kills=5, ooms=4)
    return tree


def test_what_a_service_reads(tmp_path: Path) -> None:
    assert service(tmp_path).read() == MemoryEvidence(
        cgroups=(
            CgroupMemory("/system.slice/worker.service", oom_kills=3, ooms=2, limit=512 * MEBI),
            CgroupMemory("/system.slice", oom_kills=5, ooms=4),
            CgroupMemory("/"),  # the root of a machine has no counters
        ),
        oom_kills=0,
    )


def test_nothing_moved(tmp_path: Path) -> None:
    tree = service(tmp_path)
    assert explain_memory_death(tree.read(), tree.read()) is None


def test_the_limit_of_the_cgroup_was_hit(tmp_path: Path) -> None:
    tree = service(tmp_path)
    before = tree.read()
    tree.v2("/system.slice/worker.service", kills=4, ooms=3, limit=str(512 * MEBI))
    tree.v2("/system.slice", kills=6, ooms=5)
    tree.machine(1)
    assert (
        explain_memory_death(before, tree.read()) == f"{KILLER} in the worker's cgroup (memory limit 512 MiB)"
    )


def test_the_limit_of_a_cgroup_above_was_hit(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="0::/pod/container\n", mounts=V2_MOUNT)
    tree.v2("/pod/container", kills=0, limit=str(2048 * MEBI))
    tree.v2("/pod", kills=0, limit=str(1536 * MEBI))
    before = tree.read()
    tree.v2("/pod/container", kills=1, limit=str(2048 * MEBI))
    tree.v2("/pod", kills=1, ooms=1, limit=str(1536 * MEBI))
    assert (
        explain_memory_death(before, tree.read())
        == f"{KILLER} in the worker's cgroup (memory limit 1.5 GiB of the parent cgroup /pod)"
    )


def test_no_limit_is_blamed_when_the_whole_machine_was_short(tmp_path: Path) -> None:
    tree = service(tmp_path)
    before = tree.read()
    tree.v2("/system.slice/worker.service", kills=4, ooms=2, limit=str(512 * MEBI))
    tree.v2("/system.slice", kills=6, ooms=4)
    tree.machine(1)
    assert explain_memory_death(before, tree.read()) == f"{KILLER} in the worker's cgroup"


def test_a_neighbour_was_killed(tmp_path: Path) -> None:
    tree = service(tmp_path)
    before = tree.read()
    tree.v2("/system.slice", kills=6, ooms=5)
    tree.machine(1)
    assert (
        explain_memory_death(before, tree.read())
        == f"{KILLER} on this machine while it ran, though not in the worker's cgroup"
    )


def test_a_cgroup_without_the_memory_controller_is_counted_by_the_one_above(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="0::/user.slice/app.scope\n", mounts=V2_MOUNT)
    tree.v2("/user.slice", kills=0, limit=str(64 * MEBI))
    before = tree.read()
    tree.v2("/user.slice", kills=1, ooms=1, limit=str(64 * MEBI))
    assert (
        explain_memory_death(before, tree.read())
        == f"{KILLER} in the worker's parent cgroup /user.slice (memory limit 64 MiB)"
    )


def test_a_container_with_a_namespace_of_its_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="0::/\n", mounts=V2_MOUNT)
    tree.v2("", kills=0, limit=str(512 * MEBI))
    before = tree.read()
    tree.v2("", kills=1, ooms=1, limit=str(512 * MEBI))
    assert (
        explain_memory_death(before, tree.read()) == f"{KILLER} in the worker's cgroup (memory limit 512 MiB)"
    )


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        pytest.param(
            "/docker/4711", "/docker/4711", id="path as the host sees it, mount of the own directory"
        ),
        pytest.param("/../../other", "/", id="outside of the namespace"),
        pytest.param("/moved/since", "/docker/4711", id="not below what is mounted"),
    ],
)
def test_a_container_that_sees_its_own_directory_only(tmp_path: Path, path: str, mounted: str) -> None:
    mount = V2_MOUNT.replace("0:28 /", f"0:28 {mounted}")
    tree = Tree(tmp_path, cgroup=f"0::{path}\n", mounts=mount)
    tree.v2("", kills=7)
    assert tree.read().cgroups == (CgroupMemory("/", oom_kills=7, ooms=0),)


def test_a_mount_elsewhere_with_a_space_in_its_name(tmp_path: Path) -> None:
    mount = V2_MOUNT.replace("/sys/fs/cgroup", r"/my\040groups")
    tree = Tree(tmp_path, cgroup="0::/a\n", mounts=mount)
    tree.write("my groups/a/memory.events", "oom 1\noom_kill 2\n")
    assert tree.read().cgroups[0] == CgroupMemory("/a", oom_kills=2, ooms=1)


@pytest.mark.parametrize("mounts", [V1_MOUNT, ""])
def test_version_1_beside_a_version_2_without_memory(tmp_path: Path, mounts: str) -> None:
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    tree = Tree(
        tmp_path,
        cgroup="5:cpu,cpuacct:/\n4:memory:/jobs/worker\n0::/\n",
        mounts=(unified + mounts) if mounts else "",
    )
    tree.v1("/jobs/worker", kills=0, limit=512 * MEBI)
    tree.v1("/jobs", kills=0, limit=256 * MEBI)
    tree.v1("", kills=0)
    before = tree.read()
    assert [cgroup.limit for cgroup in before.cgroups] == [512 * MEBI, 256 * MEBI, None]
    tree.v1("/jobs", kills=1, limit=256 * MEBI)
    assert explain_memory_death(before, tree.read()) is None  # not one of ours: v1 counts each group apart
    tree.v1("/jobs/worker", kills=1, limit=512 * MEBI)
    assert (
        explain_memory_death(before, tree.read())
        == f"{KILLER} in the worker's cgroup (memory limit 256 MiB of the parent cgroup /jobs)"
    )


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="4:memory:/\n", mounts=V1_MOUNT)
    tree.v1("", kills=0)
    before = tree.read()
    tree.v1("", kills=1)
    assert explain_memory_death(before, tree.read()) == f"{KILLER} in the worker's cgroup"


def test_only_the_machine_can_be_read(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="")
    before = tree.read()
    assert before == MemoryEvidence(oom_kills=0)
    tree.machine(1)
    assert explain_memory_death(before, tree.read()) == f"{KILLER} on this machine while it ran"


def test_nothing_can_be_read(tmp_path: Path) -> None:
    nothing = read_memory_evidence(root=tmp_path / "none")
    assert nothing == MemoryEvidence()
    assert explain_memory_death(nothing, nothing) is None


def test_what_became_readable_or_unreadable_meanwhile_says_nothing(tmp_path: Path) -> None:
    tree = service(tmp_path)
    tree.machine(5)
    assert explain_memory_death(MemoryEvidence(), tree.read()) is None
    assert explain_memory_death(tree.read(), MemoryEvidence()) is None


def test_a_cgroup_made_anew_counts_from_zero(tmp_path: Path) -> None:
    tree = service(tmp_path)
    before = tree.read()
    tree.v2("/system.slice/worker.service", kills=0)
    assert explain_memory_death(before, tree.read()) is None


def test_another_cgroup_than_before_says_nothing(tmp_path: Path) -> None:
    tree = service(tmp_path)
    before = tree.read()
    tree.write("proc/self/cgroup", "0::/elsewhere\n")
    tree.v2("/elsewhere", kills=9, ooms=9)
    assert explain_memory_death(before, tree.read()) is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe\x00",
        b"oom_kill",
        b"oom_kill -1",
        b"oom_kill \xb2\n",
        b"0::",
        b"::\n0:\n",
        b"1 2 3 - cgroup2",
        b"0::/a\x00b\n",
    ],
)
def test_garbage_is_not_readable_but_no_error(tmp_path: Path, garbage: bytes) -> None:
    tree = Tree(tmp_path, cgroup="0::/\n4:memory:/\n", mounts=V2_MOUNT + "\n" + V1_MOUNT)
    for file in ("memory.events", "memory.max", "memory/memory.oom_control"):
        tree.write(f"sys/fs/cgroup/{file}", garbage)
    tree.write("proc/vmstat", garbage)
    seen = tree.read()
    assert seen.oom_kills is None
    assert all(cgroup.oom_kills is None for cgroup in seen.cgroups)
    for file in ("proc/self/cgroup", "proc/self/mountinfo"):
        tree.write(file, garbage)
        tree.read()


def test_a_directory_in_the_place_of_a_file(tmp_path: Path) -> None:
    tree = Tree(tmp_path, cgroup="0::/\n", mounts=V2_MOUNT, vmstat=None)
    (tmp_path / "proc/vmstat").mkdir()
    assert tree.read().oom_kills is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 MiB"),
        (512 * 1024, "0.5 MiB"),
        (512 * MEBI, "512 MiB"),
        (1023 * MEBI + 800 * 1024, "1.0 GiB"),
        (1536 * MEBI, "1.5 GiB"),
        (250 * 1024 * MEBI, "250.0 GiB"),
    ],
)
def test_bytes_in_words(count: int, text: str) -> None:
    assert describe_bytes(count) == text
