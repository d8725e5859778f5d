"""Timing and correctness: a commentary against the truth of its video, second by second.

Owns the observations and the counts; `eval.timing_metrics` makes numbers of them. Does not know where commentaries come from.
Host side, never jax. Units: seconds of the video.

The unit of time is the whole second. An utterance of a second or less is said in the second in which it starts; the words of a
longer one, of a captioner that describes minutes at once, lie evenly in it. An event is in the second in which it starts, a
claim in that of its first letter. The claims of a pattern are looked for in the whole transcript, with a line break between two
utterances: `\\s` in a pattern lets a claim go on in the next one, a blank does not.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.truth import Mention, Truth, Value

TOLERANCE = 2.0  # seconds between an event and a claim that match, at most
REPETITION_WINDOW = 3  # seconds within which the same words are a repetition
ELLIPSIS = "..."  # ends every reply of some models, and is no word


class Transcript(NamedTuple):
    """text: a line an utterance; seconds: of each character of text; words: second -> its words."""

    text: str
    seconds: np.ndarray
    words: dict[int, str]


class EventTiming(NamedTuple):
    """An event of the truth. error: seconds by which the claim that matches it came late (negative: early); delay: seconds from
    its start to the first correct claim before its end. None: there is no such claim."""

    second: int
    name: str
    error: int | None
    delay: int | None


class Claim(NamedTuple):
    """A claim of the commentary. correct: it has an event of its own, or is the state at that time."""

    second: int
    name: str
    correct: bool


class Observations(NamedTuple):
    """What there is to count in one commentary. covered: the seconds for which it was made, in order. expected: the states that
    the true commentary mentions. silent: whether the true commentary is, in each second that is covered; None: unknown."""

    covered: tuple[int, ...]
    events: tuple[EventTiming, ...]
    claims: tuple[Claim, ...]
    states: tuple[Claim, ...]
    expected: tuple[Claim, ...]
    words: dict[int, str]
    silent: dict[int, bool] | None


@dataclass
class Counts:
    """Counts over a part of a stream; + adds two of them.

    Attributes:
        seconds, words: covered; said in them.
        events, claims, matches: of the truth; of the commentary; pairs of an event and a claim.
        error, absolute_error: seconds between the two of a pair, summed over pairs.
        timely_events, delay: events with a correct claim before their end; seconds until the first one, summed.
        states, right_states, expected_states: claimed; correct ones of them; mentioned by the true commentary.
        true_silences, silences, matched_silences: seconds without words in the true commentary; in this one; in both. All zero
            where the true commentary is unknown.
        spoken, repetitions: seconds with words; with the same words as one of the REPETITION_WINDOW seconds before.
    """

    seconds: int = 0
    words: int = 0
    events: int = 0
    claims: int = 0
    matches: int = 0
    error: int = 0
    absolute_error: int = 0
    timely_events: int = 0
    delay: int = 0
    states: int = 0
    right_states: int = 0
    expected_states: int = 0
    true_silences: int = 0
    silences: int = 0
    matched_silences: int = 0
    spoken: int = 0
    repetitions: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def transcript(utterances: Iterable[Utterance]) -> Transcript:
    """All utterances, in order of their starts; of silence nothing is left."""
    parts: list[str] = []
    seconds: list[int] = []
    words: dict[int, str] = {}
    for start, end, text in sorted(utterances, key=lambda utterance: utterance.start):
        tokens = text.strip().removesuffix(ELLIPSIS).split()
        for number, word in enumerate(tokens):
            second = int(start + (end - start) * number / len(tokens)) if end - start > 1 else int(start)
            # the words of one second are one line, however many utterances they came in
            gap = "" if not parts else " " if number or second == seconds[-1] else "\n"
            parts += [gap, word]
            seconds += [second] * (len(gap) + len(word))
            words[second] = f"{words[second]} {word}" if second in words else word
    return Transcript("".join(parts), np.array(seconds, np.int64), words)


def claims_of(mention: Mention, commentary: Transcript) -> list[tuple[int, str]]:
    """(second, text) of every match of a pattern, in order of time."""
    claims = [
        (int(commentary.seconds[match.start()]), " ".join((match[1] or "").split()) if match.re.groups else "")
        for match in re.finditer(mention.pattern, commentary.text)
        if match[0]
    ]
    return sorted(claims, key=lambda claim: claim[0])  # utterances may overlap


def observe(
    truth: Truth, utterances: Iterable[Utterance], covered: Iterable[int], tolerance: float = TOLERANCE
) -> Observations:
    """Compare a commentary with the truth.

    Args:
        utterances: "" for silence; a second without one is silent too.
        covered: seconds for which the commentary was made; nothing else of truth and commentary counts.
        tolerance: seconds between an event and a claim that match, at most.
    """
    commentary = transcript(utterances)
    seconds = dict.fromkeys(sorted(second for second in covered if second < truth.seconds))
    events: list[EventTiming] = []
    claims: list[Claim] = []
    states: list[Claim] = []
    expected: list[Claim] = []
    true_words = None if truth.commentary is None else transcript(truth.commentary)
    for mention in truth.mentions:
        matches = [claim for claim in claims_of(mention, commentary) if claim[0] in seconds]
        if mention.kind == "event":
            values = [value for value in mention.values if int(value.start) in seconds]
            timings, matched = match_events(mention.name, values, matches, tolerance)
            events += timings
            claims += [Claim(second, mention.name, correct) for (second, _), correct in zip(matches, matched, strict=True)]
            continue
        states += [Claim(second, mention.name, is_true(mention.values, second, text)) for second, text in matches]
        if true_words is not None:
            expected += [Claim(second, mention.name, True) for second, _ in claims_of(mention, true_words) if second in seconds]
    silent = None if true_words is None else {second: second not in true_words.words for second in seconds}
    words = {second: text for second, text in commentary.words.items() if second in seconds}
    return Observations(tuple(seconds), tuple(events), tuple(claims), tuple(states), tuple(expected), words, silent)


def match_events(
    name: str, values: Sequence[Value], claims: Sequence[tuple[int, str]], tolerance: float
) -> tuple[list[EventTiming], list[bool]]:
    """Events of one kind, and for each claim whether it has an event of its own.

    Each event, in order of time, takes the nearest claim within the tolerance that fits it and is still free; of two as near,
    the earlier. Whether there is a correct claim inside the span of an event does not depend on whose it is.
    """
    seconds, matched, timings = [second for second, _ in claims], [False] * len(claims), []
    for value in values:
        start = int(value.start)
        error = nearest = None
        for index in range(bisect_left(seconds, start - tolerance), len(claims)):
            late = seconds[index] - start
            if late > tolerance:
                break
            if not matched[index] and _fits(claims[index][1], value) and (error is None or abs(late) < abs(error)):
                error, nearest = late, index
        if nearest is not None:
            matched[nearest] = True
        inside = (index for index in range(bisect_left(seconds, start), len(claims)) if _fits(claims[index][1], value))
        first = next(inside, None)
        delay = seconds[first] - start if first is not None and seconds[first] < value.end else None
        timings.append(EventTiming(start, name, error, delay))
    return timings, matched


def is_true(values: Sequence[Value], second: int, text: str) -> bool:
    """Whether a state has this value in some part of a second."""
    return any(value.start < second + 1 and value.end > second and value.text == text for value in values)


def count(observed: Observations, start: float = 0, end: float = float("inf"), names: Iterable[str] | None = None) -> Counts:
    """The counts of start <= second < end. names: of the mentions that count; None: all."""
    selected = None if names is None else set(names)

    def of(entries: Sequence) -> list:
        return [each for each in entries if start <= each.second < end and (selected is None or each.name in selected)]

    events, claims, states = of(observed.events), of(observed.claims), of(observed.states)
    errors = [event.error for event in events if event.error is not None]
    delays = [event.delay for event in events if event.delay is not None]
    seconds = [second for second in observed.covered if start <= second < end]
    spoken_seconds = [second for second in seconds if second in observed.words]
    silent = [] if observed.silent is None else [second for second in seconds if observed.silent[second]]
    return Counts(
        seconds=len(seconds),
        words=sum(len(observed.words[second].split()) for second in spoken_seconds),
        events=len(events),
        claims=len(claims),
        matches=len(errors),
        error=sum(errors),
        absolute_error=sum(map(abs, errors)),
        timely_events=len(delays),
        delay=sum(delays),
        states=len(states),
        right_states=sum(claim.correct for claim in states),
        expected_states=len(of(observed.expected)),
        true_silences=len(silent),
        silences=0 if observed.silent is None else len(seconds) - len(spoken_seconds),
        matched_silences=sum(second not in observed.words for second in silent),
        spoken=len(spoken_seconds),
        repetitions=sum(_repeats(observed.words, second) for second in spoken_seconds),
    )


def _repeats(words: dict[int, str], second: int) -> bool:
    return words[second] in (words.get(second - back, "") for back in range(1, REPETITION_WINDOW + 1))


def _fits(claim: str, value: Value) -> bool:
    return claim in ("", value.text)
