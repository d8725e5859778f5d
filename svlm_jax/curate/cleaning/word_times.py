"""Times of words as ASRs give them, mended: outside the video, end before start, lost, out of order, stuck over a pause.

The rules are called in the order of this file. Each takes words in the order they are written in, notes what it changes, and
changes nothing the second time. After all of them each word has times within the video, and neither starts nor ends go back:
what `data.annotation` asks. Overlaps stay, as words belong to the second they end in. Host side, never jax. Units: seconds of
the video.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby

from svlm_jax.curate.cleaning.word_texts import Note, divided, format_word, letters, syllables
from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcript import TimedWord

OUTSIDE, END_BEFORE_START, FAR_OFF = "outside the video", "end before start", "time far off"
NO_TIME, OUT_OF_ORDER, STUCK, OVERLAP = "no time", "out of order", "stuck over a pause", "ends after the next word"

LETTER_SECONDS = 0.06  # of a letter, where nothing else tells how long a word is
MIN_SECONDS = 0.08  # of a word whose end is set by its letters
BORDER = 1.0  # seconds outside the video that are an ASR's inexactness
MAX_DISORDER = 2.0  # seconds by which a word may start before one that is written before it
MAX_STRAY, MAX_STRAY_SHARE = 3, 0.1  # words in a row, and of all, that may have times of another part of the video
MAX_SECONDS, STUCK_SECONDS = 3.0, 1.0  # a word longer than the first lasts as long as its letters, the second at most
LONG_SYLLABLE, SYLLABLE = 0.5, 0.25  # the same of a syllable: a phrase without blanks may be long
PAUSE = 1.0  # seconds in which words could be said, and are not


def clip_to_video(words: Sequence[TimedWord], duration: float, note: Note) -> list[TimedWord]:
    """Words that reach over the start or the end of the video are cut there. Of words wholly outside, those before the first
    that is inside and those after the last are put on the border where they are within a second of it, and deleted elsewhere;
    one between words inside has a wrong time, not a wrong place, and loses its times."""
    inside = [i for i, word in enumerate(words) if any(time is not None and 0 <= time <= duration for time in word[:2])]
    first, last = (inside[0], inside[-1]) if inside else (len(words), -1)
    clipped = []
    for index, word in enumerate(words):
        new = _clip(word, duration, is_between=first < index < last)
        if new != word:
            note(OUTSIDE, _known(word), format_word(word), format_word(new) if new else "")
        clipped += [new] if new else []
    return clipped


def _clip(word: TimedWord, duration: float, *, is_between: bool) -> TimedWord | None:
    start, end = word.start, word.end
    times = [time for time in (start, end) if time is not None]
    if all(0 <= time <= duration for time in times):
        return word
    if any(0 <= time <= duration for time in times):
        if start is not None and end is not None and start < end:
            return word._replace(start=max(start, 0.0), end=min(end, duration))
        is_wrong = [time is not None and not 0 <= time <= duration for time in (start, end)]
        return word._replace(start=None if is_wrong[0] else start, end=None if is_wrong[1] else end)
    if is_between or (min(times) < 0 and max(times) > duration):
        return word._replace(start=None, end=None)
    if min(times) > duration + BORDER or max(times) < -BORDER:
        return None
    border = 0.0 if max(times) < 0 else duration
    return word._replace(start=border, end=border)


def mend_ends(words: Sequence[TimedWord], duration: float, note: Note) -> list[TimedWord]:
    """An end before its start: the two are swapped where that puts the word between its neighbours and it lasts 1 s at most; a
    wrong end may lie in the pause before. Else the start is believed, and the end is the start of the next word or 0.06 s a
    letter later, what comes first, 0.08 s later at least."""
    mended: list[TimedWord] = []
    previous = 0.0  # end of the last word before that has one
    for word, following in zip(words, _following(words), strict=True):
        start, end = word.start, word.end
        if start is not None and end is not None and end < start:
            # the next word may have its end before its start, too
            earliest = min((time for time in following[:2] if time is not None), default=duration)
            if previous <= end and start <= earliest and start - end <= STUCK_SECONDS:
                new = word._replace(start=end, end=start)
            else:
                new = word._replace(end=_end_by_letters(word.text, start, following.start, duration))
            note(END_BEFORE_START, start, format_word(word), format_word(new))
            word = new
        mended.append(word)
        previous = word.end if word.end is not None else previous
    return mended


def _following(words: Sequence[TimedWord]) -> list[TimedWord]:
    """For each word the next one that has a start; after the last of them a word without times."""
    following, latest = [], TimedWord(None, None, "")
    for word in reversed(words):
        following.append(latest)
        latest = word if word.start is not None else latest
    return following[::-1]


def forget_strays(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Words whose times are those of another part of the video, at most 3 in a row, lose them: their place among the others is
    known.

    Raises:
        SetAside: more of them, in a row or in all; the words are then written in another order than they are said in.
    """
    timed = [index for index, word in enumerate(words) if _known(word) is not None]
    strays = _strays([_known(words[index]) for index in timed])  # type: ignore[misc]
    runs = groupby(enumerate(strays), key=lambda pair: pair[1] - pair[0])
    if len(strays) > MAX_STRAY_SHARE * len(timed) or any(len(list(run)) > MAX_STRAY for _, run in runs):
        raise SetAside("words not in the order of time")
    result = list(words)
    for index in strays:
        word = words[timed[index]]
        result[timed[index]] = word._replace(start=None, end=None)
        note(FAR_OFF, _known(word), format_word(word), format_word(result[timed[index]]))
    return result


def _strays(starts: Sequence[float]) -> list[int]:
    """Indices of starts that are more than MAX_DISORDER off their neighbours in the longest ascending chain."""
    highest, is_ordered = float("-inf"), True
    for start in starts:
        highest = max(highest, start)
        is_ordered &= highest - start <= MAX_DISORDER
    if is_ordered:  # nearly all files
        return []
    chain = _longest_ascending(starts)
    strays, following = [], 0  # following: of the chain, the first index not before this one
    for index, start in enumerate(starts):
        while following < len(chain) and chain[following] < index:
            following += 1
        low = starts[chain[following - 1]] if following else float("-inf")
        high = starts[chain[following]] if following < len(chain) else float("inf")
        if not low - MAX_DISORDER <= start <= high + MAX_DISORDER:
            strays.append(index)
    return strays


def _longest_ascending(values: Sequence[float]) -> list[int]:
    """Indices of a longest subsequence that never descends, by patience sorting: n log n."""
    tails: list[float] = []  # the lowest last value of a chain of each length
    ends: list[int] = []  # and its index
    before: list[int] = []  # the index before each in its chain
    for index, value in enumerate(values):
        length = bisect_right(tails, value)
        before.append(ends[length - 1] if length else -1)
        tails[length : length + 1] = [value]
        ends[length : length + 1] = [index]
    chain, index = [], ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]


def fill_times(words: Sequence[TimedWord], duration: float, note: Note) -> list[TimedWord]:
    """Each word with both times. Words without any share the time between their neighbours by their letters.

    Where a pause lies in that time, they are said at one end of it: the rest of a sentence right after its beginning, all else
    right before the words that follow, as a model must not learn to say what it has not seen yet.

    Raises:
        SetAside: fewer than half of the words have times.
    """
    lost = sum(word.start is None and word.end is None for word in words)
    if 2 * lost > len(words):
        raise SetAside("no times of most words")
    filled = _fill_one_time(words, duration)
    for run in list(_runs_without_time(filled)):
        before, after = (filled[run.start - 1] if run.start else None), (filled[run.stop] if run.stop < len(filled) else None)
        texts = [filled[index].text for index in run]
        for index, (start, end) in zip(run, _times_between(before, after, texts, duration), strict=True):
            filled[index] = filled[index]._replace(start=start, end=end)
    for word, new in zip(words, filled, strict=True):
        if new != word:
            note(NO_TIME, new.start, format_word(word), format_word(new))
    return filled


def _fill_one_time(words: Sequence[TimedWord], duration: float) -> list[TimedWord]:
    """Words with one of their times get the other by their letters, within their neighbours' times."""
    filled, previous = [], 0.0
    for word, following in zip(words, _following(words), strict=True):
        if word.start is not None and word.end is None:
            word = word._replace(end=_end_by_letters(word.text, word.start, following.start, duration))
        elif word.start is None and word.end is not None:
            start = max(round(word.end - _seconds(word.text), 3), previous, 0.0)
            word = word._replace(start=min(start, word.end))
        filled.append(word)
        previous = word.end if word.end is not None else previous
    return filled


def _runs_without_time(words: Sequence[TimedWord]) -> Iterator[range]:
    first = None
    for index, word in enumerate([*words, TimedWord(0.0, 0.0, "")]):
        if word.start is None:
            first = index if first is None else first
        elif first is not None:
            yield range(first, index)
            first = None


def _times_between(
    before: TimedWord | None, after: TimedWord | None, texts: Sequence[str], duration: float
) -> list[tuple[float, float]]:
    """Times of words of which the one before and the one after have times; None: they are the first, the last."""
    low = before.end if before and before.end is not None else 0.0
    high = after.start if after and after.start is not None else duration
    if high <= low:
        return [(high, high)] * len(texts)  # neighbours that touch or overlap leave no time
    spoken = sum(map(_seconds, texts))
    has_pause = high - low > spoken + PAUSE
    if before and after and not has_pause:
        return divided(low, high, texts)
    # a sentence that is going on ends after the words before; without its end it may last until the words after
    is_going_on = before is not None and not ends_sentence(before.text)
    ending = next((count for count, text in enumerate(texts, 1) if ends_sentence(text)), 0) if is_going_on else 0
    if before and after and is_going_on and not ending and high - low <= MAX_SECONDS * len(texts):
        return divided(low, high, texts)
    count = len(texts) if after is None else ending
    first, rest = texts[:count], texts[count:]
    middle = min(round(low + sum(map(_seconds, first)), 3), high)
    start = max(round(high - sum(map(_seconds, rest)), 3), middle)
    return [*(divided(low, middle, first) if first else ()), *(divided(start, high, rest) if rest else ())]


def ends_sentence(text: str) -> bool:
    return text.rstrip("\"')]\u201d\u2019\u00bb").endswith((".", "?", "!", "\u3002", "\uff1f", "\uff01", "\u061f", "\u0964"))


def sort(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Words in order of start, then end; those with the same times as they were."""
    ordered = sorted(words, key=lambda word: (word.start, word.end))
    latest = None
    for word in words:
        if latest and word[:2] < latest[:2]:  # type: ignore[operator] (both have times)
            note(
                OUT_OF_ORDER,
                word.start,
                f"{format_word(word)} after {format_word(latest)}",
                f"{format_word(word)} before {format_word(latest)}",
            )
        else:
            latest = word
    return ordered


def shorten_stuck(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """A word of more than 3 s, by which an ASR bridges a pause, lasts 0.06 s a letter, 1 s at most: it belongs to the second it
    ends in, and must not move into the next one. Phrases of scripts without blanks may be longer: 0.5 s a syllable, then
    0.25 s."""
    shortened = []
    for word in words:
        length = word.end - word.start  # type: ignore[operator] (has times)
        if length > MAX_SECONDS and length > LONG_SYLLABLE * syllables(word.text):
            seconds = max(min(STUCK_SECONDS, _seconds(word.text)), SYLLABLE * syllables(word.text))
            new = word._replace(end=round(word.start + seconds, 3))  # type: ignore[operator]
            note(STUCK, word.start, format_word(word), format_word(new))
            word = new
        shortened.append(word)
    return shortened


def order_ends(words: Sequence[TimedWord], note: Note) -> list[TimedWord]:
    """Ends that do not go back: a word ends no later than the words that start after it. It is the earlier word that ends
    early, since the other way round one word that is too long would delay all that follow."""
    ordered, latest = list(words), float("inf")
    for index in range(len(words) - 1, -1, -1):
        word = words[index]
        if word.end > latest:  # type: ignore[operator] (has times)
            ordered[index] = word._replace(end=latest)
        latest = ordered[index].end  # type: ignore[assignment]
    for word, new in zip(words, ordered, strict=True):
        if new.end != word.end:
            note(OVERLAP, word.start, format_word(word), format_word(new))
    return ordered


def _seconds(text: str) -> float:
    return max(LETTER_SECONDS * letters(text), MIN_SECONDS)


def _end_by_letters(text: str, start: float, following: float | None, duration: float) -> float:
    """following: start of the next word; None: not known."""
    end = start + LETTER_SECONDS * letters(text)
    if following is not None and following >= start:
        end = min(end, following)
    return min(round(max(end, start + MIN_SECONDS), 3), duration)


def _known(word: TimedWord) -> float | None:
    return word.start if word.start is not None else word.end
