"""What happens in streams, told to those outside who follow all of them: the events of `event_log`, as JSON.

Owns their fields. The types and fields are those of /v1/realtime where it has such an event; captions have one of their own
here, because there they come as responses, word by word. Silent chunks are no events. Knows no socket. Units: seconds of the
video for `start` and `end`, Unix seconds for `created`.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from svlm_jax.serve.engine.reports import ChunkReport, Published, TimelineEvent
from svlm_jax.serve.notifications.event_log import EventLog
from svlm_jax.stream.events import Alert, Dropped, Ended, SourceBack, SourceLost

KINDS = (
    "svlm.caption",
    "svlm.alert",
    "svlm.chunk.dropped",
    "svlm.source.lost",
    "svlm.source.back",
    "svlm.note",
    "svlm.stream.ended",
)


class Notifier:
    """Writes what the engine publishes into a log."""

    def __init__(self, log: EventLog, title_of: Callable[[str], str], *, clock: Callable[[], float] = time.time) -> None:
        """title_of: the title of a stream, for people."""
        self.log, self.title_of, self.clock = log, title_of, clock

    def publish(self, event: Published) -> None:
        """Take an event of the engine."""
        for kind, fields in notifications(event):
            head = {
                "type": kind,
                "created": round(self.clock(), 3),
                "stream": event.stream,
                "title": self.title_of(event.stream),
            }
            self.log.add(kind, event.stream, json.dumps({**head, **fields}))


def notifications(event: Published) -> list[tuple[str, dict[str, Any]]]:
    """Types and fields of what is told of an event; [] of most."""
    match event:
        case ChunkReport():
            span = {"number": event.number, "start": event.start, "end": event.end}
            notes = [("svlm.note", {"start": event.start, "end": event.end, "text": event.note})] if event.note else []
            return notes + ([("svlm.caption", {**span, **words(event)})] if event.text else [])
        case TimelineEvent():
            _, kind, start, end, fields = timeline_fields(event.event)
            total = {"dropped_total": event.dropped_total} if isinstance(event.event, Dropped) else {}
            return [(kind, {"number": event.number, "start": float(start), "end": float(end), **fields, **total})]
        case Ended():
            return [("svlm.stream.ended", {"reason": event.reason})]
    return []


def timeline_fields(event: Dropped | Alert | SourceLost | SourceBack) -> tuple[str, str, float, float, dict[str, Any]]:
    """(kind of its entry in the history, type of its event, start, end, further fields of both)."""
    match event:
        case Dropped():
            return "dropped", "svlm.chunk.dropped", event.start, event.end, {"chunks": event.chunks}
        case SourceLost():
            return "lost", "svlm.source.lost", event.second, event.second, {"reason": event.reason}
        case SourceBack():
            away = {"chunks": event.chunks, "seconds": round(event.seconds, 3), "attempts": event.attempts}
            return "back", "svlm.source.back", event.start, event.end, away
        case Alert():
            state = {"name": event.name, "state": event.state, "probability": round(event.probability, 4)}
            details = {"text": event.text, "data": event.data, "error": event.error}
            return "alert", "svlm.alert", event.start, event.end, {**state, **details}


def words(report: ChunkReport) -> dict[str, str]:
    """What was said to a chunk: "commentary", "answer" or "silent", the text, and the question that it answers."""
    kind = "answer" if report.question else "commentary" if report.text else "silent"
    return {"kind": kind, "text": report.text, "question": report.question, "answer": report.caption.answer.strip()}
