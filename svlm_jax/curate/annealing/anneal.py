"""Clips for the last part of training: live commentary without long pauses, from whole sentence to whole sentence.

Owns where clips begin and end, and which are kept. How much of a text is live commentary says a judge
(`curate.annealing.live_share`). Clips begin and end on whole seconds, as all windows do, so their sentences lie within them and
no two share a second. The words of a clip are those of its sentences; all words before them are its previous text. Host side,
never jax. Units: seconds of the video.

Source: StreamingVLM (arXiv 2510.09608), section 2.3: clips of 16 to 64 s with 2 words a second and more than 80 % of live
commentary; of 52,530 clips 14,786 were kept, 28 %.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from svlm_jax.curate.annealing.live_share import LiveShare, LiveShareJudge
from svlm_jax.curate.outcome import Change, Outcome
from svlm_jax.curate.sentences import Sentence, split_sentences
from svlm_jax.curate.training_windows import NOT_READY, to_annotation
from svlm_jax.curate.transcript import Transcript
from svlm_jax.data.annotation import SLACK, Annotation
from svlm_jax.data.windows import to_record
from svlm_jax.errors import InputError

NAME = "anneal"
VERSION = 1  # of the rules here, on which outcomes depend
PAPER_YIELD = 14_786 / 52_530
NOT_LIVE = "too little live commentary"  # rules by which a clip is left out
NOT_JUDGED = "no answer of the judge"


class Bounds(NamedTuple):
    """What a clip may be.

    Attributes:
        shortest, longest: whole seconds.
        gap: from the end of a word to the start of the next, at most.
        words_per_second: at least, for each second of the clip.
    """

    shortest: int = 16
    longest: int = 64
    gap: float = 3.0
    words_per_second: float = 2.0


BOUNDS = Bounds()  # the paper's


class Clip(NamedTuple):
    """start, end: whole seconds. first, stop: its sentences in those of the video, the last excluded."""

    start: int
    end: int
    first: int
    stop: int


@dataclass(frozen=True)
class AnnealingClips:
    """The step.

    Attributes:
        judge: of how much is live commentary.
        min_share: of live commentary; a clip is kept above it, not at it.
        query: what the viewer asks for, in each record.
        map_clips: `map`, or one that asks about several clips at a time; results in order.
    """

    judge: LiveShareJudge
    bounds: Bounds = BOUNDS
    min_share: float = 0.8
    query: str = ""
    map_clips: Callable[..., Any] = map
    name: str = NAME

    @property
    def settings(self) -> Mapping[str, Any]:
        fields = {"bounds": self.bounds._asdict(), "min_share": self.min_share, "query": self.query}
        return {"judge": dict(self.judge.settings), **fields, "version": VERSION}

    def run(self, transcript: Transcript) -> Outcome:
        """A line a clip, in order of time. Set aside: words that `clean` has not seen to, a video without a clip that is kept.

        Raises:
            NotDone, InputError: of the judge.
        """
        try:
            annotation = to_annotation(transcript, self.query)
        except InputError as error:
            change = Change(NOT_READY, None, f"{error.field}: {error.got}", "")
            return Outcome(reason=f"{NOT_READY}, expected {error.expected}; {error.remedy}", changes=(change,))
        sentences = split_sentences(transcript.words)
        candidates = list(find_clips(sentences, math.floor(annotation.end + SLACK), self.bounds))
        texts = [_texts(sentences, clip) for clip in candidates]
        shares: list[LiveShare] = list(self.map_clips(lambda each: self.judge.judge(transcript.title, each), texts))
        kept_clips: list[Clip] = []
        changes: list[Change] = []
        counts = Counter(sentences=len(sentences), clips=len(candidates))
        for clip, text, (share, reason) in zip(candidates, texts, shares, strict=True):
            counts["sentences in clips"] += len(text)
            if share is not None and share > self.min_share:
                kept_clips.append(clip)
                continue
            rule, before = (NOT_JUDGED, "") if share is None else (NOT_LIVE, f"{share:.0%} ")
            counts["clips without an answer" if share is None else "clips not live"] += 1
            changes.append(Change(rule, clip.start, f"{before}({reason}): {' '.join(text)}", ""))
        counts["clips kept"] = len(kept_clips)
        lines = tuple(to_record(each) for each in _records(annotation, sentences, kept_clips))
        return Outcome(lines, "" if lines else self._why_none(counts), tuple(changes), counts)

    def questions(self, transcript: Transcript) -> Iterator[tuple[str, list[str]]]:
        """What the judge is asked about a transcript: (title, sentences) of each clip; nothing of one that is not ready."""
        if any(word.start is None or word.end is None for word in transcript.words):
            return
        sentences = split_sentences(transcript.words)
        for clip in find_clips(sentences, math.floor(transcript.duration + SLACK), self.bounds):
            yield transcript.title, _texts(sentences, clip)

    def _why_none(self, counts: Mapping[str, float]) -> str:
        if counts["clips"]:
            return f"no clip has more than {self.min_share:.0%} live commentary"
        shortest, longest, gap, words = self.bounds
        return f"no {shortest} to {longest} s with {words:g} words a second and no gap above {gap:g} s"


def _texts(sentences: Sequence[Sentence], clip: Clip) -> list[str]:
    return [sentence.text for sentence in sentences[clip.first : clip.stop]]


def find_clips(sentences: Sequence[Sentence], end: int, bounds: Bounds = BOUNDS) -> Iterator[Clip]:
    """Greedily, in order of time: each begins with the first sentence that can begin one, and is as long as it may be.

    Args:
        sentences: all of a video, in order.
        end: whole seconds that the video has.
    """
    first, free = 0, 0  # the first second that no clip has
    while first < len(sentences):
        clip = _longest(sentences, first, end, bounds)
        words = sum(len(word.text.split()) for sentence in sentences[first : clip.stop] for word in sentence.words)
        seconds = clip.end - clip.start
        if clip.start >= free and seconds >= bounds.shortest and words >= bounds.words_per_second * seconds - SLACK:
            yield clip
            first, free = clip.stop, clip.end
        else:
            first += 1


def _longest(sentences: Sequence[Sentence], first: int, end: int, bounds: Bounds) -> Clip:
    """The longest clip that begins with a sentence; without any where that one alone is too long."""
    start = math.floor(sentences[first].start + SLACK)
    latest = min(start + bounds.longest, end)
    stop = first
    while stop < len(sentences) and sentences[stop].end <= latest + SLACK:
        # within a sentence no gap is as long: it would have ended it
        if stop > first and sentences[stop].start - sentences[stop - 1].end > bounds.gap + SLACK:
            break
        stop += 1
    return Clip(start, math.ceil(sentences[stop - 1].end - SLACK) if stop > first else start, first, stop)


def _records(annotation: Annotation, sentences: Sequence[Sentence], clips: Sequence[Clip]) -> Iterator[Annotation]:
    """Each clip with its words, and all text before them."""
    previous: list[str] = []
    for clip in clips:
        first = sentences[clip.first].first
        stop = sentences[clip.stop - 1].first + len(sentences[clip.stop - 1].words)
        previous.extend(f" {word.text.strip()}" for word in annotation.words[len(previous) : first])
        yield replace(
            annotation, start=clip.start, end=clip.end, previous="".join(previous), words=annotation.words[first:stop]
        )
