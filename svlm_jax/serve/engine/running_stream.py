"""One stream of the engine: its settings, the questions that wait, and the reply that is being decoded.

Knows no thread and no device: the engine says which fields its lock guards. Units: seconds; tokens.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from svlm_jax.serve.sources.feed import Feed
from svlm_jax.stream.stream_settings import StreamSettings


class Request(NamedTuple):
    """What a client asked for. question: "" for the next chunk that the stream speaks to. max_new_tokens: of its reply; None:
    the stream's."""

    request_id: str
    question: str
    max_new_tokens: int | None


@dataclass
class Reply:
    """The reply to the chunk that is being watched.

    number: of the chunk. request: that it answers. has_started: whether words of it were published. is_cancelled: whether it
    has to end.
    """

    number: int
    request: Request | None
    has_started: bool = False
    is_cancelled: bool = False

    def is_named(self, request_id: str | None, number: int | None) -> bool:
        """Whether it is the reply of a request, or to a chunk; with None for both, whichever is being decoded."""
        of_request = self.request is not None and self.request.request_id == request_id
        return of_request if request_id is not None else number in (None, self.number)


class RunningStream:
    """One stream. The engine's lock guards `requests`, `has_ended` and `reply.is_cancelled`; the rest belongs to its thread.

    turn_starts: second of the video at which each retained turn started. num_entries: numbered events published so far.
    dropped_chunks: in all. is_lost: whether its source is away.
    """

    def __init__(self, name: str, feed: Feed, settings: StreamSettings) -> None:
        self.name, self.feed, self.settings = name, feed, settings
        self.has_ended = self.is_lost = False
        self.requests: deque[Request] = deque()
        self.reply: Reply | None = None
        self.turn_starts: dict[int, float] = {}
        self.num_entries = self.dropped_chunks = 0

    def next_number(self) -> int:
        """Numbers have no gaps, so that a viewer who comes back knows what it missed."""
        number, self.num_entries = self.num_entries, self.num_entries + 1
        return number

    def next_request(self) -> Request | None:
        """The request for the next chunk, taken out of `requests`: a question comes before what waits for any words."""
        request = next((item for item in self.requests if item.question), None)
        request = request or (self.requests[0] if self.requests else None)
        if request is not None:
            self.requests.remove(request)
        return request

    def withdraw(self, request_id: str) -> Request | None:
        """Take out a request that waits; None: there is none of that name."""
        request = next((item for item in self.requests if item.request_id == request_id), None)
        if request is not None:
            self.requests.remove(request)
        return request
