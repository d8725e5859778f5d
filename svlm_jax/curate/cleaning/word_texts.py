"""What a word of an ASR is made of: characters that are no text, marks that stand apart, several words in one.

Each rule takes the words in the order of the file, notes what it changes, and changes nothing the second time. Host side, never
jax. Units: seconds of the video.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from svlm_jax.curate.transcript import TimedWord

# Called with what a `Change` has: rule, time, before, after.
Note = Callable[[str, float | None, str, str], None]

CHARACTERS, NO_WORD, MARK_APART, SEVERAL_WORDS = "characters", "no word", "mark apart", "several words in one"
# A tokenizer would obey "<|im_end|>"; Whisper's own "<|0.00|>" are no words either.
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
# Byte order mark, zero-width blank, word joiner, soft hyphen, what stands for bytes that were no UTF-8, and marks that turn the
# direction of all text after them. Joiners, which scripts of India and Persian need, stay.
_INVISIBLE = frozenset("\ufeff\u200b\u2060\u00ad\ufffd\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SYMBOLS = frozenset("%&@#/*\\†‡§¶")  # punctuation to Unicode, and words in "2 % of 7"
_QUOTES = ('"', "'")  # which open or close: nothing tells when they stand apart
_OPENINGS = frozenset("¿¡")
_ENDINGS = frozenset(".,;:?!\u2026\u061f\u060c\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f\uff61\u0964")
# Scripts in which a letter is about a syllable, and blanks may be missing: Thai and Lao, Burmese, Khmer, kana, Han, Hangul.
_SYLLABIC = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)


def letters(text: str) -> int:
    """Letters and digits, 1 at least: by them a stretch of time is divided among words."""
    return max(sum(map(str.isalnum, text)), 1)


def syllables(text: str) -> int:
    """Letters of scripts whose letters are syllables; 0 for a word in Latin letters, however long."""
    return 0 if text.isascii() else len(_SYLLABIC.findall(text))


def remove_characters(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Words without control characters, broken characters and special tokens, in NFC, with single blanks; those of which
    nothing is left are deleted. Blanks around a word are no change: ASRs write them."""
    plain_words = []
    for word in words:
        text = _plain(word.text)
        if not text:
            note(NO_WORD, word.start, word.text, "")
            continue
        if text != " ".join(word.text.split()):
            note(CHARACTERS, word.start, word.text, text)
        plain_words.append(word if text == word.text else word._replace(text=text))
    return plain_words


def join_marks(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Marks that stand apart, on their words: "Goal" "!" is "Goal!", "(" "wide" is "(wide". A dash and a symbol may be words:
    "2" "-" "1". A second mark at the end of a sentence, and a quote, are deleted."""
    joined: list[TimedWord] = []
    opening: TimedWord | None = None  # that waits for its word
    for word in words:
        if all(map(_is_opening, word.text)):
            opening = word._replace(text=opening.text + word.text) if opening else word
        elif not all(map(_is_closing, word.text)):
            if opening:
                word = word._replace(text=opening.text + word.text)
                note(MARK_APART, word.start, f"{opening.text} {word.text.removeprefix(opening.text)}", word.text)
            joined.append(word)
            opening = None
        elif joined and word.text not in _QUOTES and not (joined[-1].text[-1] in _ENDINGS and _ENDINGS.issuperset(word.text)):
            note(MARK_APART, word.start, f"{joined[-1].text} {word.text}", joined[-1].text + word.text)
            joined[-1] = joined[-1]._replace(text=joined[-1].text + word.text)
        else:
            note(NO_WORD, word.start, word.text, "")
    if opening:
        note(NO_WORD, opening.start, opening.text, "")
    return joined


def split(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Words with blanks in them as their parts, each with its share of the time by its letters. All have times."""
    parts: list[TimedWord] = []
    for word in words:
        if " " not in word.text:
            parts.append(word)
            continue
        several = join_marks([word._replace(text=text) for text in word.text.split()], lambda *_: None)
        texts = [each.text for each in several]
        note(SEVERAL_WORDS if texts else NO_WORD, word.start, format_word(word), " ".join(texts))
        bounds = divided(word.start, word.end, texts)  # type: ignore[arg-type] (has times)
        parts += [each._replace(start=start, end=end) for each, (start, end) in zip(several, bounds, strict=True)]
    return parts


def divided(start: float, end: float, texts: Sequence[str]) -> list[tuple[float, float]]:
    """A stretch of time, divided among words by their letters, to the millisecond."""
    if not texts:
        return []
    sums = list(accumulate(map(letters, texts), initial=0))
    times = [min(max(round(start + (end - start) * each / sums[-1], 3), start), end) for each in sums]
    times[0], times[-1] = start, end
    return list(pairwise(times))


def format_word(word: TimedWord) -> str:
    """A word and its times, for people: "Goal! 1.20-1.50"; "?" where there is no time."""
    start, end = ("?" if time is None else f"{time:.2f}" for time in (word.start, word.end))
    return f"{word.text} {start}-{end}"


def _plain(text: str) -> str:
    if text.isascii() and text.isprintable() and "<" not in text:  # nearly all words
        return " ".join(text.split())
    while True:  # what is removed can bring other characters together
        visible = "".join(char for char in text if not is_no_text(char))
        plain = " ".join(unicodedata.normalize("NFC", _SPECIAL_TOKEN.sub("", visible)).split())
        if plain == text:
            return plain
        text = plain


def is_no_text(char: str) -> bool:
    """A character that is invisible or broken."""
    # Cs: half a surrogate pair, which no UTF-8 file can hold
    return char in _INVISIBLE or (unicodedata.category(char) in ("Cc", "Cs") and not char.isspace())


def _is_opening(char: str) -> bool:
    return char in _OPENINGS or unicodedata.category(char) in ("Ps", "Pi")


def _is_closing(char: str) -> bool:
    return unicodedata.category(char) in ("Pe", "Pf", "Po") and char not in _SYMBOLS and char not in _OPENINGS
