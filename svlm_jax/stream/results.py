"""What `Session.step` gives back for each stream: a reply, or why its chunk was refused.

One stream's mistake is its own: a chunk that is refused and a callback that raises leave the other streams of the batch, and
the stream itself, able to go on. Knows no device.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.spans import Span

OnToken = Callable[[int, int], None]  # (stream_id, token id)


class Reply(NamedTuple):
    """The reply of a stream to one chunk; the stream has moved past the chunk.

    start, end: seconds of the chunk. text: the words; raw: the same with their blanks and newlines. tokens [n] int32 as
    generated. ms: milliseconds of the step by stage (shared by the streams of a batch). before, after: tokens in the KV cache
    when the chunk began (after eviction) and when the reply ended. logits [n, V] float32 if they were recorded. evicted: spans
    of the tokens that left the stream for this chunk. callback_error: what `on_token` raised for this stream.
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
    """Calls `on_token` for the tokens of a step. After an Exception for one stream that stream is called no more; what is no
    Exception (an interrupt) is raised."""

    def __init__(self, on_token: OnToken) -> None:
        self.on_token = on_token
        self.errors: dict[int, Exception] = {}  # by stream_id

    def __call__(self, stream_id: int, token: int) -> None:
        if stream_id in self.errors:
            return
        try:
            self.on_token(stream_id, token)
        except Exception as error:
            self.errors[stream_id] = error
