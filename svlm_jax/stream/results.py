"""What `Session.step` gives back for each stream: a reply, or why its chunk was refused.

One stream's mistake is its own: a chunk that is refused and a callback that raises leave the other streams of the batch, and
the stream itself, able to go on. Knows no device.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from svlm_jax.decode.detokenize import split_reply
from svlm_jax.errors import InputError
from svlm_jax.spans import Span
from svlm_jax.stream.events import Caption, Finish

OnToken = Callable[[int, int], object]  # (stream_id, token id)
Cancelled = Callable[[int], bool]  # stream_id -> whether its reply has to end


class Reply(NamedTuple):
    """The reply of a stream to one chunk; the stream has moved past the chunk.

    start, end: seconds of the chunk. text: the words; raw: the same with their blanks and newlines. tokens [n] int32 as
    generated. ms: milliseconds of the step by stage (shared by the streams of a batch). before, after: tokens in the KV cache
    when the chunk began (after eviction) and when the reply ended. logits [n, V] float32 if they were recorded. evicted: spans
    of the tokens that left the stream for this chunk. callback_error: what `on_token` raised for this stream. finish: why there
    are no more tokens: the model has ended its turn ("stop"), the reply is as long as it may be, or somebody cancelled it.
    probability: of yes where the chunk has answers to choose from, else of silence; None where the session computes neither.
    """

    start: float | int
    end: float | int
    text: str
    tokens: np.ndarray
    ms: Mapping[str, float]
    before: int
    after: int
    logits: np.ndarray | None = None
    raw: str = ""
    evicted: tuple[Span, ...] = ()
    callback_error: Exception | None = None
    finish: Finish = "stop"
    probability: float | None = None


def caption_of(stream: str, question: str, reply: Reply, capacity: int) -> Caption:
    """The reply of a stream, and what was asked with its chunk, as an event. capacity: slots of the KV cache."""
    return Caption(
        stream=stream,
        start=reply.start,
        end=reply.end,
        text=reply.text,
        raw=reply.raw,
        question=question,
        answer=split_reply(reply.raw)[0] if question else "",
        tokens=reply.tokens,
        ms=reply.ms,
        cached_before=reply.before,
        used_slots=reply.after,
        capacity=capacity,
        logits=reply.logits,
        evicted=reply.evicted,
        callback_error=reply.callback_error,
        finish=reply.finish,
        probability=reply.probability,
    )


class Refusal(NamedTuple):
    """A chunk or question that a stream cannot take. The stream is as it was: it may be given another chunk."""

    error: InputError


StepResult = Reply | Refusal | None  # None: the stream had no chunk


def require_reply(result: StepResult) -> Reply:
    """The reply of a stream that had a chunk, for callers that stop at the first error.

    Raises:
        InputError: the chunk was refused.
        Exception: what `on_token` raised.
    """
    if isinstance(result, Refusal):
        raise result.error
    if result is None:
        raise ValueError("step: the stream had no chunk")
    if result.callback_error is not None:
        raise result.callback_error
    return result


class TokenCallbacks:
    """What is called for each token of a step: `on_token`, then `cancelled`. After an Exception of `on_token` for one stream it
    is called no more for that stream; what is no Exception (an interrupt) is raised.

    recoverable: whether the state before the step has to outlive an interrupt.
    """

    def __init__(self, on_token: OnToken | None, cancelled: Cancelled | None, *, recoverable: bool) -> None:
        self.on_token, self.cancelled, self.recoverable = on_token, cancelled, recoverable
        self.errors: dict[int, Exception] = {}  # by stream_id

    def __call__(self, stream_id: int, token: int) -> bool:
        """Whether the reply of that stream has to end with this token."""
        if self.on_token is not None and stream_id not in self.errors:
            try:
                self.on_token(stream_id, token)
            except Exception as error:
                self.errors[stream_id] = error
        return self.cancelled is not None and self.cancelled(stream_id)
