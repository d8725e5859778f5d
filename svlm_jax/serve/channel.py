"""A stream as viewers see it: its captions so far, who watches, whose camera it is.

Owns what is kept of a stream and what is told of it at once; knows no socket and no engine. Units: seconds.
"""

import asyncio
import json
import secrets
import time
from collections import deque
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from svlm_jax.serve.feed import Feed
from svlm_jax.serve.viewer import Viewer


class Said(NamedTuple):
    """A caption, or chunks that were dropped, as it is kept."""

    number: int
    start: float
    end: float
    text: str
    question: str
    dropped: int

    def line(self) -> dict[str, Any]:
        if self.dropped:
            told = {"type": "dropped", "number": self.number, "start": self.start, "end": self.end}
            return told | {"chunks": self.dropped}
        told = {"type": "caption", "number": self.number, "start": self.start, "end": self.end}
        return told | {"text": self.text, "question": self.question}


class Channel:
    """A stream as viewers see it."""

    def __init__(self, name: str, source: str, kept: int) -> None:
        self.name, self.source, self.title = name, source, ""
        self.key, self.game = secrets.token_urlsafe(16), source == "match"
        self.feed: Feed | None = None
        self.history: deque[Said] = deque(maxlen=kept)
        self.last = "null"  # the last caption with its numbers, as JSON
        self.viewers: set[Viewer] = set()
        self.began = self.alone = time.monotonic()
        self.over, self.ended = "", 0.0
        self.sender: Viewer | None = None  # whose camera it is
        self.waiting: bytes | None = None  # the newest picture of it that is not decoded yet
        self.decoding: asyncio.Task[None] | None = None
        self.vtt: tuple[int, str] | None = None  # the file as it was last made, and its last caption

    @property
    def newest(self) -> int:
        """Number of the last caption; -1: none."""
        return self.history[-1].number if self.history else -1

    def since(self, after: int, most: int) -> tuple[list[str], bool]:
        """The captions that followed number `after` as JSON, at most the last so many, and whether some are not among them.
        Numbers have no gaps: nothing is searched."""
        missed = max(0, self.newest - after)
        count = min(missed, len(self.history), most)
        lines = [_line(one) for one in islice(reversed(self.history), count)]
        return lines[::-1], count < missed

    def summary(self) -> dict[str, Any]:
        seconds = self.history[-1].end if self.history else 0.0
        told = {"stream": self.name, "title": self.title, "source": self.source, "seconds": seconds}
        return told | {"viewers": len(self.viewers), "over": self.over, "game": self.game}


@lru_cache(maxsize=8192)
def _line(said: Said) -> str:
    return json.dumps(said.line())
