"""Which sentences of a commentary are kept, corrected or deleted, and what becomes of their words.

Owns the question and what an answer does; who decides is an `Editor`: a language model (`curate.editing.llm_editor`) or rules
(`curate.editing.rule_editor`). Sentences that are kept keep the times of their words; the words of a corrected one share its
time evenly, as in StreamingVLM (arXiv 2510.09608), unless you ask for better. Host side, never jax. Units: seconds of the
video.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple, Protocol

from svlm_jax.curate.outcome import Change, Outcome
from svlm_jax.curate.sentences import SEGMENT, Segment, Sentence, segments, split_sentences, split_words
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record
from svlm_jax.errors import InputError

NAME = "edit"  # of the step
VERSION = 1  # of the rules here, on which outcomes depend
CONTEXT_SENTENCES = 3  # before a segment, that an editor may read
NOT_READY = "not to be edited"  # a video
PAPER_SHARES = {"kept": 0.4632, "edited": 0.3789, "deleted": 0.1579}
STATES = {"keep": "kept", "edit": "edited", "delete": "deleted"}  # of a sentence, by the decision

Action = Literal["keep", "edit", "delete"]
Times = Literal["even", "aligned"]  # see `apply`


class Decision(NamedTuple):
    """What to do with a sentence.

    Attributes:
        text: the whole corrected sentence; "" where it is kept or deleted.
        flag: why it is kept though nobody decided so, in a few words that reports count: "missing in the answer".
    """

    action: Action
    text: str = ""
    flag: str = ""


class Context(NamedTuple):
    """What an editor may know besides the sentences. start, end: of the segment. previous: sentences before it, as the ASR has
    them: not as edited, so that segments can be edited in any order."""

    title: str
    language: str | None
    start: float
    end: float
    previous: tuple[str, ...] = ()


class Editor(Protocol):
    """settings: JSON, all that decisions depend on: model, prompt as a digest, rules."""

    settings: Mapping[str, Any]

    def edit(self, context: Context, sentences: Sequence[Sentence]) -> list[Decision]:
        """One for each sentence, in order; the same question has the same answer.

        Raises:
            NotDone: there is no answer now, and may be one later.
            InputError: there will be none to any question.
        """
        ...


class EditStep:
    """A `Step`: the transcript with its sentences as an editor decides. One that was edited before passes as it is."""

    name = NAME

    def __init__(
        self, editor: Editor, segment_seconds: int = SEGMENT, times: Times = "even", map_segments: Callable[..., Any] = map
    ) -> None:
        """
        Args:
            times: of corrected sentences, see `apply`.
            map_segments: `map`, or one that asks for several segments at a time; results in order.
        """
        self.editor, self.segment_seconds, self._map = editor, segment_seconds, map_segments
        self.times: Times = times
        self.settings: Mapping[str, Any] = {
            "editor": dict(editor.settings),
            "segment_seconds": segment_seconds,
            "times": times,
            "version": VERSION,
        }

    def run(self, transcript: Transcript) -> Outcome:
        """Set aside: words that `clean` has not seen to.

        Raises:
            NotDone, InputError: those of the editor.
        """
        if NAME in transcript.steps:
            return Outcome((to_record(transcript),), counts={"videos edited before": 1})
        try:
            questions = list(ask(transcript, self.segment_seconds))
        except InputError as error:
            change = Change(NOT_READY, None, f"{error.field}: {error.got}", "")
            return Outcome(reason=f"{NOT_READY}, expected {error.expected}; {error.remedy}", changes=(change,))
        answers = list(self._map(lambda question: self.editor.edit(question[0], question[1].sentences), questions))
        words: list[TimedWord] = []
        changes: list[Change] = []
        counts: Counter[str] = Counter(segments=len(questions))
        for (_, segment), decisions in zip(questions, answers, strict=True):
            counts[f"segments {STATES[_segment_action(decisions)]}"] += 1
            for sentence, decision in zip(segment.sentences, decisions, strict=True):
                words += apply(sentence, decision, self.times, *_neighbours(transcript.words, sentence))
                changes += _changes(sentence, decision)
                counts[f"sentences {STATES[decision.action]}"] += 1
                counts[f"words {STATES[decision.action]}"] += len(sentence.words)
                counts["sentences flagged"] += bool(decision.flag)
        if not words:
            reason = "all sentences are deleted" if questions else "no words"
            return Outcome(reason=reason, changes=tuple(changes), counts=counts)
        edited = replace(transcript, words=tuple(words), steps=(*transcript.steps, NAME))
        return Outcome((to_record(edited),), changes=tuple(changes), counts=counts)


def ask(transcript: Transcript, segment_seconds: int = SEGMENT) -> Iterator[tuple[Context, Segment]]:
    """(context, segment) of each segment of a transcript, in order.

    Raises:
        InputError: a word without times.
    """
    try:
        sentences, index = split_sentences(transcript.words), 0
    except InputError as error:
        raise error.within(transcript.video) from None
    known = [transcript.title, *(transcript.others.get(key) for key in ("competition", "date"))]
    title = ", ".join(text for text in known if text and isinstance(text, str))
    for segment in segments(sentences, segment_seconds):
        previous = tuple(sentence.text for sentence in sentences[max(index - CONTEXT_SENTENCES, 0) : index])
        yield Context(title, transcript.language, segment.start, segment.end, previous), segment
        index += len(segment.sentences)


def apply(
    sentence: Sentence, decision: Decision, times: Times = "even", not_before: float = 0.0, until: float = math.inf
) -> tuple[TimedWord, ...]:
    """The words of a sentence after a decision.

    Args:
        times: of the words of a corrected one. even: they share its time evenly. aligned: those that stand in it unchanged keep
            their times, and the others share those of the words that they replace.
        not_before, until: where sentences overlap: the end of the word before this one, before which no corrected word ends,
            and the start of the word after it, after which none starts. Training takes words in order of both.
    """
    if decision.action == "delete":
        return ()
    if decision.action == "keep":
        return sentence.words
    texts = split_words(decision.text)
    if times == "even":
        return tuple(_spread(texts, sentence.start, sentence.end, not_before, until))
    return tuple(_aligned(sentence, texts, not_before, until))


def _aligned(sentence: Sentence, texts: Sequence[str], not_before: float, until: float) -> list[TimedWord]:
    """Words that stand in the sentence with their times, and others in the time of what they replace."""
    words, aligned = sentence.words, []
    starts, ends = [word.start or 0.0 for word in words], [word.end or 0.0 for word in words]
    for change, first, last, new_first, new_last in SequenceMatcher(
        None, [word.text for word in words], texts, autojunk=False
    ).get_opcodes():
        if change == "equal":
            aligned += words[first:last]
            continue
        start = starts[first] if change == "replace" else ends[first - 1] if first else sentence.start
        end = ends[last - 1] if change == "replace" else starts[last] if last < len(words) else sentence.end
        before, after = ends[first - 1] if first else not_before, starts[last] if last < len(words) else until
        # Words that were inserted share a pause, which may be of no length.
        aligned += _spread(texts[new_first:new_last], start, max(start, end), before, after)
    return aligned


def _spread(texts: Sequence[str], start: float, end: float, not_before: float, until: float) -> list[TimedWord]:
    """Words that share a time evenly."""
    borders = [start, *(round(start + (end - start) * number / len(texts), 3) for number in range(1, len(texts))), end]
    borders = [min(max(border, start), end) for border in borders]  # of a time of no length, rounding leaves it
    return [
        TimedWord(min(borders[number], until), max(borders[number + 1], not_before), text) for number, text in enumerate(texts)
    ]


def shares(counts: Mapping[str, float], unit: str = "sentences") -> dict[str, float]:
    """Of "kept", "edited", "deleted" in the counts of outcomes, to be read beside `PAPER_SHARES`; 0 where there is nothing.

    Args:
        unit: "sentences"; "words", as they came in; "segments", where a segment is kept or deleted if all of it is.
    """
    numbers = {state: counts.get(f"{unit} {state}", 0) for state in PAPER_SHARES}
    return {state: number / max(sum(numbers.values()), 1) for state, number in numbers.items()}


def _neighbours(words: Sequence[TimedWord], sentence: Sentence) -> tuple[float, float]:
    """The end of the word before a sentence, and the start of the one after it."""
    last = sentence.first + len(sentence.words)
    before = words[sentence.first - 1].end if sentence.first else None
    after = words[last].start if last < len(words) else None
    return 0.0 if before is None else before, math.inf if after is None else after


def _segment_action(decisions: Sequence[Decision]) -> Action:
    """Of all of it, where that is one and the same; else it is edited."""
    first = decisions[0].action
    return first if all(decision.action == first for decision in decisions) else "edit"


def _changes(sentence: Sentence, decision: Decision) -> list[Change]:
    text = sentence.text
    if decision.flag:
        return [Change(f"flag: {decision.flag}", sentence.start, text, text)]
    if decision.action == "keep":
        return []
    return [Change(decision.action, sentence.start, text, decision.text)]
