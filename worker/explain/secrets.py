"""What `headrace explain` keeps to itself unless `--show-secrets` asks for it.

A value is hidden as a whole when its name, or the name of what filled it, says that it is secret, or when
a block filled it. In any other text, passwords in URLs and options are masked, and so is every credential
that is known by value. Owns no output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.runs.layers import Layer
from worker.runs.placeholders import is_list, is_object
from worker.runs.provenance import Provenance

HIDDEN: Final = "(hidden)"
MASK: Final = "********"

_NAME: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|api_?key|private_?key|access_?key(?!_?id)"
    r"|auth_?string|authorization|custom_?headers|(^|[_.])(pwd|pat|auth|cookie)($|[_.])",
    re.IGNORECASE,
)
_URL_PASSWORD: Final = re.compile(r"(://[^/\s:@]*:)[^/\s]+(?=@)")
_ASSIGNED: Final = re.compile(r"((?:password|passwd|pwd|secret|token|api_?key)=)[^&;\s'\"]+", re.IGNORECASE)
_OPTION: Final = re.compile(
    r"((?<!\S)--?[\w-]*(?:password|token|secret|api-?key)[\w-]*[\s=]+)[^\s'\"]+", re.IGNORECASE
)

_SECRET_OPTION: Final = re.compile(
    r"--?[\w-]*(?:password|passwd|passphrase|token|secret|credential|api-?key|private-?key)[\w-]*",
    re.IGNORECASE,
)


def is_secret(key: str, provenance: Provenance) -> bool:
    """Tell whether the value of a key is to be hidden as a whole."""
    block = f"{Layer.BLOCK} "
    from_block = provenance.layer is Layer.BLOCK or any(
        filler.startswith(block) for filler in provenance.filled_by
    )
    return from_block or any(_NAME.search(name) for name in (key, *provenance.filled_by))


@dataclass(frozen=True, slots=True)
class Discretion:
    """How much is shown. `redact` masks the credentials that are known by value."""

    show: bool
    redact: Callable[[str], str]

    def text(self, text: str) -> str:
        """The text, with passwords and known credentials masked."""
        if self.show:
            return text
        text = self.redact(text)
        for pattern in (_URL_PASSWORD, _OPTION, _ASSIGNED):
            text = pattern.sub(rf"\1{MASK}", text)
        return text

    def value(self, value: Any, *, secret: bool) -> Any:
        """Any JSON value in the same way; a secret one is hidden unless it is null or a boolean."""
        if self.show or value is None or isinstance(value, bool):
            return value
        if secret:
            return HIDDEN
        if isinstance(value, str):
            return self.text(value)
        if is_object(value):
            return {
                name: self.value(item, secret=_NAME.search(str(name)) is not None)
                for name, item in value.items()
            }
        if is_list(value):
            return [self.value(item, secret=False) for item in value]
        return value

    def words(self, words: Sequence[str], *, secret: bool) -> list[str]:
        """The words of a command, in the same way; the one after `--password` is masked, too."""
        masked = [self.value(word, secret=secret) for word in words]
        if self.show or secret:
            return masked
        for place, word in enumerate(words):
            option, equals, _ = word.partition("=")
            if not _SECRET_OPTION.fullmatch(option):
                continue
            if equals:
                masked[place] = f"{option}={MASK}"
            elif place + 1 < len(words):
                masked[place + 1] = MASK
        return masked

    def texts(self, texts: Iterable[str]) -> list[str]:
        """Each text in the same way."""
        return [self.text(text) for text in texts]
