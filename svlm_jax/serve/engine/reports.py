"""What the engine publishes about a stream, one type for each kind of event; `Published` is any of them.

A reply is told as `ReplyStarted`, its `ReplyDelta`s and a `ChunkReport`, all with the number of its chunk. A chunk to which the
stream says nothing is a `ChunkReport` alone. `Ended` is the last event of a stream; a reply that has no `ChunkReport` by then
was cut off. What makes up the history of a stream is numbered without gaps, so that whoever comes back knows what it missed.

Owns the fields. Knows no socket and no engine. Units: seconds of the video for `start` and `end`, of `time.monotonic` for names
that end with `_at`; milliseconds where a name says ms; tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from svlm_jax.errors import InputError
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import Alert, Caption, Dropped, Ended, SourceBack, SourceLost


@dataclass(frozen=True, kw_only=True)
class ReplyStarted:
    """The first words of a reply are certain, and follow. question: that it answers; "": commentary. request_id: of `ask`, for
    which the reply was made; "": nobody asked."""

    stream: str
    number: int
    start: float
    end: float
    question: str = ""
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ReplyDelta:
    """More words of a reply. Joined, those of a reply are `ChunkReport.text`. chosen_at: when the host had the token."""

    stream: str
    number: int
    text: str
    chosen_at: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkReport:
    """A chunk has been watched: its caption, silent or not, and measurements.

    request_id: of `ask`, whose reply this is; "" if there is none, or it waits for a chunk that the stream speaks to. note:
    what was unusual about the video. finish: why the reply ended; "cancelled" by `Engine.cancel`. latency_seconds: from the
    chunk's last frame to the end of the reply. realtime_factor: chunk seconds over step seconds, of the last steps.
    dropped_total: chunks of the stream that were dropped so far. cache: tokens in the KV cache (`cache_json`).
    """

    stream: str
    number: int
    caption: Caption
    request_id: str = ""
    note: str = ""
    finish: Literal["stop", "length", "cancelled"] = "stop"
    latency_seconds: float
    realtime_factor: float
    dropped_total: int
    cache: dict[str, Any]

    @cached_property
    def text(self) -> str:
        """The words in one line; "" for silence."""
        return one_line(self.caption.text).lstrip()

    @property
    def question(self) -> str:
        """That was asked with this chunk; ""."""
        return self.caption.question

    @property
    def start(self) -> float:
        return float(self.caption.start)

    @property
    def end(self) -> float:
        return float(self.caption.end)

    @property
    def output_tokens(self) -> int:
        return len(self.caption.tokens)

    @property
    def input_tokens(self) -> int:
        """Tokens that the reply could see: those retained and those of the chunk."""
        return self.caption.used_slots - self.output_tokens + 1  # the newest token of a reply is not computed


@dataclass(frozen=True, kw_only=True)
class TimelineEvent:
    """An event of `stream.events` that belongs to the history: chunks that were dropped, an alert, a source
    that is lost or back. dropped_total: as of
    `ChunkReport`."""

    stream: str
    number: int
    event: Dropped | SourceLost | SourceBack | Alert
    dropped_total: int = 0


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A request of `ask` that gets no reply: it was cancelled while it waited, there was no room for the question (`error`), or
    the stream has ended."""

    stream: str
    request_id: str
    question: str
    reason: Literal["cancelled", "refused", "ended"]
    error: InputError | None = None


Published = ReplyStarted | ReplyDelta | ChunkReport | TimelineEvent | Unanswered | Ended
