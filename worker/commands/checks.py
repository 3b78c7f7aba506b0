"""What `headrace doctor` finds: one value per check, and how it is shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.commands.text import one_line


class Status(StrEnum):
    """`FAIL`: a daemon would not start, or would run nothing. `SKIPPED`: another check has to be well first."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, what was found, and what to do about it (empty if nothing)."""

    what: str
    status: Status
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Check:
    """All is well."""
    return Check(what, Status.OK, found)


def warn(what: str, found: str, advice: str) -> Check:
    """A daemon works, but not as well as it could, or not for long."""
    return Check(what, Status.WARN, found, advice)


def fail(what: str, found: str, advice: str) -> Check:
    """A daemon does not work."""
    return Check(what, Status.FAIL, found, advice)


def skipped(what: str, why: str) -> Check:
    """Not looked at."""
    return Check(what, Status.SKIPPED, why)


def line(check: Check) -> str:
    """The finding as one line: status, what was looked at, what was found, what to do."""
    status = "FAIL" if check.status is Status.FAIL else check.status.value
    sentences = " ".join(f"{part.rstrip('.')}." for part in (check.found, check.advice) if part)
    return one_line(f"{status:<7} {check.what}: {sentences}")


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """The JSON form; documented in docs/operating.md."""
    found = list(checks)
    return {
        "ok": not any(check.status is Status.FAIL for check in found),
        "checks": [
            {
                "check": check.what,
                "status": check.status.value,
                "found": check.found,
                "advice": check.advice,
            }
            for check in found
        ],
    }
