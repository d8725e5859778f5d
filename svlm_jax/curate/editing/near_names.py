"""Which name a word may be a mishearing of: close in its letters, and in its sound where more than one letter differs.

Owns the measure, and the ordinary English words that are never taken for a name. Knows no file of names and no sentence. Host
side, never jax. English spelling: the sounds are rough classes, in which an ASR mixes up "d" and "t", "b" and "p", vowels.
"""

import re
import unicodedata
from functools import cache, lru_cache
from importlib import resources

MIN_LETTERS = 4  # of a word and a name that are compared: shorter ones have too many neighbours
TWO_CHANGES = 6  # letters, of the longer one, from which two letters may differ

_ENDINGS = ("s", "es", "ed", "d", "ing", "er", "r", "ly", "ers", "rs")
# In this order. What is left are classes of sounds that are mixed up: F, J, K, M, N, L, P, R, S, T, X (sh, ch), W.
_SOUNDS = tuple(
    (re.compile(pattern), sound)
    for pattern, sound in (
        (r"^(?:kn|gn|pn)", "n"), (r"^wr", "r"), (r"^ps", "s"), (r"^x", "s"), (r"mb$", "m"), (r"ph", "f"), (r"gh", ""),
        (r"sch|sh|ch|tch|cz", "X"), (r"x", "ks"), (r"qu?", "k"), (r"ck", "k"), (r"dge?|j", "J"), (r"c(?=[eiy])", "s"),
        (r"[cg]", "k"), (r"z", "s"), (r"d", "t"), (r"b", "p"), (r"v", "f"), (r"(?<!^)[hwy]", ""),
        (r"^[aeiouy]+", "A"), (r"(?<!^)[aeiou]+", ""), (r"(.)\1+", r"\1"),
    )
)  # fmt: skip


_SILENT = re.compile("e(?=s?$)")
_CONTRACTION = re.compile("(?:'(?:re|ll|ve|d|m)|n't)$")
_TAKES_ES = ("s", "x", "z", "ch", "sh", "o", "i")


@cache
def ordinary_words() -> frozenset[str]:
    """Of English, in small letters; with inflections only where they are usual (see `is_ordinary`)."""
    text = resources.files("svlm_jax.curate").joinpath("english/words.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.split("\n") if line and not line.startswith("#"))


def is_ordinary(word: str) -> bool:
    """Whether it is an ordinary English word, or an inflection of one: "crosses", "Crosses", "they're"."""
    words, text = ordinary_words(), word.casefold().replace("\u2019", "'").removesuffix("'s")
    if _CONTRACTION.search(text):
        return True
    return text in words or any(_stems(text, ending) & words for ending in _ENDINGS if text.endswith(ending))


def _stems(text: str, ending: str) -> set[str]:
    """Words of which one may be an inflection: "stopping" -> "stop", "tries" -> "try", "making" -> "make"."""
    stem = text[: -len(ending)]
    stems = {f"{stem}e"} if ending != "s" else set()
    if ending != "es" or stem.endswith(_TAKES_ES):
        stems.add(stem)
    if len(stem) > 2 and stem[-1] == stem[-2]:
        stems.add(stem[:-1])
    if stem.endswith("i") and ending in ("es", "ed", "er", "ers", "ly"):
        stems.add(f"{stem[:-1]}y")
    return stems


def folded(word: str) -> str:
    """In small letters, without accents, apostrophes and hyphens: "Agüero" -> "aguero", "O'Neill" -> "oneill"."""
    letters = unicodedata.normalize("NFKD", word.casefold().replace("ø", "o").replace("ł", "l").replace("đ", "d"))
    return "".join(char for char in letters if char.isalnum())


@lru_cache(100_000)  # words: those of hundreds of games
def sound(word: str) -> str:
    """The consonants of a folded word, as classes of sounds: "reds", "redz" and "rets" -> "rts"."""
    for pattern, replacement in _SOUNDS:
        word = pattern.sub(replacement, word)
    return word


def changes(a: str, b: str) -> int:
    """Letters that are put in, left out, replaced, or swapped with their neighbour, at least, to make one word of the other."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                row[j] = min(row[j], before[j - 2] + 1)
        before = previous
    return row[-1]


def is_near(word: str, name: str) -> bool:
    """Whether a folded word may be a folded name: one letter differs, or two of a long word with the same consonants, or more
    where the vowels are the same too: "Blax", "Blacks". Not where it is its plural, nor where a vowel alone makes another name
    of a short one: "Roma", "Rome", "Rama"."""
    longest = max(len(word), len(name))
    if (
        min(len(word), len(name)) < MIN_LETTERS
        or abs(len(word) - len(name)) > 2
        or word in (f"{name}s", name.removesuffix("s"))
    ):
        return False
    sounds_alike = sound(word) == sound(name)
    if not sounds_alike and word[0] != name[0]:
        return False  # soon: a glossary may have thousands of names
    number = changes(word, name)
    if number > 1:
        return sounds_alike and (_vowels(word) == _vowels(name) or (number == 2 and longest >= TWO_CHANGES))
    return longest > MIN_LETTERS or _vowels(word) == _vowels(name)


def _vowels(word: str) -> str:
    return "".join(letter for letter in _SILENT.sub("", word) if letter in "aeiouy")
