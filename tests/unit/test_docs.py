"""What README and docs tell people to type exists: commands, flags, targets, settings, files and headings."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.support.docs import LAYERS, ROOT, Page, flags, pages, simple_commands
from worker import cli
from worker.settings_catalogue import CATALOGUE

PAGES = pages()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

# Flags of other programs that the pages name on their own.
FOREIGN_FLAGS = {
    "--build-arg": "docker",
    "--format": "podman",
    "--init": "docker",
    "--job-variable": "prefect",
    "--lf": "pytest",
    "--password": "some command of a user's",
    "--project": "uv",
    "--quick": "make bench",
    "--secret": "docker",
    "--stop-timeout": "docker",
}
COMMANDS, SERVICE, IMAGE = (
    "tests/server/test_docs_commands.py",
    "tests/systemd/install_and_run.py",
    "tests/docker/build_and_run.py",
)
# Who runs the commands in a page's shell blocks that begin with this word: all of them, as they stand there.
RUN_BY = {
    ("README.md", "headrace"): COMMANDS,
    ("README.md", "pip"): COMMANDS,
    ("docs/docker.md", "docker"): IMAGE,
    ("docs/job-variables.md", "echo"): "tests/server/test_explain_docs.py",
    ("docs/job-variables.md", "headrace"): "tests/server/test_explain_docs.py",
    ("docs/job-variables.md", "prefect"): "tests/server/test_explain_docs.py",
    ("docs/migrating.md", "headrace"): COMMANDS,
    ("docs/migrating.md", "prefect"): COMMANDS,
    ("docs/operating-service.md", "echo"): SERVICE,
    ("docs/operating-service.md", "sudo"): SERVICE,
    ("docs/operating.md", "headrace"): "tests/server/test_operating_docs.py",
}
# Those that no test runs, and why.
NOT_RUN = {
    ("README.md", "make"): "its targets are what runs the tests; they are looked up below",
    ("docs/docker.md", "debootstrap"): "makes what the check of the image is given",
    ("docs/docker.md", "python"): "is the check of the image",
    ("docs/operating-service.md", "debootstrap"): "makes what the check of the unit is given",
    ("docs/operating-service.md", "python"): "is the check of the unit",
}
# The same of other programs' commands in sentences, whatever the page.
IN_SENTENCES = {
    "buildah": "the image's check does what it names",
    "docker": "as buildah",
    "journalctl": COMMANDS,
    "jq": COMMANDS,
    "make": "its targets are looked up below",
    "pip": "README has the same in a block",
    "podman": "as buildah",
    "prefect": COMMANDS,
    "python": "modules that are run as programs, not commands to type",
    "systemctl": "the check of the unit asks it the same",
    "uv": "it is a deployment's command, as it is in tests/server/test_uv.py",
}
# Programs whose name at the beginning of code in a sentence makes it a command.
PROGRAMS = IN_SENTENCES.keys() | {"curl", "debootstrap", "kubectl", "psql", "sudo", "uv"}
# Variables of Prefect's that are no settings: made for one run, or read before there are settings.
VARIABLES = re.compile(r"PREFECT__\w+|PREFECT_(UNIT_)?TEST_MODE|HEADRACE_EXECUTION_ID")


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """Give a command line to the real parser; the exit code of doing so, without doing what it says."""

    def nothing(_arguments: object) -> int:
        return 0

    monkeypatch.setattr(cli, "_run", nothing)

    def parsed(words: list[str]) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        return left.value.code if isinstance(left.value.code, int) else 1

    return parsed


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def text(*words: str) -> str:
        with suppress(SystemExit):
            cli.main([*words, "--help"])
        return capsys.readouterr().out

    return text


def subcommands(text: str) -> set[str]:
    return set(re.findall(r"^ {4}([a-z]+) ", text, re.MULTILINE))


def headrace_commands(page: Page) -> Iterator[list[str]]:
    """The arguments of each `headrace` in the page's shell blocks, those given to a container of it included."""
    for command in page.commands():
        if command[0] == "headrace":
            yield command[1:]
        elif command[:2] == ["docker", "run"] and "headrace" in command:
            arguments = command[command.index("headrace") + 1 :]
            if arguments:
                yield arguments


@EVERY_PAGE
def test_every_command_is_understood(page: Page, parse: Callable[[list[str]], int]) -> None:
    refused = [words for words in headrace_commands(page) if parse(words) != 0]
    assert not refused


def test_there_are_commands_to_look_at() -> None:
    assert sum(1 for page in PAGES for _ in headrace_commands(page)) >= 5


def in_sentences(page: Page) -> set[str]:
    """Other programs whose commands stand in the page's sentences."""
    commands = (code for code in page.code() if code.split()[0] in PROGRAMS and code not in LAYERS)
    return {words[0] for code in commands if " " in code for words in simple_commands(code)}


@EVERY_PAGE
def test_every_command_is_run_somewhere_or_has_a_reason_not_to_be(page: Page) -> None:
    in_blocks = {(page.name, words[0]) for words in page.commands()}
    assert in_blocks - RUN_BY.keys() - NOT_RUN.keys() == set()
    assert in_sentences(page) - IN_SENTENCES.keys() == set()


def test_what_is_said_to_run_commands_reads_them_from_the_page() -> None:
    assert RUN_BY.keys() | NOT_RUN.keys() == {
        (page.name, words[0]) for page in PAGES for words in page.commands()
    }
    assert not RUN_BY.keys() & NOT_RUN.keys()
    assert IN_SENTENCES.keys() == {program for page in PAGES for program in in_sentences(page)}
    for (page, _), runner in RUN_BY.items():
        name = page.rpartition("/")[2]
        assert f'"{name}"' in (text := (ROOT / runner).read_text(encoding="utf-8")) or f"/{name}" in text, (
            page,
            runner,
        )


@EVERY_PAGE
def test_every_command_in_a_sentence_exists(page: Page, help_of: Callable[..., str]) -> None:
    known = subcommands(help_of())
    assert {"start", "explain"} <= known
    for code in page.code():
        if code not in LAYERS and (match := re.match(r"headrace ([a-z]+)\b", code)):
            assert match[1] in known, code
            assert flags(code) <= flags(help_of(match[1])), code


@EVERY_PAGE
def test_every_flag_in_a_sentence_exists(page: Page, help_of: Callable[..., str]) -> None:
    known = flags(help_of()).union(*(flags(help_of(command)) for command in subcommands(help_of())))
    named = {flag for code in page.code() if code.startswith("--") for flag in flags(code)}
    assert not named - known - FOREIGN_FLAGS.keys()


@EVERY_PAGE
def test_every_make_target_exists(page: Page) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
    in_sentences = [
        words
        for code in page.code()
        if code.startswith("make ")
        for words in simple_commands(code.replace("…", "x"))
    ]
    for words in [*page.commands(), *in_sentences]:
        if words[0] == "make":
            given = {word.partition("=")[0] for word in words[1:] if "=" in word}
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            assert given <= variables, words


@EVERY_PAGE
def test_every_link_leads_somewhere(page: Page) -> None:
    for target in page.links():
        file, _, fragment = target.partition("#")
        found = page.path.parent / file if file else page.path
        assert found.exists(), target
        if fragment:
            assert fragment in Page(found).anchors(), target


@EVERY_PAGE
def test_every_setting_exists(page: Page) -> None:
    known = set(CATALOGUE.by_name)
    unknown = {
        name
        for name in page.settings()
        if not VARIABLES.fullmatch(name)
        and not (name.endswith("*") and any(one.startswith(name[:-1]) for one in known))
        and name not in known
    }
    assert not unknown


def test_every_flag_of_start_is_documented(help_of: Callable[..., str]) -> None:
    """Those of headrace's own; the others are Prefect's, and documented there."""
    ours = flags(help_of("start").partition("of headrace's own")[2])
    text = "".join(page.text for page in PAGES)
    assert not {flag for flag in ours if not flag.startswith("--no-")} - flags(text)


def test_every_setting_of_ours_is_documented() -> None:
    text = "".join(page.text for page in PAGES)
    assert not {name for name in CATALOGUE.by_name if name.startswith("HEADRACE_") and name not in text}


def test_taking_a_line_apart() -> None:
    line = "A=1 headrace start -p x && make demo KEEP=1  # a comment"
    assert list(simple_commands(line)) == [["headrace", "start", "-p", "x"], ["make", "demo", "KEEP=1"]]
