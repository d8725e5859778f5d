"""Names that a commentary should have, and the misheard ones in their place.

    {"Reds": ["Redz", "the Rets"], "Kevin De Bruyne": ["De Broyne"], "Agüero": []}

Owns the file of names, the names in a title of a game, and which words of a text are replaced. Listed mishearings are replaced
wherever they stand. Others only where a word is spelled with a capital, is no ordinary English word, no name and no listed
word itself, and is near to one name alone (`curate.editing.near_names`). Host side, never jax.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from svlm_jax.curate.editing.near_names import MIN_LETTERS, folded, is_near, is_ordinary
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, read_json

MAX_NAME_WORDS = 6  # of a team in a title
_FORM = '{"name": ["misheard", ...], ...}'
# A team against another: "Reds - Blues", "Reds vs. Blues", "Reds 2-1 Blues", "Reds 2 : 1 Blues"; blanks around it.
_AGAINST = re.compile(r"\s+(?:v|vs|versus|@|[-–—]|\d{1,2}\s?[-–—:]\s?\d{1,2})\.?\s+", re.IGNORECASE)
_TITLE_PARTS = re.compile(r"[|•·,;()\[\]]|:\s|\s[-–—]+\s(?=\d)|(?<=\d)\s[-–—]+\s")
_TOKEN = re.compile(r"(\W*)(.*?)((?:['\u2019]s)?\W*)", re.DOTALL)  # marks, a word, a possessive and marks


class Replacement(NamedTuple):
    """before, after: words of a text, without the marks around them."""

    before: str
    after: str


class _Token(NamedTuple):
    before: str
    word: str
    after: str


@dataclass(frozen=True, eq=False)
class Glossary:
    """names: each with its known mishearings; words or phrases. None may be listed for two names, or be a name itself."""

    names: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, path: str | Path) -> "Glossary":
        """
        Raises:
            InputError: no such file, another form, or a mishearing that stands for two names.
        """
        file = local_path(path, "--glossary")
        names = read_json(file, f"names and how they are misheard: {_FORM}", is_handwritten=True)
        for name, variants in names.items():
            field = f"--glossary {shortened(file.name, 60)} {name:.40}"
            if not _words(name):
                raise InputError(field, "a name without letters", f"names: {_FORM}", "correct it")
            if not isinstance(variants, list) or not all(isinstance(each, str) and _words(each) for each in variants):
                raise InputError(field, f"{variants!r:.40}", f"a list of texts: {_FORM}", "[] where none is known")
        glossary = cls(names)
        glossary._check(f"--glossary {shortened(file.name, 60)}")
        return glossary

    def _check(self, field: str) -> None:
        known = {_words(name): name for name in self.names}
        for name, variants in self.names.items():
            for variant in variants:
                other = known.setdefault(_words(variant), name)
                if other != name:
                    got = f"{variant[:40]!r} for {name[:40]!r} and {other[:40]!r}"
                    raise InputError(field, got, "a mishearing of one name, and no name itself", "leave one out")

    def with_names(self, names: Iterable[str]) -> "Glossary":
        """With more names, without mishearings; those that are there already stay, and none that is a mishearing is added."""
        known = {_words(text) for name, variants in self.names.items() for text in (name, *variants)}
        return Glossary({**self.names, **{name: () for name in names if _words(name) and _words(name) not in known}})

    def corrected(self, text: str) -> tuple[str, list[Replacement]]:
        """A text with its names as they should be, and what was replaced, in order. Blanks between words become one."""
        tokens = [_token(part) for part in text.split()]
        parts: list[str] = []
        replacements: list[Replacement] = []
        index = 0
        while index < len(tokens):
            length, name = self._listed(tokens, index) or (1, self._near(tokens[index].word))
            run = tokens[index : index + length]
            if name:
                before = " ".join(f"{t.before * bool(i)}{t.word}" for i, t in enumerate(run))
                replacements.append(Replacement(before, name))
                parts.append(f"{run[0].before}{name}{run[-1].after}")
            else:
                parts += ["".join(token) for token in run]
            index += length
        return " ".join(parts), replacements

    def _listed(self, tokens: Sequence[_Token], index: int) -> tuple[int, str] | None:
        """(words, name; "" for a name that is right already) of the longest listed text that begins at a token."""
        for length in range(min(self._longest, len(tokens) - index), 0, -1):
            run = tokens[index : index + length]
            # marks between two words: they are no phrase
            if any(token.after for token in run[:-1]) or any(token.before for token in run[1:]):
                continue
            name = self._by_words.get(tuple(token.word.casefold() for token in run))
            if name is not None:
                return length, name
        return None

    @cached_property
    def _by_words(self) -> dict[tuple[str, ...], str]:
        """Names and mishearings by their words in small letters; names give "": nothing to replace."""
        listed = {_words(variant): name for name, variants in self.names.items() for variant in variants}
        return listed | {_words(name): "" for name in self.names}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_words), default=0)

    @cached_property
    def _known_words(self) -> set[str]:
        """All words of names and mishearings: none of them is taken for another name."""
        return {folded(word) for words in self._by_words for word in words}

    @cached_property
    def _targets(self) -> dict[str, set[str]]:
        """Words of names that others may be near to, as they are spelled, by their folded form. Ordinary words of a name of
        several are none: "United"."""
        targets: dict[str, set[str]] = {}
        for name in self.names:
            words = [_token(part).word for part in name.split()]
            for word in words:
                if len(folded(word)) >= MIN_LETTERS and (len(words) == 1 or not is_ordinary(word)):
                    targets.setdefault(folded(word), set()).add(word)
        return targets

    @cached_property
    def _nearest(self) -> dict[str, str]:
        """Of the words seen so far; "" where they are near to none."""
        return {}

    def _near(self, word: str) -> str:
        """The word of a name for which this one may stand; "" where it should stay."""
        if word not in self._nearest:
            self._nearest[word] = self._find_near(word)
        return self._nearest[word]

    def _find_near(self, word: str) -> str:
        form = folded(word)
        if len(form) < MIN_LETTERS or not word[:1].isupper() or not form.isalpha() or is_ordinary(word):
            return ""
        if form in self._targets:  # at most an accent is missing
            spellings = self._targets[form]
            return min(spellings) if len(spellings) == 1 and word.casefold() not in map(str.casefold, spellings) else ""
        if form in self._known_words:
            return ""
        near = {spelling for target, spellings in self._targets.items() if is_near(form, target) for spelling in spellings}
        return near.pop() if len(near) == 1 else ""


def names_in_title(title: str) -> list[str]:
    """The teams of a title, and its other names: words with a capital that are no ordinary ones. "Reds - Blues | Gold Cup" ->
    ["Reds", "Blues"]; nothing of a title in capital letters alone."""
    names: list[str] = []
    for part in _TITLE_PARTS.split(" ".join(title.split())):
        teams = [" ".join(team.split()) for team in _AGAINST.split(f" {part} ")]
        is_game = len(teams) == 2 and all(_is_team(team) for team in teams)
        for name in teams if is_game else [_token(word).word for word in part.split()]:
            if name not in names and (is_game or _is_name(name)):
                names.append(name)
    return names


def _is_team(text: str) -> bool:
    return text[:1].isupper() and not text.isupper() and len(text.split()) <= MAX_NAME_WORDS


def _is_name(word: str) -> bool:
    return word[:1].isupper() and word.isalpha() and not word.isupper() and not is_ordinary(word)


def _token(text: str) -> _Token:
    match = _TOKEN.fullmatch(text)
    return _Token(*match.groups()) if match else _Token("", text, "")


def _words(text: str) -> tuple[str, ...]:
    """Of a name or a mishearing, in small letters and without marks around them."""
    return tuple(word for word in (_token(part).word.casefold() for part in text.split()) if word)
