"""A long annotated video as training windows that overlap.

Owns the bounds of windows, and which of the video's words and questions each has. Does not know files, frames or tokens. Host
side, never jax. Units: seconds of the video; windows start and end on whole ones, as chunks of a stream do.

A word belongs to the window that it ends in, first instant excluded, last included: the rule by which `training_turns` finds
its second. Words that end at or before a window's start are its previous text, so that none comes twice and none is lost. The
previous text is the original's: each word with a blank before it, the first one too, and nothing between. All of it: training
shortens it by tokens. In a stream each reply moves into the previous-text turn with its answer and the newline before its
words, silent ones too; `as_streamed` writes it so.

A window is worth training on where enough is said in it: the paper (StreamingVLM, arXiv 2510.09608, section 2.3) keeps those
with 2 words a second, 48 in 24 s. `says_enough` is that rule.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from svlm_jax.data.annotation import REPLY_END, SLACK, Annotation, training_turns
from svlm_jax.errors import InputError


def cut(
    annotation: Annotation,
    *,
    window: int = 24,
    stride: int = 12,
    min_seconds: float | int = 2.0,
    as_streamed: bool = False,
    visible_seconds: int = 0,
    source: str = "annotation",
) -> Iterator[list]:
    """The windows of `slice_windows` as records that `annotation.parse` reads."""
    windows = slice_windows(
        annotation,
        window=window,
        stride=stride,
        min_seconds=min_seconds,
        as_streamed=as_streamed,
        visible_seconds=visible_seconds,
        source=source,
    )
    return map(to_record, windows)


def slice_windows(
    annotation: Annotation,
    *,
    window: int = 24,
    stride: int = 12,
    min_seconds: float | int = 2.0,
    as_streamed: bool = False,
    visible_seconds: int = 0,
    source: str = "annotation",
) -> Iterator[Annotation]:
    """The windows of a video in order of time; silent ones too.

    Fractional seconds at the start and the end of the video are in no window. Where full windows leave a remainder at the end,
    one more starts a stride after the last and ends with the video; unless the remainder is below `min_seconds`, which is left
    out.

    Args:
        window: seconds of a window.
        stride: seconds from one start to the next; equal to `window` for windows that do not overlap.
        as_streamed: the previous text as a stream with the same questions has it: a reply a second.
        visible_seconds: only the last so many seconds of a window have frames, as in a stream with that vision window; 0: all.
        source: what errors call the annotation.

    Raises:
        InputError: a wrong argument; a video that is shorter than `min_seconds`.
    """
    check_windows(window, stride, min_seconds, visible_seconds)
    if annotation.hidden:
        raise InputError(source, f"video_hidden {annotation.hidden}", "a video with all its frames", "cut the record before it")
    # the whole seconds inside the video
    first, last = math.ceil(annotation.start - SLACK), math.floor(annotation.end + SLACK)
    bounds = [(start, start + window) for start in range(first, last - window + 1, stride)]
    if last - (bounds[-1][1] if bounds else first) >= min_seconds:
        bounds.append((bounds[-1][0] + stride if bounds else first, last))
    if not bounds:
        got = f"{annotation.start:g} to {annotation.end:g} s"
        raise InputError(source, got, f"at least {min_seconds:g} whole seconds", "leave the record out")
    slicer = _Slicer(annotation)
    if not as_streamed:
        windows = (slicer(start, end) for start, end in bounds)
    else:
        video = slicer(first, last)
        replies = [video.previous, *(turn.reply.removesuffix(REPLY_END) for turn in training_turns(video, as_streamed=True))]
        # the first entry is the text before the video, so `start - first` replies precede a window
        windows = (slicer(start, end, "".join(replies[: start - first + 1])) for start, end in bounds)
    return (_hide_frames(window, visible_seconds) for window in windows)


def word_count(annotation: Annotation) -> int:
    """Words that replies of a window say: those that end in it, first instant excluded. An entry of blanks
    is none, and one of several words counts as such."""
    return sum(len(word.text.split()) for word in annotation.words if annotation.start < word.end <= annotation.end)


def says_enough(annotation: Annotation, words_per_second: float) -> bool:
    """Whether a window has that many words for each of its seconds: a last one that is shorter needs fewer."""
    return word_count(annotation) >= words_per_second * (annotation.end - annotation.start) - SLACK


def to_record(annotation: Annotation) -> list:
    """The record from which `annotation.parse` gets this annotation."""
    speech: dict = {"type": "text_stream", "text_stream": [list(word) for word in annotation.words]}
    if annotation.questions:
        speech["qa_stream"] = [[None, *question] for question in annotation.questions]
    clip = {"type": "video", "video": annotation.video, "video_start": annotation.start, "video_end": annotation.end}
    clip |= {"video_hidden": annotation.hidden} if annotation.hidden else {}
    text = {"type": "text", "text": annotation.query, "previous": annotation.previous}
    return [{"role": "user", "content": [clip, text]}, {"role": "assistant", "content": [speech]}]


def check_windows(window: int, stride: int, min_seconds: float | int = 2.0, visible_seconds: int = 0) -> None:
    """Raises:
    InputError: arguments that `cut` refuses.
    """
    for name, seconds in (("window", window), ("stride", stride)):
        if not isinstance(seconds, int) or seconds < 1:
            raise InputError(name, seconds, "a whole number of seconds, 1 or more", "a turn lasts one; 24 and 12 are usual")
    if stride > window:
        raise InputError("stride", stride, f"at most {window}, the window", "words between windows would be lost")
    if not 0 <= visible_seconds <= window:
        expected = f"1 to {window} (the window) seconds, or 0: all"
        raise InputError("visible_seconds", visible_seconds, expected, "8 or 16 are usual")
    if not 1 <= min_seconds <= window:
        raise InputError("min_seconds", min_seconds, f"1 to {window} (the window) seconds", "2 is usual")


def _hide_frames(annotation: Annotation, visible_seconds: int) -> Annotation:
    if not visible_seconds or annotation.video is None:
        return annotation
    return replace(annotation, hidden=max(annotation.seconds - visible_seconds, 0))


class _Slicer:
    """Cuts an annotation. Hours of video have hundreds of windows, each with all text before it: that is joined once."""

    def __init__(self, annotation: Annotation) -> None:
        self.annotation = annotation
        self.ends = [word.end for word in annotation.words]
        texts = [f" {word.text.strip()}" for word in annotation.words]
        self.text = annotation.previous + "".join(texts)
        self.lengths = list(accumulate(map(len, texts), initial=len(annotation.previous)))  # of the text before each word

    def __call__(self, start: int, end: int, previous: str | None = None) -> Annotation:
        # right: a word that ends exactly at a bound belongs to the window before it
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, end)
        return replace(
            self.annotation,
            start=start,
            end=end,
            previous=self.text[: self.lengths[first]] if previous is None else previous,
            words=self.annotation.words[first:last],
            questions=tuple(question for question in self.annotation.questions if start < question.time <= end),
        )
