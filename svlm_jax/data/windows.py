"""A long annotated video as training windows that overlap.

Owns where windows begin and end, and what of the video's words and questions each is given. Does not know files, frames or
tokens. Host side, never jax. Units: seconds of the video; windows begin and end on whole ones, as chunks of a stream do.

A word belongs to the window that it ends in, first instant excluded, last included: the rule by which `training_turns` finds
its second. Words that end at or before a window's start are its previous text, so that none is said twice and none is lost.
The previous text is the original's: each word with a blank before it, the first one too, and nothing between. All of it:
training shortens it by tokens. In a stream each reply moves into the previous-text turn with its answer and the newline before
its words, silent ones too; `as_streamed` writes it so.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

from svlm_jax.data.annotation import END, SLACK, Annotation, training_turns
from svlm_jax.errors import InputError


def cut(
    annotation: Annotation,
    *,
    window: int = 24,
    stride: int = 12,
    shortest: float | int = 2.0,
    as_streamed: bool = False,
    shown: int = 0,
    source: str = "annotation",
) -> Iterator[list]:
    """The windows of a video as records that `annotation.parse` reads, in order of time; silent ones too.

    Broken seconds at the start and the end of the video are in no window. Where whole windows leave a remainder at the end, one
    more begins a stride after the last and ends with the video; unless the remainder is below `shortest`, which is left out.

    Args:
        window: seconds of a window.
        stride: seconds from one start to the next; equal to `window` for windows that do not overlap.
        as_streamed: the previous text as a stream that was asked the same has it: a reply a second.
        shown: only the last so many seconds of a window have frames, as in a stream with that vision window; 0: all of them.
        source: what errors call the annotation.

    Raises:
        InputError: a wrong argument; a video that is shorter than `shortest`.
    """
    check(window, stride, shortest, shown)
    if annotation.hidden:
        raise InputError(
            source, f"video_hidden {annotation.hidden}", "a video that is shown whole", "cut it where it came from"
        )
    first, last = math.ceil(annotation.start - SLACK), math.floor(annotation.end + SLACK)
    ends = [(start, start + window) for start in range(first, last - window + 1, stride)]
    if last - (ends[-1][1] if ends else first) >= shortest:
        ends.append((ends[-1][0] + stride if ends else first, last))
    if not ends:
        got = f"{annotation.start:g} to {annotation.end:g} s"
        raise InputError(source, got, f"at least {shortest:g} whole seconds", "leave the record out")
    if not as_streamed:
        return (record(_shown(_window(annotation, *pair), shown)) for pair in ends)
    whole = _window(annotation, first, last)
    replies = [whole.previous, *(turn.reply.removesuffix(END) for turn in training_turns(whole, as_streamed=True))]
    cuts = (_window(annotation, start, end, "".join(replies[: start - first + 1])) for start, end in ends)
    return (record(_shown(one, shown)) for one in cuts)


def record(annotation: Annotation) -> list:
    """The record that `annotation.parse` makes this annotation of."""
    said: dict = {"type": "text_stream", "text_stream": [list(word) for word in annotation.words]}
    if annotation.questions:
        said["qa_stream"] = [[None, *question] for question in annotation.questions]
    clip = {"type": "video", "video": annotation.video, "video_start": annotation.start, "video_end": annotation.end}
    clip |= {"video_hidden": annotation.hidden} if annotation.hidden else {}
    text = {"type": "text", "text": annotation.query, "previous": annotation.previous}
    return [{"role": "user", "content": [clip, text]}, {"role": "assistant", "content": [said]}]


def check(window: int, stride: int, shortest: float | int = 2.0, shown: int = 0) -> None:
    """Raises:
    InputError: arguments that `cut` refuses.
    """
    for name, seconds in (("window", window), ("stride", stride)):
        if not isinstance(seconds, int) or seconds < 1:
            raise InputError(name, seconds, "a whole number of seconds, 1 or more", "a turn lasts one; 24 and 12 are usual")
    if stride > window:
        raise InputError("stride", stride, f"at most {window}, the window", "words between windows would be lost")
    if not 0 <= shown <= window:
        raise InputError("shown", shown, f"1 to {window} (the window) seconds, or 0: all", "8 or 16 are usual")
    if not 1 <= shortest <= window:
        raise InputError("shortest", shortest, f"1 to {window} (the window) seconds", "2 is usual")


def _shown(annotation: Annotation, shown: int) -> Annotation:
    return replace(annotation, hidden=max(annotation.seconds - shown, 0)) if shown and annotation.video else annotation


def _window(annotation: Annotation, start: int, end: int, previous: str | None = None) -> Annotation:
    ends = [word.end for word in annotation.words]
    begun, done = bisect_right(ends, start), bisect_right(ends, end)
    if previous is None:
        previous = annotation.previous + "".join(f" {word.text.strip()}" for word in annotation.words[:begun])
    return replace(
        annotation,
        start=start,
        end=end,
        previous=previous,
        words=annotation.words[begun:done],
        questions=tuple(question for question in annotation.questions if start < question.time <= end),
    )
