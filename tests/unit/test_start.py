"""What `headrace start` makes of its flags before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from worker import state_directory
from worker.cli import main
from worker.configuration import ConfigurationError, default_name
from worker.start import read_template


def exit_code_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["start"], 1, "--pool"),
        (["start", "-p", "x", "-n", "a/b"], 1, "'a/b'"),
        (["start", "-p", "x", "-n", "a%b"], 1, "--name"),
        (["start", "-p", "x", "-t", "kubernetes"], 1, "kubernetes"),
        (["start", "-p", "x", "--limit", "0"], 2, "no limit"),
        (["start", "-p", "x", "--limit", "many"], 2, "many"),
        (["start", "-p", "x", "--prefetch-seconds", "-1"], 2, "0 or more"),
        (["start", "-p", "x", "--install-policy", "sometimes"], 2, "if-not-present"),
        (["start", "-p", "x", "--job-variables", "magic"], 2, "layered"),
        (["start", "-p", "x", "--unknown"], 2, "--unknown"),
        (["stop-everything"], 2, "stop-everything"),
        (["start", "-p", "x", "--profile", "nobody"], 1, "nobody"),
        (["start", "-p", "x"], 1, "PREFECT_API_URL"),
    ],
)
def test_bad_input_names_the_thing_and_the_fix(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert exit_code_of(*arguments) == code
    assert words in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("--version") == 0
    assert capsys.readouterr().out.startswith("headrace ")


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of() == 2
    assert "start" in capsys.readouterr().out


@pytest.mark.parametrize("pool", ["etl", "a/b %"])
def test_the_default_name_is_stable_and_allowed(pool: str) -> None:
    name = default_name(pool, hostname="host")
    assert name == default_name(pool, hostname="host")
    assert name.startswith("host-")
    assert not set("/%") & set(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "job_configuration"),
        ('{"job_configuration": {}}', "variables"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_template_file_is_named(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=words) as raised:
        read_template(str(file))
    assert str(file) in str(raised.value)


def test_a_template_file_is_read(tmp_path: Path) -> None:
    template: dict[str, Any] = {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"properties": {}},
    }
    file = tmp_path / "template.json"
    file.write_text(json.dumps(template))
    assert read_template(str(file)) == template
    assert read_template(None) is None


def test_each_worker_has_a_directory_of_its_own(tmp_path: Path) -> None:
    def directory(api_url: str, pool: str, name: str) -> Path:
        return state_directory.for_worker(tmp_path, api_url=api_url, pool=pool, name=name).path

    first = directory("http://a/api", "p", "näme with / odd")
    others = {
        directory("http://b/api", "p", "näme with / odd"),
        directory("http://a/api", "q", "näme with / odd"),
        directory("http://a/api", "p", "other"),
    }
    assert first == directory("http://a/api", "p", "näme with / odd")
    assert len({first, *others}) == 4
    assert first.stat().st_mode & 0o777 == 0o700
    assert tmp_path in first.parents
