"""Words that an ASR writes and nobody says: loops, bursts, words over music and in silence.

Each rule deletes, and notes what. Words have times and are in order (`word_times`). Host side: numpy, never jax. Units: seconds
of the video.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from svlm_jax.curate.cleaning.word_texts import Note, syllables
from svlm_jax.curate.sentences import joined, split_sentences
from svlm_jax.curate.transcript import NoSpeech, TimedWord

LOOP, TOO_FAST, SOUND_TAG, UNHEARD, NO_SPEECH = "loop", "too fast", "sound tag", "low probability", "no speech"

SAYINGS = 4  # of the same words, one right after the other, that are a loop
MAX_PERIOD = 30  # words of a loop
LOOP_PAUSE = 1.0  # seconds between two words, which end a loop: people who repeat themselves pause
LONG, SHORT = 3.0, 1.0  # seconds over which the pace is measured
MIN_WORDS = 3  # of which a mean probability says something
CONFIDENT = 0.6  # mean probability of words that are kept where the ASR hears no speech
MAX_TAG_WORDS = 5
_MUSIC = frozenset("♩♪♫♬♭♯🎵🎶")


def delete_sound_tags(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """[Music], [crowd cheering], and music notes that stand for words."""
    is_deleted = np.zeros(len(words), bool)
    for index, word in enumerate(words):
        if word.text[0] in _MUSIC and _MUSIC.issuperset(word.text):
            is_deleted[index] = True
        elif word.text[0] == "[":
            tag = words[index : index + MAX_TAG_WORDS]
            count = next((n for n, each in enumerate(tag, 1) if each.text.rstrip(".,:;!?").endswith("]")), 0)
            is_deleted[index : index + count] = True
    return _delete(words, is_deleted, SOUND_TAG, note)


def collapse_loops(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """The same words 4 times or more, one right after the other without a pause: the first saying stays. An ASR gets stuck on
    something that it has heard."""
    count = len(words)
    bare = {text: _bare(text) for text in {word.text for word in words}}
    numbers = {text: number for number, text in enumerate(set(bare.values()))}
    ids = np.array([numbers[bare[word.text]] for word in words], np.int64)
    pauses = np.array([after.start - before.end for before, after in pairwise(words)])  # type: ignore[operator] (have times)
    is_deleted = np.zeros(count, bool)
    for period in range(1, min(MAX_PERIOD, count // SAYINGS) + 1):
        is_same = (ids[period:] == ids[:-period]) & (pauses[period - 1 :] < LOOP_PAUSE)
        bounds = np.flatnonzero(np.diff(np.concatenate([[False], is_same, [False]])))
        for first, last in bounds.reshape(-1, 2):
            if last - first >= (SAYINGS - 1) * period:
                is_deleted[first + period : last + period] = True
    return _delete(words, is_deleted, LOOP, note)


def delete_fast(words: Sequence[TimedWord], words_per_second: float, note: Note) -> list[TimedWord]:
    """More words a second than people say, over 3 s; of these the words that are too fast over 1 s, too, so that a burst does
    not take its neighbours along. Two letters of Han, kana or Hangul count as a word."""
    ends = np.array([word.end for word in words], float)
    weights = np.array([syllables(word.text) / 2 or 1.0 for word in words])
    is_deleted = _crowded(ends, weights, LONG, words_per_second) & _crowded(ends, weights, SHORT, words_per_second)
    return _delete(words, is_deleted, TOO_FAST, note)


def _crowded(ends: np.ndarray, weights: np.ndarray, seconds: float, words_per_second: float) -> np.ndarray:
    """Which words [n] lie in a window of so many seconds that has too many of them, by their ends."""
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    # the window that ends with each word, first instant excluded
    first = np.searchsorted(ends, ends - seconds, side="right")
    last = np.arange(1, len(ends) + 1)
    is_full = sums[last] - sums[first] > words_per_second * seconds
    steps = np.zeros(len(ends) + 1, np.int64)
    np.add.at(steps, first[is_full], 1)
    np.add.at(steps, last[is_full], -1)
    return np.cumsum(steps)[:-1] > 0


def delete_unheard(words: Sequence[TimedWord], min_probability: float, note: Note) -> list[TimedWord]:
    """Sentences of which the ASR was unsure in the mean; fewer than 3 words, one sentence after the other, stay: names alone
    are heard badly, and they are commentary. Words without a probability do not count."""
    is_deleted = np.zeros(len(words), bool)
    if all(word.probability is None for word in words):  # of most subtitles and services
        return list(words)
    for is_low, run in groupby(split_sentences(words), key=lambda sentence: _mean(sentence.words) < min_probability):
        stretch = list(run)
        first, last = stretch[0].first, stretch[-1].first + len(stretch[-1].words)
        is_deleted[first:last] = is_low and last - first >= MIN_WORDS
    return _delete(words, is_deleted, UNHEARD, note)


def delete_no_speech(
    words: Sequence[TimedWord], stretches: Sequence[NoSpeech], min_no_speech: float, note: Note
) -> list[TimedWord]:
    """Words whose middle lies in a stretch that the ASR takes for music or noise, unless it is sure of them: a crowd is
    noise too."""
    if not stretches:
        return list(words)
    middles = [(word.start + word.end) / 2 for word in words]  # type: ignore[operator] (have times)
    is_deleted = np.zeros(len(words), bool)
    for stretch in stretches:
        first, last = bisect_left(middles, stretch.start), bisect_left(middles, stretch.end)
        if stretch.probability >= min_no_speech and not CONFIDENT <= _mean(words[first:last]) <= 1:
            is_deleted[first:last] = True
    return _delete(words, is_deleted, NO_SPEECH, note)


def _mean(words: Sequence[TimedWord]) -> float:
    """Mean probability; infinite where no word has one."""
    known = [word.probability for word in words if word.probability is not None]
    return sum(known) / len(known) if known else float("inf")


def _bare(text: str) -> str:
    """A word as loops compare it: "Goal!" is "goal"."""
    return "".join(filter(str.isalnum, text.casefold())) or text


def _delete(words: Sequence[TimedWord], is_deleted: np.ndarray, rule: str, note: Note) -> list[TimedWord]:
    """The other words; each run of deleted ones is one change."""
    if not is_deleted.any():
        return list(words)
    for deleted, run in groupby(zip(is_deleted, words, strict=True), key=lambda pair: bool(pair[0])):
        if deleted:
            stretch = [word for _, word in run]
            note(rule, stretch[0].start, joined(word.text for word in stretch), "")
    return [word for word, deleted in zip(words, is_deleted, strict=True) if not deleted]
