"""Sentences of a transcript, and the segments in which they are edited.

An ASR gives words; editors and clips work on sentences. A sentence ends at its mark (. ? ! and those of other scripts), at a
pause, or after so many words where an ASR writes no marks. It is never cut by the border of a segment: it belongs to the one in
which its first word starts. Host side, never jax. Units: seconds of the video.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from svlm_jax.curate.transcript import TimedWord
from svlm_jax.errors import InputError

PAUSE = 2.0  # seconds between words, which end a sentence
MAX_WORDS = 40  # of a sentence
SEGMENT = 120  # seconds, of the paper

# Words that a period does not end. Of those in _BEFORE_NUMBERS only where a number follows: "No. 10", but "No. He missed."
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st ft mt vs v gen capt lt sgt rev hon gov univ assn inc ltd etc approx e.g i.e jan feb aug sept "  # noqa: SIM905
    "oct nov dec".split()
)
_BEFORE_NUMBERS = frozenset(("no", "nos", "vol", "pp"))
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
# Besides "." and dots: of Latin, Arabic, Chinese, Japanese, Hindi, Urdu, Armenian, Amharic.
_STOPS = "?!\u061f\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4\u0589\u1362"
# Scripts without blanks between words: Thai and Lao, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)


class Sentence(NamedTuple):
    """first: the place of its first word in the transcript. words: one at least, all with times."""

    first: int
    words: tuple[TimedWord, ...]

    @property
    def start(self) -> float:
        return self.words[0].start  # type: ignore[return-value]

    @property
    def end(self) -> float:
        return self.words[-1].end  # type: ignore[return-value]

    @property
    def text(self) -> str:
        return joined(word.text for word in self.words)


class Segment(NamedTuple):
    """A stretch of so many seconds that has words, and the sentences that start in it."""

    start: float
    end: float
    sentences: tuple[Sentence, ...]


def split_sentences(words: Sequence[TimedWord], pause: float = PAUSE, max_words: int = MAX_WORDS) -> list[Sentence]:
    """All words, in their order, each in one sentence.

    Args:
        words: cleaned: with times, in order.
        pause: from the end of a word to the start of the next, that ends a sentence.

    Raises:
        InputError: a word without times.
    """
    for index, word in enumerate(words):
        if word.start is None or word.end is None:
            name = f"content[{index}]"
            raise InputError(name, f"{word.text[:40]!r} without times", "both times", "clean first: svlm curate clean")
    result, first = [], 0
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else None
        if following is None or index + 1 - first >= max_words or _ends(word, following, pause):
            result.append(Sentence(first, tuple(words[first : index + 1])))
            first = index + 1
    return result


def segments(sentences: Iterable[Sentence], seconds: int = SEGMENT) -> Iterator[Segment]:
    """The sentences of each `seconds` of a video that has some, by the second in which their first word starts."""
    for number, group in groupby(sentences, key=lambda sentence: int(sentence.start // 1) // seconds):
        yield Segment(number * seconds, (number + 1) * seconds, tuple(group))


def joined(texts: Iterable[str]) -> str:
    """Words as one writes them: a blank between two, none in scripts that have none."""
    text = before = ""
    for word in filter(None, (" ".join(word.split()) for word in texts)):
        is_tight = not text or (_is_tight(_bare(before)[-1:]) and _is_tight(_bare(word)[:1]))
        text += word if is_tight else f" {word}"
        before = word
    return text


def split_words(text: str) -> list[str]:
    """The words of a text; of scripts without blanks the characters, each with the marks after it, as ASRs give them."""
    words = []
    for part in text.split():
        if not _UNSPACED.search(part):
            words.append(part)
            continue
        first, has_letters, is_unspaced = 0, False, False  # of what began at `first`
        for index, char in enumerate(part):
            if has_letters and _begins_word(char, is_unspaced):
                words.append(part[first:index])
                first, has_letters, is_unspaced = index, False, False
            has_letters |= char.isalnum()
            is_unspaced |= bool(_UNSPACED.match(char))
        words.append(part[first:])
    return words


def _begins_word(char: str, is_unspaced: bool) -> bool:
    """Whether a word begins at `char`, without a blank after a word: one in a script without blanks, or not."""
    kind = unicodedata.category(char)
    is_letter = kind[0] in "LN" and kind != "Lm"  # Lm, M: marks on the letter before
    return (is_unspaced and (is_letter or kind in ("Ps", "Pi"))) or (is_letter and bool(_UNSPACED.match(char)))


def _is_tight(char: str) -> bool:
    is_wide_mark = bool(char) and unicodedata.category(char)[0] == "P" and unicodedata.east_asian_width(char) in "WF"
    return is_wide_mark or bool(_UNSPACED.match(char))


def _ends(word: TimedWord, following: TimedWord, pause: float) -> bool:
    """Whether a sentence ends between two words."""
    if following.start - word.end >= pause:  # type: ignore[operator] (checked by `sentences`)
        return True
    text, after = _bare(word.text), following.text.strip()
    if after and all(unicodedata.category(char) in ("Pe", "Pf", "Po") for char in after):
        return False  # the rest of this sentence: a quotation mark that stands alone
    if text.endswith(("..", "\u2026")):
        return not after[:1].islower()  # "He shoots... and scores!"
    return text[-1:] in _STOPS if not text.endswith(".") else not _is_abbreviation(text[:-1], after)


def _bare(text: str) -> str:
    """A word without quotation marks and brackets around it."""
    text = text.strip()
    first, last = 0, len(text)
    while first < last and (text[first] in "\"'" or unicodedata.category(text[first]) in ("Ps", "Pi")):
        first += 1
    while first < last and (text[last - 1] in "\"'" or unicodedata.category(text[last - 1]) in ("Pe", "Pf")):
        last -= 1
    return text[first:last]


def _is_abbreviation(text: str, after: str) -> bool:
    """Whether the period after `text` is part of a word."""
    stem = text.lower()
    if stem in _ABBREVIATIONS or (stem in _BEFORE_NUMBERS and after[:1].isdigit()):
        return True
    # "J. Smith", "U.S.", "a.m."; not "So do I."
    return bool(_INITIALS.fullmatch(text)) and text != "I" and (len(text) > 1 or text.isupper())
