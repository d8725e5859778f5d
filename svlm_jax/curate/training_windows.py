"""Transcripts to windows for supervised fine-tuning: overlapped, with the text before each, only where enough is said.

Owns what becomes of a video: the windows kept, those left out, a reason where none is kept. Where windows lie, which words are
in them and how many are enough is the rule of `data.windows`, the same for `svlm windows`. Host side, never jax. Units: seconds
of the video.

Source: StreamingVLM (arXiv 2510.09608), section 2.3: 24 s every 12 s, at least 2 words a second.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from svlm_jax.curate.outcome import Change, Outcome
from svlm_jax.curate.transcript import TimedWord, Transcript
from svlm_jax.data.annotation import Annotation, parse
from svlm_jax.data.windows import check_windows, says_enough, slice_windows, to_record, word_count
from svlm_jax.errors import InputError

TOO_FEW_WORDS = "too few words"  # the rule by which a window is left out
NOT_READY = "not to be cut"  # a video
_SHORTEST = 2.0  # seconds of a last window that is kept


@dataclass(frozen=True)
class TrainingWindows:
    """The step.

    Attributes:
        window, stride: seconds of a window, and from one start to the next.
        words_per_second: that a window must have; 0: silent ones are kept too.
        query: what the viewer asks for, in each record.
        as_streamed: previous text as streams have it, a line a second.
        visible_seconds: only so many seconds at the end of a window have frames; 0: all.
    """

    window: int = 24
    stride: int = 12
    words_per_second: float = 2.0
    query: str = ""
    as_streamed: bool = False
    visible_seconds: int = 0
    name: str = "windows"

    def __post_init__(self) -> None:
        """Raises:
        InputError: windows that cannot be.
        """
        check_windows(self.window, self.stride, self._shortest, self.visible_seconds)

    @property
    def settings(self) -> Mapping[str, Any]:
        names = ("window", "stride", "words_per_second", "query", "as_streamed", "visible_seconds")
        return {name: getattr(self, name) for name in names}

    @property
    def _shortest(self) -> float:
        return min(_SHORTEST, self.window)

    def run(self, transcript: Transcript) -> Outcome:
        """A line a window, in order of time. Set aside: words that `clean` has not seen to, a video without a window."""
        try:
            windows = self._slice(to_annotation(transcript, self.query))
        except InputError as error:
            change = Change(NOT_READY, None, f"{error.field}: {error.got}", "")
            return Outcome(reason=f"{NOT_READY}, expected {error.expected}; {error.remedy}", changes=(change,))
        dense, sparse = [], []
        for window in windows:
            (dense if says_enough(window, self.words_per_second) else sparse).append(window)
        return Outcome(
            lines=tuple(map(to_record, dense)),
            reason="" if dense else f"no window has {self.words_per_second:g} words a second",
            changes=tuple(Change(TOO_FEW_WORDS, window.start, _length(window), "") for window in sparse),
            counts={"windows": len(dense), "windows left out": len(sparse)},
        )

    def _slice(self, annotation: Annotation) -> Iterator[Annotation]:
        return slice_windows(
            annotation,
            window=self.window,
            stride=self.stride,
            min_seconds=self._shortest,
            as_streamed=self.as_streamed,
            visible_seconds=self.visible_seconds,
            source="video",
        )


def to_annotation(transcript: Transcript, query: str = "") -> Annotation:
    """The whole video as one record, which `svlm windows` cuts too.

    Raises:
        InputError: words without times or out of order, or that hold special tokens: those of a transcript before `clean`.
    """
    words = [[*_times(word, index), word.text] for index, word in enumerate(transcript.words)]
    clip = {"type": "video", "video": transcript.video, "video_start": 0.0, "video_end": transcript.duration}
    text = {"type": "text", "text": query, "previous": ""}
    speech = {"type": "text_stream", "text_stream": words}
    try:
        return parse([{"role": "user", "content": [clip, text]}, {"role": "assistant", "content": [speech]}], "record")
    except InputError as error:
        field = error.field.replace("record [1].content[0].text_stream", "content")
        raise InputError(field, error.got, error.expected, "run svlm curate clean first") from None


def _times(word: TimedWord, index: int) -> tuple[float, float]:
    if word.start is None or word.end is None:
        raise InputError(f"content[{index}]", "a word without times", "start and end", "run svlm curate clean first")
    return word.start, word.end


def _length(window: Annotation) -> str:
    return f"{word_count(window)} words in {window.seconds} s"
