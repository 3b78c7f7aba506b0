"""`--help` and `headrace completion`: every command has its page, and every example is a command line that exists."""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from worker.cli import command_line
from worker.completion import SHELLS, commands_of, script
from worker.manual import PAGES


def parsers() -> dict[str, argparse.ArgumentParser]:
    top = command_line()
    return {"": top, **commands_of(top)}


COMMANDS = tuple(parsers())
EXAMPLES = [
    (command, line) for command, page in PAGES.items() if command in COMMANDS for line, _ in page.examples
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_gives_examples_and_says_what_is_heeded(command: str) -> None:
    page = PAGES[command]
    text = parsers()[command].format_help()
    assert page.description in text
    assert "\nexamples:\n  $ headrace " in text
    assert ("\nenvironment:\n" in text) is bool(page.environment)
    assert text.count("\nexit codes:\n  0  ") == 1
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_the_same_when_asked_twice(command: str) -> None:
    parser = parsers()[command]
    assert parser.format_help() == parser.format_help()


@pytest.mark.parametrize(("command", "line"), EXAMPLES)
def test_an_example_is_a_command_line_that_exists(command: str, line: str) -> None:
    program, *arguments = shlex.split(line.partition(" > ")[0])
    assert program == "headrace"
    parsed = command_line().parse_args(arguments)
    assert command in {"", parsed.command}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_knows_commands_flags_and_values(shell: str) -> None:
    text = script(command_line(), shell)
    for word in ("start", "explain", "completion", "drain-timeout", "with-healthcheck", "reschedule"):
        assert word in text, word


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_is_valid_in_its_shell(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here")
    file = tmp_path / "script"
    file.write_text(script(command_line(), shell))
    done = subprocess.run([program, "-n", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_a_flag() -> None:
    program = shutil.which("bash")
    if program is None:
        pytest.skip("bash is not installed here")
    ask = """
        COMP_WORDS=(headrace start --drain) COMP_CWORD=2
        "$(complete -p headrace | sed 's/.*-F \\([^ ]*\\).*/\\1/')" headrace --drain start
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        [program, "--norc", "-c", script(command_line(), "bash") + ask],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"\S+", done.stdout) == ["--drain-timeout"]
