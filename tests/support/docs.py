"""The pages for users as data: their commands, links, headings and the names they mention.

Owns how Markdown is taken apart. What is right is the tests' business.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = {"sh", "bash", "console", "shell"}
_SEPARATORS = {"&&", "||", "|", ";", "&"}
# Layers of an environment that `headrace explain` names; they look like commands.
LAYERS = {"headrace default", "prefect settings"}


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return _FENCE.sub("", self.text)

    def commands(self) -> Iterator[list[str]]:
        """The words of each simple command in the page's shell blocks."""
        for language, block in _FENCE.findall(self.text):
            if language in _SHELL:
                lines = block.replace("\\\n", " ").splitlines()
                typed = [line for line in lines if line.startswith("$ ")]
                # With prompts, the other lines are what was printed.
                for line in typed or lines:
                    yield from simple_commands(line)

    def code(self) -> list[str]:
        """What stands between single backticks."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    def links(self) -> list[str]:
        """Where the page links to inside the project."""
        return [target for target in re.findall(r"\]\(([^)\s]+)\)", self.prose) if "://" not in target]

    def anchors(self) -> set[str]:
        """The fragments that GitHub makes of its headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def settings(self) -> set[str]:
        """The settings it names, a trailing `*` included."""
        return set(re.findall(r"\b(?:PREFECT|HEADRACE)_[A-Z0-9_]+\*?(?![A-Z0-9_*=])", self.text))


def pages() -> list[Page]:
    """README and everything under docs."""
    return [Page(ROOT / "README.md"), *(Page(path) for path in sorted((ROOT / "docs").glob("*.md")))]


def flags(text: str) -> set[str]:
    """The long flags that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def simple_commands(line: str) -> Iterator[list[str]]:
    """The commands of one line, without assignments before them, prompts, comments and redirections."""
    words = shlex.split(re.sub(r"\s\d?>\s*\S+", "", line.removeprefix("$ ")), comments=True)
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _SEPARATORS:
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)
