"""A stream as those who watch it see it: its settings, who watches, what was said so far, and events about it as they are sent.

Owns the history of a stream, and which event goes to whom; knows no socket and no engine. Runs in the event loop only. Units:
seconds.
"""

import json
import secrets
import time
from collections import deque
from itertools import islice
from typing import Any, NamedTuple, Protocol

from svlm_jax.serve.engine.reports import ChunkReport, Published, ReplyDelta, ReplyStarted, TimelineEvent, Unanswered
from svlm_jax.serve.notifications.notifier import timeline_fields, words
from svlm_jax.serve.realtime.responses import Responses
from svlm_jax.serve.realtime.server_events import encode
from svlm_jax.serve.settings_json import settings_json
from svlm_jax.serve.sources.feed import Feed
from svlm_jax.serve.sources.push_feed import PushFeed
from svlm_jax.stream.events import Ended
from svlm_jax.stream.stream_settings import StreamSettings


class Watcher(Protocol):
    """Who watches a stream: a socket, or what keeps events for clients without one. The hub sets `broadcast` and `is_owner`."""

    broadcast: "Broadcast | None"
    is_owner: bool
    subscriptions: frozenset[str]  # of `client_events.SUBSCRIPTIONS`
    reads_words: bool  # as they are chosen, before a reply is complete

    def send(self, message: str) -> None:
        """Take an event, as JSON; must not block."""
        ...

    def send_frame(self, frame: bytes) -> None:
        """Take a frame of the video; it replaces one that still waits."""
        ...


class HistoryEntry(NamedTuple):
    """A numbered entry of a stream's history; numbers count from the stream's start, without gaps. message: JSON for those who
    missed it. text: "" for what is no caption."""

    number: int
    start: float
    end: float
    text: str
    question: str
    message: str

    @classmethod
    def of(cls, kind: str, number: int, start: float, end: float, **fields: Any) -> "HistoryEntry":
        """kind: "commentary", "answer", "silent", "dropped", "lost", "back" or "alert"; fields: of the message, those without a
        value left out."""
        present = {name: value for name, value in fields.items() if value not in ("", None)}
        message = json.dumps({"kind": kind, "number": number, "start": start, "end": end, **present})
        is_caption = kind in ("commentary", "answer", "silent")
        text, question = (fields["text"], fields["question"]) if is_caption else ("", "")
        return cls(number, start, end, text, question, message)


class Broadcast:
    """One stream with its viewers and its history."""

    def __init__(self, name: str, source: str, settings: StreamSettings, max_history: int) -> None:
        """Args:
        source: kind of source, one of `client_events.SOURCES`.
        settings: complete; of the stream in force.
        max_history: entries that are kept.
        """
        self.name, self.source, self.title = name, source, ""  # no title: its source is not open yet
        self.settings = settings
        self.owner_key = secrets.token_urlsafe(16)
        self.feed: Feed | None = None
        self.responses = Responses(name)
        self.history: deque[HistoryEntry] = deque(maxlen=max_history)
        self.last_chunk = "null"  # the last chunk with its measurements, as JSON
        self.viewers: set[Watcher] = set()
        self.first_event = 0  # position in the hub's log of events at which those of the stream begin
        self.is_always_on = False  # it plays on while nobody watches
        self.unwatched_since = time.monotonic()
        self.end_reason, self.end_time = "", 0.0
        self.sender: Watcher | None = None  # the one owner whose images count
        self.vtt: tuple[int, str] | None = None  # number of its last caption, and the file

    @property
    def last_number(self) -> int:
        """Number of the last entry; -1: none."""
        return self.history[-1].number if self.history else -1

    @property
    def is_running(self) -> bool:
        return bool(self.title) and not self.end_reason

    def wants_frames(self) -> bool:
        """Whether anybody would see a frame. From any thread."""
        return any(self._sees_frames(viewer) for viewer in list(self.viewers))

    def _sees_frames(self, viewer: Watcher) -> bool:
        # an owner who sends the images has them already
        return "video" in viewer.subscriptions and not (viewer.is_owner and isinstance(self.feed, PushFeed))

    def send(self, event: str, *, subscription: str = "") -> None:
        """To all who watch, or to those of them who asked for such events."""
        for viewer in list(self.viewers):
            if not subscription or subscription in viewer.subscriptions:
                viewer.send(event)

    def send_frame(self, frame: bytes) -> None:
        for viewer in list(self.viewers):
            if self._sees_frames(viewer):
                viewer.send_frame(frame)

    def on_report(self, report: Published) -> None:
        """Send what the engine has published about the stream, and keep what belongs to the history."""
        match report:
            case ReplyStarted() | ReplyDelta() | Unanswered():
                self._send_all(self.responses.on_report(report))
            case ChunkReport():
                self._on_chunk(report)
            case TimelineEvent():
                self._on_timeline(report)
            case Ended():
                self.end_reason, self.end_time = report.reason or "the source has ended", time.monotonic()
                self._send_all(self.responses.on_ended())
                self.send(encode("svlm.stream.ended", stream=self.name, reason=self.end_reason))

    def _send_all(self, events: list[str]) -> None:
        for event in events:
            self.send(event)

    def _send_note(self, start: float, end: float, text: str) -> None:
        self.send(encode("svlm.note", stream=self.name, start=start, end=end, text=text))

    def _on_chunk(self, report: ChunkReport) -> None:
        if report.note:
            self._send_note(report.start, report.end, report.note)
        self._send_all(self.responses.on_report(report))
        fields = {"number": report.number, "start": report.start, "end": report.end, **words(report)}
        self.history.append(HistoryEntry.of(**fields))
        measured = {
            "latency_seconds": round(report.latency_seconds, 3),
            "realtime_factor": round(report.realtime_factor, 2),
            "stage_ms": {stage: round(ms, 1) for stage, ms in report.caption.ms.items()},
            "dropped_total": report.dropped_total,
            "used_slots": report.caption.used_slots,
            "capacity": report.caption.capacity,
            "cache": report.cache,
        }
        self.last_chunk = encode("svlm.chunk.done", stream=self.name, **fields, note=report.note, **measured)
        self.send(self.last_chunk, subscription="chunks")

    def _on_timeline(self, report: TimelineEvent) -> None:
        kind, event, start, end, fields = timeline_fields(report.event)
        span = {"number": report.number, "start": float(start), "end": float(end)}
        self.history.append(HistoryEntry.of(kind, report.number, float(start), float(end), **fields))
        total = {"dropped_total": report.dropped_total} if kind == "dropped" else {}
        self.send(encode(event, stream=self.name, **span, **fields, **total))

    def updated_event(self) -> str:
        """`svlm.stream.updated`: its settings have changed."""
        return encode("svlm.stream.updated", stream=self.name, settings=settings_json(self.settings))

    def missed_since(self, after: int, max_entries: int) -> tuple[list[str], bool]:
        """JSON of the last entries after number `after`, and whether some of them are missing from the list.

        Numbers have no gaps, so their count is a subtraction and a join costs the same after six hours."""
        missed = max(0, self.last_number - after)
        count = min(missed, len(self.history), max_entries)
        entries = [entry.message for entry in islice(reversed(self.history), count)]
        return entries[::-1], count < missed

    def summary(self) -> dict[str, Any]:
        """Its fields in `svlm.streams` and `svlm.stream.joined`."""
        return {
            "stream": self.name,
            "title": self.title,
            "source": self.source,
            "seconds": self.history[-1].end if self.history else 0.0,
            "num_viewers": len(self.viewers),
            "end_reason": self.end_reason,
            "is_game": self.feed is not None and self.feed.is_game,
        }

    def joined_event(self, is_owner: bool, after: int, max_missed: int) -> str:
        """`svlm.stream.joined`, for who watches from now on and has seen the history up to number `after`."""
        missed, is_truncated = self.missed_since(after, max_missed)
        own = {"is_owner": is_owner, "is_truncated": is_truncated, "settings": settings_json(self.settings)}
        joined = encode("svlm.stream.joined", **self.summary(), **own)
        # the entries are JSON already: joined as text, a join costs no encoding
        return f'{joined[:-1]}, "last_chunk": {self.last_chunk}, "missed": [{", ".join(missed)}]}}'
