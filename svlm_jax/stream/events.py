"""What a stream reports while it runs, one type for each kind of event; `Event` is any of them.

Owns the fields. Knows no device and no model. `stream` is the name that the stream was opened with. Units: seconds of the video
for `start` and `end`; milliseconds where a name says ms; tokens for cache slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.spans import Span

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Started:
    """The programs are compiled for chunks of this size, and the stream has joined.

    grid: (t, h, w) of a chunk in patches. vision_tokens: of a chunk, as the decoder gets them. capacity: slots of the KV cache.
    """

    stream: str
    grid: tuple[int, int, int]
    vision_tokens: int
    capacity: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something unusual about the video between `start` and `end` (a damaged frame, a jump of its clock); it is watched all
    the same."""

    stream: str
    start: float | int
    end: float | int
    text: str


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Chunks that came faster than they could be watched: nobody will see the video from `start` to `end`."""

    stream: str
    start: float | int
    end: float | int
    chunks: int


@dataclass(frozen=True, kw_only=True)
class SourceLost:
    """The source of a stream gives no frames any more, and is opened again until it does.

    second: of the video, at which it breaks off. reason: for people, without passwords.
    """

    stream: str
    second: float | int
    reason: str


@dataclass(frozen=True, kw_only=True)
class SourceBack:
    """A source that was lost gives frames again: what follows begins at `end`. Nobody has seen the video from `start` to `end`.

    chunks: that are missing; 0 where it was back before the next one began. seconds: it was away, by the clock of the host.
    attempts: how often it was opened.
    """

    stream: str
    start: float | int
    end: float | int
    chunks: int
    seconds: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A question for which there is no room, or that holds special tokens. The chunk it came with is watched without it."""

    stream: str
    start: float | int
    end: float | int
    question: str
    error: InputError


@dataclass(frozen=True, kw_only=True)
class TokenDelta:
    """One generated token, as it comes, and the text that it completes ("" for most parts of a character). The texts of one
    reply, joined, are `Caption.text`. A last one may come without a token: text that was not certain before the reply ended.

    chosen_at: of `time.monotonic`, when the host had the token.
    """

    stream: str
    start: float | int
    end: float | int
    token: int | None
    text: str
    chosen_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no == that is one bool
class Caption:
    """The reply to one chunk; its text is "" where the stream chose silence.

    raw: the text with the newlines that tell an answer from commentary. question: what was asked with this chunk; answer: the
    part of the text that answers it, "" if none. tokens [n] int32: as generated. ms: duration of each stage of the step, which
    the streams of a batch share. cached_before: tokens in the KV cache when the chunk came, after eviction; used_slots: those
    at the end of the reply, of `capacity`. logits [n, V] float32 if recorded. evicted: spans of the tokens that left the stream
    for this chunk. callback_error: what `on_token` raised for this reply. finish: why there are no more tokens: the model has
    ended its turn ("stop"), the reply is as long as it may be, or it was cancelled. probability: of yes to the condition of a
    stream in alert mode, of silence in other streams; None where the session computes neither, and with questions.
    """

    stream: str
    start: float | int
    end: float | int
    text: str
    raw: str = ""
    question: str = ""
    answer: str = ""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    ms: Mapping[str, float] = field(default_factory=dict)
    cached_before: int = 0
    used_slots: int = 0
    capacity: int = 0
    logits: np.ndarray | None = None
    evicted: tuple[Span, ...] = ()
    callback_error: Exception | None = None
    finish: Finish = "stop"
    probability: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The condition of a stream in alert mode has begun (state: True) or ceased (False) to hold, with the chunk from `start`
    to `end`. After a change to True of a rule with a schema a second one has what the model says of it.

    name: of the rule. probability: of yes, 0 to 1. text: the answer. data: JSON that fits the rule's schema, in the second
    event; error: why what the model wrote is none; its text is then `text`.
    """

    stream: str
    start: float | int
    end: float | int
    name: str
    state: bool
    probability: float
    text: str = ""
    data: Any = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The last event of a stream.

    reason: for people; "" at the end of a file, or where `error` says it all. error: what broke the source, or why a chunk
    cannot be watched.
    """

    stream: str
    reason: str = ""
    error: Exception | None = None


Event = Started | Note | Dropped | SourceLost | SourceBack | Refused | TokenDelta | Caption | Alert | Ended
