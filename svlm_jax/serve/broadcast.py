"""A stream as its viewers see it: captions so far, who watches, and which of them sends the camera's images.

Owns the history of a stream and the fields of a viewer's view of it; knows no socket and no engine. Runs in the event loop
only. Units: seconds.
"""

import asyncio
import secrets
import time
from collections import deque
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from svlm_jax.serve.feed import Feed
from svlm_jax.serve.messages import encode
from svlm_jax.serve.viewer import Viewer


class HistoryEntry(NamedTuple):
    """A caption, or a run of dropped chunks (`dropped_chunks` > 0). number: counted from the stream's start, without gaps."""

    number: int
    start: float
    end: float
    text: str
    question: str
    dropped_chunks: int

    def message(self) -> str:
        """As it is sent to a viewer who missed it."""
        if self.dropped_chunks:
            return encode("dropped", number=self.number, start=self.start, end=self.end, chunks=self.dropped_chunks)
        return encode("caption", number=self.number, start=self.start, end=self.end, text=self.text, question=self.question)


class Broadcast:
    """One stream with its viewers and its history."""

    def __init__(self, name: str, source: str, max_history: int) -> None:
        """Args:
        source: kind of source, one of `messages.SOURCES`.
        max_history: entries that are kept.
        """
        self.name, self.source, self.title = name, source, ""  # no title: its source is not open yet
        self.owner_key = secrets.token_urlsafe(16)
        self.feed: Feed | None = None
        self.history: deque[HistoryEntry] = deque(maxlen=max_history)
        self.last_caption = "null"  # the last caption with its measurements, as JSON
        self.viewers: set[Viewer] = set()
        self.unwatched_since = time.monotonic()
        self.end_reason, self.end_time = "", 0.0
        self.camera_viewer: Viewer | None = None  # the one socket whose images count
        self.next_image: bytes | None = None  # the newest image of the camera, not decoded yet
        self.decode_task: asyncio.Task[None] | None = None
        self.vtt: tuple[int, str] | None = None  # number of its last caption, and the file

    @property
    def last_number(self) -> int:
        """Number of the last entry; -1: none."""
        return self.history[-1].number if self.history else -1

    def missed_since(self, after: int, max_entries: int) -> tuple[list[str], bool]:
        """Messages of the last entries after number `after`, and whether some of them are missing from the list.

        Numbers have no gaps, so their count is a subtraction and a join costs the same after six hours."""
        missed = max(0, self.last_number - after)
        count = min(missed, len(self.history), max_entries)
        messages = [_message(entry) for entry in islice(reversed(self.history), count)]
        return messages[::-1], count < missed

    def summary(self) -> dict[str, Any]:
        """Its fields in `streams` and `joined`."""
        return {
            "stream": self.name,
            "title": self.title,
            "source": self.source,
            "seconds": self.history[-1].end if self.history else 0.0,
            "num_viewers": len(self.viewers),
            "end_reason": self.end_reason,
            "is_game": self.feed is not None and self.feed.is_game,
        }


@lru_cache(maxsize=8192)  # of all streams together: viewers who come back ask for the same entries
def _message(entry: HistoryEntry) -> str:
    return entry.message()
