"""The directories of attempts: found again by their names, removed whatever a flow did to them."""

import os
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from worker.runs.workspace import Workspace, all_in, remove

pytestmark = pytest.mark.anyio


async def test_made_found_and_removed(tmp_path: Path) -> None:
    run = uuid4()
    workspace = Workspace.make(tmp_path / "runs", run)
    assert workspace.work.is_dir()
    assert not workspace.output.exists()
    assert all_in(tmp_path / "runs") == {workspace.directory: run}
    await workspace.remove()
    await workspace.remove()
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_was_passed_on_is_kept_for_the_next_daemon(tmp_path: Path) -> None:
    workspace = Workspace.make(tmp_path, uuid4())
    assert workspace.delivered() == 0
    workspace.note_delivered(12345)
    assert Workspace(workspace.directory).delivered() == 12345
    (workspace.directory / "delivered").write_text("12x")
    assert workspace.delivered() == 0
    (workspace.directory / "delivered").unlink()
    os.mkfifo(workspace.directory / "delivered")
    workspace.note_delivered(1)
    assert workspace.delivered() == 0, "a pipe that a flow put there is not waited for"
    remove(workspace.directory)
    workspace.note_delivered(1)


def test_what_is_not_an_attempts_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / f"{uuid4()}").mkdir()
    assert all_in(tmp_path) == {}
    assert all_in(tmp_path / "missing") == {}


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_directory_without_rights_is_removed(tmp_path: Path, mode: int) -> None:
    deep = tmp_path / "run" / "work" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    for directory in (deep, deep.parent, deep.parent.parent):
        directory.chmod(mode)
    with capture_logs() as logs:
        remove(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert logs == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "precious")
    remove(tmp_path / "run")
    assert (tmp_path / "precious" / "file").exists()
    assert not (tmp_path / "run").exists()
