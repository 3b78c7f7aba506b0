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
_OPTION: Final = re.compile(
    r"((?:password|passwd|pwd|secret|token|api_?key)=|(?<!\S)--?[\w-]*(?:password|token|secret|api-?key)\s+)[^&;\s'\"]+",
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
        return _OPTION.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1{MASK}", self.redact(text)))

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
        for place, (option, word) in enumerate(zip(words, masked[1:], strict=False), start=1):
            if not self.show and not secret and _OPTION.fullmatch(f"{option} {word}") is not None:
                masked[place] = MASK
        return masked

    def texts(self, texts: Iterable[str]) -> list[str]:
        """Each text in the same way."""
        return [self.text(text) for text in texts]
