"""What a flow can tell about whether it was started warm or cold: the whole list, as data, with the reasons.

`DIFFERENCES` is what the documentation says. Everything that is not on it must be equal; what is on it must differ as it
says, or it is out of date.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

ABSENT = "(absent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that differs: where (a pattern over the paths of facts), what a warm flow sees instead, and why.

    `expected` judges the two values (warm, cold); another difference at the same place is none of these.
    """

    facts: str
    sees: str
    reason: str
    expected: Callable[[Any, Any], bool]

    def explains(self, path: str, warm: Any, cold: Any) -> bool:
        return fnmatchcase(path, self.facts) and self.expected(warm, cold)


def _only_warm_and_installed(warm: Any, cold: Any) -> bool:
    return cold == ABSENT and warm in {"installed", "without a file"}


def _only_cold_has_a_registry(warm: Any, cold: Any) -> bool:
    return (warm, cold) == ([], ["version"]) or sorted([*warm, "__warningregistry__"]) == cold


def _only_warm(_warm: Any, cold: Any) -> bool:
    return cold == ABSENT


def _begins_in_the_fork_server(warm: Any, cold: Any) -> bool:
    return (
        "forkserver_main" in warm[-1] and cold[-1].endswith("engine.py:<module>") and warm[:-1] == cold[:-1]
    )


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        facts="modules/*",
        sees="more names in sys.modules, all of them installed packages or the standard library",
        reason="Prefect was imported as a whole before the fork; the engine alone imports some of it later, or never.",
        expected=_only_warm_and_installed,
    ),
    Difference(
        facts="first_environment/*",
        sees="the fork server's variables in /proc/self/environ (but for the run's mark), not the run's",
        reason="the kernel shows the memory that exec(2) has filled; os.environ, getenv(3) and every child have the run's.",
        expected=lambda warm, cold: warm != cold,
    ),
    Difference(
        facts="logging/loggers/*",
        sees="more loggers, configured as they would be",
        reason="they are those of the modules that are imported already.",
        expected=_only_warm,
    ),
    Difference(
        facts="main/*",
        sees="no `__warningregistry__` in `__main__`",
        reason="the interpreter leaves it there, empty, for a warning that importing Prefect ignores; the fork server has "
        "imported it already.",
        expected=_only_cold_has_a_registry,
    ),
    Difference(
        facts="interpreter/gc.frozen",
        sees="gc.get_freeze_count() above 0",
        reason="what was imported before the fork is exempt from garbage collection, so that its pages stay shared.",
        expected=lambda warm, cold: (warm, cold) == (True, False),
    ),
    Difference(
        facts="interpreter/atexit",
        sees="one more function registered with atexit, called after all of its own",
        reason="it keeps the interpreter from clearing the modules that were imported before the fork.",
        expected=lambda warm, cold: warm == cold + 1,
    ),
    Difference(
        facts="main/bottom_frames",
        sees="a few more frames at the outer end of a stack, those of the fork server, before prefect.engine's",
        reason="a forked process goes on where it was forked; only a dump of the whole stack shows it.",
        expected=_begins_in_the_fork_server,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Something that two cold runs never have in common, and two warm runs of one fork server do."""

    fact: str
    sees: str
    reason: str


SHARED: tuple[Shared, ...] = (
    Shared(
        fact="hash_of_text",
        sees="the same hash of the same text in all runs of one fork server",
        reason="the interpreter chooses the seed when it starts, once for all that is forked from it; each fork server has "
        "another one. PYTHONHASHSEED in a job variable starts the run cold.",
    ),
)
NEVER_SHARED = (
    *("random.state", "random.number", "secret", "urandom", "uuid1", "uuid4", "temporary_name", "authkey"),
    "ssl.random",
)


def unexplained(
    differences: Iterable[tuple[str, Any, Any]], *, allowed: Iterable[Difference] = DIFFERENCES
) -> list[str]:
    """The differences that are not on the list, as lines for a failure's message."""
    allowed = tuple(allowed)
    return [
        f"{path}: warm {warm!r}, cold {cold!r}"
        for path, warm, cold in differences
        if not any(one.explains(path, warm, cold) for one in allowed)
    ]


def difference(warm: Any, cold: Any) -> Generator[tuple[str, Any, Any]]:
    """Every place at which two JSON values differ: its path, and both values."""
    flat = flatten(warm), flatten(cold)
    for path in sorted(flat[0].keys() | flat[1].keys()):
        values = flat[0].get(path, ABSENT), flat[1].get(path, ABSENT)
        if values[0] != values[1]:
            yield path, *values


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """A nested object as one level, its keys joined by a slash; lists are values."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in cast("dict[str, Any]", value).items():
        flat |= flatten(inner, f"{path}/{key}" if path else key)
    return flat
