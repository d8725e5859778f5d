"""Regular expressions by kind, in a TOML file: what a sentence is told by.

    advert = ['\\bbrought to you by\\b', ...]

Owns the file and what is found in a text. Host side, never jax.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import read_text

_EXPECTED = "lists of regular expressions by kind, as TOML: kind = ['...', '...']"


@dataclass(frozen=True)
class Patterns:
    """by_kind: regular expressions, in the order in which kinds are looked for. Capitals and small letters are the same."""

    by_kind: Mapping[str, Sequence[str]]

    @classmethod
    def of_package(cls, name: str) -> "Patterns":
        """Those of `svlm_jax/curate/english/NAME.toml`."""
        text = resources.files("svlm_jax.curate").joinpath(f"english/{name}.toml").read_text(encoding="utf-8")
        return cls(tomllib.loads(text))

    @classmethod
    def read(cls, path: str | Path, flag: str, kinds: Sequence[str] = ()) -> "Patterns":
        """
        Args:
            flag: how errors call the file.
            kinds: that it must have, and none besides; (): any.

        Raises:
            InputError: no such file, another form, or no regular expression.
        """
        field = f"{flag} {shortened(Path(path).name, 60)}"
        text = read_text(path, flag, _EXPECTED)
        try:
            by_kind = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # no TOML, or nested too deeply
            raise InputError(field, str(error), _EXPECTED, "check the file") from None
        if kinds and set(by_kind) != set(kinds):
            raise InputError(field, ", ".join(by_kind) or "nothing", f"the kinds {', '.join(kinds)}", "correct it")
        for kind, expressions in by_kind.items():
            if not isinstance(expressions, list) or not all(isinstance(each, str) and each for each in expressions):
                raise InputError(f"{field} {kind:.40}", f"{expressions!r:.40}", _EXPECTED, "correct it")
            for expression in expressions:
                try:
                    re.compile(expression, re.IGNORECASE)
                except (re.error, OverflowError, RecursionError) as error:
                    got = f"{expression[:60]!r}: {error}"
                    raise InputError(f"{field} {kind:.40}", got, "a regular expression", "correct it") from None
        return cls(by_kind)

    def kind(self, text: str) -> str:
        """The first kind that is found in a text; "": none."""
        return next(
            (kind for kind, patterns in self._compiled.items() if any(pattern.search(text) for pattern in patterns)), ""
        )

    def count(self, kind: str, text: str) -> int:
        """How often a kind is found in a text, without overlap."""
        spans = sorted(match.span() for pattern in self._compiled.get(kind, ()) for match in pattern.finditer(text))
        number, end = 0, 0
        for start, stop in spans:
            if start >= end:
                number, end = number + 1, stop
        return number

    def digest(self) -> str:
        """SHA-256, in hex, in whatever way the file is laid out."""
        return hashlib.sha256(json.dumps(dict(self.by_kind)).encode()).hexdigest()

    @cached_property
    def _compiled(self) -> dict[str, list[re.Pattern[str]]]:
        """Each alone: joined to one, the groups of several would change their numbers, and flags within them would not do."""
        return {kind: [re.compile(each, re.IGNORECASE) for each in expressions] for kind, expressions in self.by_kind.items()}
