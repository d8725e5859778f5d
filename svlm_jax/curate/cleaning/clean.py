"""Transcripts of ASRs and subtitles, mended: the rules, their order, and when a video is beyond repair.

Owns what a clean transcript is: words that are text, each with times within the video, starts and ends that do not go back, no
loops, no words over music. To clean it again changes nothing. What each rule does is in `word_texts`, `word_times` and
`hallucinations`. Host side, never jax. Units: seconds of the video.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from svlm_jax.curate.cleaning import hallucinations, word_texts, word_times
from svlm_jax.curate.cleaning.word_texts import Note
from svlm_jax.curate.cleaning.word_times import BORDER
from svlm_jax.curate.languages import language_code
from svlm_jax.curate.outcome import Change, Outcome, SetAside
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record

VERSION = 1  # of the rules: a change of what they do counts up, so that files of before are not taken over
MAX_OUTSIDE = 0.1  # share of words outside the video, of a transcript that is this video's


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        language: a code or a name, "en", "English": videos in others are set aside, those of unknown language are not; "": any.
        words_per_second: more over 3 s are no speech.
        min_probability: mean of a sentence, of an ASR that gives them.
        min_no_speech: from where on the ASR's own probability of no speech is believed.
        max_deleted: share of the words of a video; where more were deleted, the rest is not believed either.
        min_words_per_second: over the whole video; 0: a few words are enough.
    """

    language: str = ""
    words_per_second: float = 6.0
    min_probability: float = 0.4
    min_no_speech: float = 0.6
    max_deleted: float = 0.5
    min_words_per_second: float = 0.0


@dataclass(frozen=True)
class CleanStep:
    """`clean` as a step of curation."""

    limits: Limits = Limits()
    name: str = "clean"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"version": VERSION, **asdict(self.limits)}

    def run(self, transcript: Transcript) -> Outcome:
        return clean(transcript, self.limits)


def clean(transcript: Transcript, limits: Limits = Limits()) -> Outcome:
    """The transcript, mended, or why it is set aside; all that was changed either way."""
    changes: list[Change] = []
    try:
        words = _clean(transcript, limits, lambda *change: changes.append(Change(*change)))
    except SetAside as error:
        return Outcome(reason=str(error), changes=_by_time(changes))
    steps = transcript.steps if transcript.steps[-1:] == ("clean",) else (*transcript.steps, "clean")
    cleaned = replace(transcript, words=tuple(words), steps=steps)
    return Outcome((to_record(cleaned),), changes=_by_time(changes))


def _clean(transcript: Transcript, limits: Limits, note: Note) -> list[TimedWord]:
    language, only_language = language_code(transcript.language), language_code(limits.language)
    if only_language and language and language != only_language:
        raise SetAside(f"language {language}, not {only_language}")
    words = word_texts.join_marks(word_texts.remove_characters(transcript.words, note), note)
    if not words:
        raise SetAside("no words")
    words = hallucinations.delete_sound_tags(_mend_times(words, transcript.duration, note), note)
    kept_words = _delete_hallucinations(words, transcript, limits, note)
    if len(kept_words) < (1 - limits.max_deleted) * len(words):
        raise SetAside("most words are no speech")
    if not kept_words:
        raise SetAside("no words")
    if len(kept_words) < limits.min_words_per_second * transcript.duration:
        raise SetAside(f"fewer than {limits.min_words_per_second:g} words a second")
    return kept_words


def _mend_times(words: Sequence[TimedWord], duration: float, note: Note) -> list[TimedWord]:
    """Each rule relies on those before it: words are split when they have times, and sorted when they are split."""
    outside = sum(_is_outside(word, duration) for word in words)
    if outside > MAX_OUTSIDE * len(words):
        raise SetAside("times outside the video: another video's words, or a wrong duration")
    words = word_times.clip_to_video(words, duration, note)
    words = word_times.mend_ends(words, duration, note)
    words = word_times.forget_strays(words, note)
    words = word_times.fill_times(words, duration, note)
    words = word_texts.split(words, note)
    words = word_times.sort(words, note)
    words = word_times.shorten_stuck(words, note)
    return word_times.order_ends(words, note)


def _is_outside(word: TimedWord, duration: float) -> bool:
    times = [time for time in (word.start, word.end) if time is not None]
    return bool(times) and (max(times) < -BORDER or min(times) > duration + BORDER)


def _delete_hallucinations(words: Sequence[TimedWord], transcript: Transcript, limits: Limits, note: Note) -> list[TimedWord]:
    """Until no rule finds anything: what one deletes can bring together what another looks for."""
    rules: list[Callable[..., list[TimedWord]]] = [
        hallucinations.delete_sound_tags,
        hallucinations.collapse_loops,
        partial(hallucinations.delete_fast, words_per_second=limits.words_per_second),
        partial(hallucinations.delete_no_speech, stretches=transcript.no_speech, min_no_speech=limits.min_no_speech),
        partial(hallucinations.delete_unheard, min_probability=limits.min_probability),
    ]
    count, kept_words = -1, list(words)
    while len(kept_words) != count:
        count = len(kept_words)
        for rule in rules:
            kept_words = rule(kept_words, note=note)
    return kept_words


def _by_time(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Those without a time after the others."""
    return tuple(sorted(changes, key=lambda change: float("inf") if change.time is None else change.time))
