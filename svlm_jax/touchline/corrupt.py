"""A true commentary as a speech recogniser might write it down, with a record of each thing that was done to it.

Proves curation: what `svlm curate` makes of the result can be compared with the truth, word by word. Owns the kinds of damage
and how often each comes; knows no rule that undoes one. Damage of times and of order is done to true words alone, each at most
once; words that nobody said stand in pauses. The same words, seed and rates give the same result. Units: seconds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from svlm_jax.curate.transcript import NoSpeech, TimedWord, Transcript
from svlm_jax.data.annotation import Annotation, Word


class Damage(StrEnum):
    """What speech recognisers do wrong."""

    MISHEARD = "misheard name"
    ADVERT = "advert"
    LOOP = "loop"
    MUSIC = "music"
    STUCK = "stuck over a pause"
    LOST = "lost times"
    BACKWARD = "end before start"
    OUTSIDE = "outside the video"
    DISORDER = "out of order"


# Name -> how it is misheard; the form of a glossary file of `svlm curate edit`.
MISHEARD = {
    "Reds": ["Redz", "the Rets", "Readz"],
    "Blues": ["Blooze", "Bluse", "the Bloos"],
    "Yellows": ["Yelloes", "Jellows"],
    "Whites": ["Wites", "Whights"],
    "Blacks": ["Blax", "Blaks", "the Blags"],
    "Pinks": ["Pinx", "Pingks"],
    "Emerald": ["Emmerald", "Emeral"],
    "Bronze": ["Bronz"],
    "Silver": ["Sylver"],
}
ADVERTS = (
    "This match is brought to you by Acme Motors.",
    "Use code GOAL for ten percent off your first order.",
    "Don't forget to like and subscribe.",
    "Hello everyone and welcome back to the channel.",
    "Our sponsor today is Northern Bank.",
    "Download the app and place your bets now.",
    "We will be right back after a short break.",
    "Visit our website for tickets and merchandise.",
)
MUSIC = ("♪", "la la la la", "Music", "oh oh oh", "you")
NOBODY_SAID = ("Thank you.", "Bye.", "Thanks for watching!")  # what recognisers make of silence
# Damages an hour, but for MISHEARD, LOST, BACKWARD, DISORDER: of so large a share of names and words; STUCK: of words before a
# pause of PAUSE; OUTSIDE: of videos.
RATES: Mapping[Damage, float] = {
    Damage.MISHEARD: 0.25,
    Damage.ADVERT: 30,
    Damage.LOOP: 20,
    Damage.MUSIC: 20,
    Damage.STUCK: 0.3,
    Damage.LOST: 0.03,
    Damage.BACKWARD: 0.03,
    Damage.OUTSIDE: 1,
    Damage.DISORDER: 0.02,
}
PAUSE = 3.2  # seconds after a word over which a recogniser gets stuck
WORD_SECONDS = 0.2  # of a word that nobody said
MARGIN = 0.1  # seconds between words that nobody said and others
NUMBERS = 8  # so many times as often as other words do words with digits lose their times
NEIGHBOURS = 1.5  # seconds within which words change places


class DamageRecord(NamedTuple):
    """One damage. time: where; before, after: words and their times as they are read."""

    kind: Damage
    time: float
    before: str
    after: str


@dataclass
class _Entry:
    """A word on its way. is_spoilt: its times or its place are no longer true; is_said: somebody said it."""

    start: float | None
    end: float | None
    text: str
    probability: float
    is_said: bool = True
    is_spoilt: bool = False


@dataclass
class _Draft:
    """A transcript that is being damaged."""

    entries: list[_Entry]
    duration: float
    random: np.random.Generator
    no_speech: list[NoSpeech] = field(default_factory=list)
    log: list[DamageRecord] = field(default_factory=list)

    def is_chosen(self, rate: float) -> bool:
        return bool(self.random.random() < rate)

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def times(self, rate: float) -> int:
        """So often a damage with a rate an hour is done: rounded up or down by chance."""
        return int(rate * self.duration / 3600 + self.random.random())

    def intact(self) -> list[int]:
        """Indices of words that were said and are not spoilt."""
        return [index for index, entry in enumerate(self.entries) if entry.is_said and not entry.is_spoilt]


def corrupt(
    annotation: Annotation, title: str, seed: int, rates: Mapping[Damage, float] = RATES
) -> tuple[Transcript, list[DamageRecord]]:
    """What a recogniser writes of a video with these words, and what was done, in order of kind.

    Args:
        title: of the transcript: what an editor may know.
        rates: how often each damage is done; those that are left out are not.
    """
    random = np.random.default_rng([seed, 2])
    entries = [_Entry(*word, probability=round(random.uniform(0.7, 0.99), 2)) for word in annotation.words]
    draft = _Draft(entries, annotation.end, random)
    for kind, damage in _DAMAGES.items():
        if rates.get(kind, 0) > 0:
            damage(draft, rates[kind])
    words = tuple(TimedWord(each.start, each.end, each.text, each.probability) for each in draft.entries)
    transcript = Transcript(
        annotation.video or "", annotation.end, words, "en", title, "touchline", "corrupted", tuple(sorted(draft.no_speech))
    )
    return transcript, draft.log


def repair_minimally(transcript: Transcript) -> tuple[Word, ...]:
    """The words with the least done to them that training accepts: those without times left out, the others in order of
    start, no end before its start or the end before it. What training on a transcript that nobody cleaned amounts to."""
    timed = [(word.start, word.end, word.text) for word in transcript.words if word.start is not None and word.end is not None]
    words, latest = [], 0.0
    for start, end, text in sorted(timed, key=lambda word: word[0]):
        latest = max(latest, start, end)
        words.append(Word(start, latest, text))
    return tuple(words)


def _mishear(draft: _Draft, rate: float) -> None:
    entries = []
    for entry in draft.entries:
        name, tail = re.fullmatch(r"(.*?)(\W*)", entry.text, re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in MISHEARD or not draft.is_chosen(rate):
            entries.append(entry)
            continue
        parts = (draft.pick(MISHEARD[name]) + tail).split()
        assert entry.start is not None and entry.end is not None
        bounds = np.linspace(entry.start, entry.end, len(parts) + 1).round(3).tolist()
        entries += [
            _Entry(start, end, part, entry.probability) for start, end, part in zip(bounds, bounds[1:], parts, strict=False)
        ]
        draft.log.append(DamageRecord(Damage.MISHEARD, entry.start, entry.text, " ".join(parts)))
    draft.entries[:] = entries


def _advertise(draft: _Draft, rate: float) -> None:
    for _ in range(draft.times(rate)):
        _insert(draft, Damage.ADVERT, draft.pick(ADVERTS).split())


def _loop(draft: _Draft, rate: float) -> None:
    """What was just said, or what nobody said, again and again."""
    for _ in range(draft.times(rate)):
        repeats = int(draft.random.integers(5, 9))
        if draft.is_chosen(0.5):
            _insert(draft, Damage.LOOP, draft.pick(NOBODY_SAID).split() * repeats)
        else:
            _insert(draft, Damage.LOOP, None, repeats)


def _play_music(draft: _Draft, rate: float) -> None:
    """Doubtful words in music; every second time the recogniser says itself that there is no speech."""
    for number in range(draft.times(rate)):
        words = draft.pick(MUSIC).split()
        inserted = _insert(draft, Damage.MUSIC, words)
        for entry in inserted:
            entry.probability = round(draft.random.uniform(0.05, 0.35), 2)
        if inserted and number % 2:
            start, end = inserted[0].start, inserted[-1].end
            assert start is not None and end is not None
            draft.no_speech.append(NoSpeech(start, end, round(draft.random.uniform(0.7, 0.95), 2)))
            for entry in inserted:
                entry.probability = round(draft.random.uniform(0.41, 0.58), 2)


def _insert(draft: _Draft, kind: Damage, words: list[str] | None, repeats: int = 1) -> list[_Entry]:
    """Put words into a pause that is long enough, after its first MARGIN; none where there is no such pause. words: None: the
    sentence before the pause, so many times."""
    gaps = []
    for index in range(1, len(draft.entries)):
        before, after = draft.entries[index - 1], draft.entries[index]
        assert before.end is not None and after.start is not None
        texts = words if words is not None else _sentence(draft.entries, index) * repeats
        if texts and after.start - before.end >= len(texts) * WORD_SECONDS + 2 * MARGIN:
            gaps.append((index, before.end, texts))
    if not gaps:
        return []
    index, time, texts = gaps[draft.random.integers(len(gaps))]
    starts = [time + MARGIN + number * WORD_SECONDS for number in range(len(texts))]
    inserted = [
        _Entry(round(start, 3), round(start + WORD_SECONDS, 3), text, round(draft.random.uniform(0.7, 0.99), 2), is_said=False)
        for start, text in zip(starts, texts, strict=True)
    ]
    draft.entries[index:index] = inserted
    draft.log.append(DamageRecord(kind, starts[0], "", " ".join(texts)))
    return inserted


def _sentence(entries: Sequence[_Entry], end: int) -> list[str]:
    """The true sentence that ends before an index, of at most four words; none where there is no such."""
    texts: list[str] = []
    for entry in reversed(entries[max(end - 5, 0) : end]):
        if texts and entry.text[-1] in ".!?":
            return texts
        if not entry.is_said:
            return []
        texts.insert(0, entry.text)
    return []


def _get_stuck(draft: _Draft, rate: float) -> None:
    """A word lasts until the next one, over a pause."""
    for index in draft.intact():
        entry, following = draft.entries[index], draft.entries[index + 1 : index + 2]
        if following and following[0].start - entry.end > PAUSE and draft.is_chosen(rate):  # type: ignore[operator]
            _spoil(draft, Damage.STUCK, index, entry.start, following[0].start)


def _lose_times(draft: _Draft, rate: float) -> None:
    """Both times are lost, or, for every third word, the end alone. Words with digits lose theirs more often: aligners have no
    sound for them."""
    for number, index in enumerate(draft.intact()):
        entry = draft.entries[index]
        if draft.is_chosen(rate * (NUMBERS if re.search(r"\d", entry.text) else 1)):
            _spoil(draft, Damage.LOST, index, entry.start if number % 3 == 0 else None, None)


def _turn_times(draft: _Draft, rate: float) -> None:
    """Start and end are exchanged, or the end lies seconds before the start."""
    for number, index in enumerate(draft.intact()):
        entry = draft.entries[index]
        assert entry.start is not None and entry.end is not None
        if draft.is_chosen(rate):
            wrong = round(entry.start - draft.random.uniform(0.3, 3), 3)
            times = (entry.end, entry.start) if number % 2 else (entry.start, wrong)
            _spoil(draft, Damage.BACKWARD, index, *times)


def _leave(draft: _Draft, rate: float) -> None:
    """The first word starts before the video, and something is said after its end."""
    if not draft.is_chosen(rate) or not draft.entries:
        return
    if draft.entries[0].is_said and not draft.entries[0].is_spoilt:
        _spoil(draft, Damage.OUTSIDE, 0, -0.3, draft.entries[0].end)
    start = draft.duration + 2
    draft.entries.append(_Entry(start, start + WORD_SECONDS, "Thanks.", 0.9, is_said=False, is_spoilt=True))
    draft.log.append(DamageRecord(Damage.OUTSIDE, start, "", "Thanks."))


def _mix_up(draft: _Draft, rate: float) -> None:
    """Neighbours change places, with their times."""
    intact = set(draft.intact())
    for index in sorted(intact):
        first, second = draft.entries[index], draft.entries[index + 1] if index + 1 in intact else None
        if second is None or first.is_spoilt or second.is_spoilt:
            continue
        assert first.start is not None and second.start is not None
        if second.start - first.start < NEIGHBOURS and draft.is_chosen(rate):
            draft.entries[index : index + 2] = second, first
            first.is_spoilt = second.is_spoilt = True
            before, after = f"{first.text} {second.text}", f"{second.text} {first.text}"
            draft.log.append(DamageRecord(Damage.DISORDER, first.start, before, after))


def _spoil(draft: _Draft, kind: Damage, index: int, start: float | None, end: float | None) -> None:
    entry = draft.entries[index]
    before = f"{entry.text} {entry.start} {entry.end}"
    assert entry.start is not None
    draft.log.append(DamageRecord(kind, entry.start, before, f"{entry.text} {start} {end}"))
    entry.start, entry.end, entry.is_spoilt = start, end, True


# In this order: words that nobody said are put into pauses as they truly are.
_DAMAGES: dict[Damage, Callable[[_Draft, float], None]] = {
    Damage.MISHEARD: _mishear,
    Damage.ADVERT: _advertise,
    Damage.LOOP: _loop,
    Damage.MUSIC: _play_music,
    Damage.STUCK: _get_stuck,
    Damage.LOST: _lose_times,
    Damage.BACKWARD: _turn_times,
    Damage.OUTSIDE: _leave,
    Damage.DISORDER: _mix_up,
}
