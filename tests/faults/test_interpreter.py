"""Asking real interpreters, and things that are none, whether they can run flows."""

import os
import resource
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from tests.support.wait import wait_for
from worker.processes.interpreter import InterpreterError, NotAsked, inspect_interpreter

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


async def refusal(python: str | Path, *, timeout: float = 60.0) -> str:
    with pytest.raises(InterpreterError) as caught:
        await inspect_interpreter(str(python), timeout=timeout)
    message = str(caught.value)
    assert "\n" not in message
    return message


def program(directory: Path, text: str) -> Path:
    path = directory / "python"
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_prefect(directory: Path, release: str) -> Path:
    """An installed distribution called prefect that must not be imported."""
    (directory / "prefect").mkdir()
    (directory / "prefect" / "__init__.py").write_text("raise SystemExit('imported')")
    metadata = directory / f"prefect-{release}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prefect\nVersion: {release}\n")
    return directory


async def test_our_own() -> None:
    found = await inspect_interpreter(sys.executable)
    assert found.executable == sys.executable  # the virtual environment's link, not what it points to
    assert found.prefect_version == version("prefect")
    assert found.python_version == ".".join(map(str, sys.version_info[:3]))


async def test_a_name_is_looked_up_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert (await inspect_interpreter("python")).executable == str(Path(sys.executable).parent / "python")


async def test_a_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(sys.executable).parent)
    assert (await inspect_interpreter("./python")).executable == str(Path(sys.executable).parent / "python")


async def test_prefect_on_pythonpath_counts_and_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake_prefect(tmp_path, "3.99.0rc1")))
    assert (await inspect_interpreter(sys.executable)).prefect_version == "3.99.0rc1"


async def test_prefect_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fake_prefect(tmp_path, "2.20.1")))
    message = await refusal(sys.executable)
    assert "Prefect 2.20.1" in message
    assert f"{sys.executable} -m pip install prefect -U" in message


async def test_no_prefect(tmp_path: Path) -> None:
    base = Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}"
    path = program(tmp_path, f'#!/bin/sh\nexec {base} -I -S "$@"\n')
    message = await refusal(path)
    assert message.startswith(f"Prefect is not installed for {path}")
    assert f"{path} -m pip install prefect" in message


async def test_not_there(tmp_path: Path) -> None:
    assert "does not exist" in await refusal(tmp_path / "none")
    assert "no-such-python does not exist" in await refusal("no-such-python")
    assert "is a directory" in await refusal(tmp_path)
    path = program(tmp_path, "")
    path.chmod(0o644)
    assert "is not executable" in await refusal(path)


async def test_no_program(tmp_path: Path) -> None:
    assert "is not a program" in await refusal(program(tmp_path, "hello"))
    assert "cannot be started" in await refusal(program(tmp_path, "#!/no/such/interpreter\n"))


async def test_no_python(tmp_path: Path) -> None:
    message = await refusal(program(tmp_path, "#!/bin/sh\necho 'what is this?' >&2\nexit 3\n"))
    assert "exit status 3: what is this?" in message
    assert "no output" in await refusal("/bin/true")
    assert "did not answer as a Python interpreter" in await refusal("/bin/echo")


async def test_one_that_hangs(tmp_path: Path) -> None:
    message = await refusal(program(tmp_path, "#!/bin/sh\nexec sleep 600\n"), timeout=0.2)
    assert "did not answer within 0.2 s" in message


async def test_noise_around_the_answer(tmp_path: Path) -> None:
    script = f'#!/bin/sh\necho noise\n{sys.executable} "$@"\necho noise\n'
    assert (await inspect_interpreter(str(program(tmp_path, script)))).prefect_version == version("prefect")


async def test_what_lies_in_the_current_directory_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(fake_prefect(tmp_path, "9.9.9"))
    assert (await inspect_interpreter(sys.executable)).prefect_version == version("prefect")


async def test_one_that_never_stops_talking_is_ended(tmp_path: Path) -> None:
    talker = program(tmp_path, f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec cat /dev/zero\n")
    assert "did not answer as a Python interpreter does" in await refusal(talker)
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(pid), description="its end")


async def test_what_a_wrapper_has_started_ends_with_it(tmp_path: Path) -> None:
    wrapper = program(tmp_path, f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/pid\nwait\n")
    assert "did not answer within" in await refusal(wrapper, timeout=3)
    pid = int((tmp_path / "pid").read_text())
    wait_for(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
        description="the end of what it had started",
    )


async def test_without_a_descriptor_nothing_is_known() -> None:
    await inspect_interpreter(sys.executable)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open("/", os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(NotAsked, match="cannot be asked now"):
            await inspect_interpreter(sys.executable)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
