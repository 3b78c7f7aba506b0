"""What would keep a process from being started: the same words as when it has been tried."""

import os
from pathlib import Path

import pytest

from worker.processes.launch_foresight import foresee
from worker.processes.launch_problems import LARGEST_STRING, LaunchSpec


def seen(
    directory: Path, *argv: str, path: str = "/usr/bin:/bin", fresh: bool = False, **env: str
) -> str | None:
    spec = LaunchSpec(argv=argv or ("sh",), env={"PATH": path, **env}, cwd=directory, stream_output=True)
    return foresee(spec, fresh_directory=fresh)


def test_nothing_is_in_the_way(tmp_path: Path) -> None:
    assert seen(tmp_path) is None
    assert seen(tmp_path, "/bin/sh", "-c", "x") is None
    assert seen(tmp_path / "made-for-the-run", "/bin/sh", fresh=True) is None


def test_the_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert seen(tmp_path / "none") == (
        f"the working directory {tmp_path / 'none'} does not exist: create it or change `working_dir`"
    )
    assert "is not a directory" in str(seen(file))
    assert "is not a directory" in str(seen(file / "below"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every directory")
def test_a_directory_that_may_not_be_entered(tmp_path: Path) -> None:
    tmp_path.chmod(0o600)
    assert "may not be entered" in str(seen(tmp_path))
    tmp_path.chmod(0o700)


def test_the_program(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert "'no-such-program' is not in PATH (/usr/bin:/bin)" in str(seen(tmp_path, "no-such-program"))
    assert "does not exist" in str(seen(tmp_path, "./none"))
    assert "may not be executed" in str(seen(tmp_path, "./script"))
    assert "may not be executed" in str(seen(tmp_path, "script", path=str(tmp_path)))
    script.chmod(0o755)
    assert seen(tmp_path, "./script") is None
    assert seen(tmp_path, "script", path=f"/none:{tmp_path}") is None
    assert "is a directory" in str(seen(tmp_path, str(tmp_path)))


def test_a_fresh_directory_has_no_program_in_it(tmp_path: Path) -> None:
    assert "does not exist" in str(seen(tmp_path / "fresh", "./script", fresh=True))


def test_what_is_too_big(tmp_path: Path) -> None:
    assert seen(tmp_path, BIG="x" * (LARGEST_STRING - len("BIG=") - 1)) is None
    assert "the environment variable BIG has" in str(seen(tmp_path, BIG="x" * LARGEST_STRING))
    assert "argument 1 of the command has" in str(seen(tmp_path, "sh", "x" * LARGEST_STRING))
