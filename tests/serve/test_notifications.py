"""What programs outside are told of streams: every alert, caption and change of a source once, as those on sockets are."""

import json

import pytest

from svlm_jax.serve.engine.reports import ChunkReport, ReplyDelta, TimelineEvent
from svlm_jax.serve.notifications.event_log import EventLog
from svlm_jax.serve.notifications.notifier import KINDS, Notifier
from svlm_jax.stream.events import Alert, Caption, Dropped, Ended, SourceBack, SourceLost

SPAN = {"start": 3.0, "end": 4.0}


def report(text: str, question: str = "", answer: str = "", note: str = "") -> ChunkReport:
    caption = Caption(stream="abcdefgh", **SPAN, text=text, question=question, answer=answer)
    measured = {"latency_seconds": 0.1, "realtime_factor": 2.0, "dropped_total": 0, "cache": {}}
    return ChunkReport(stream="abcdefgh", number=7, caption=caption, note=note, **measured)


def timeline(event: Dropped | Alert | SourceLost | SourceBack) -> TimelineEvent:
    return TimelineEvent(stream="abcdefgh", number=8, event=event, dropped_total=5)


ALERT = Alert(stream="abcdefgh", **SPAN, name="fire", state=True, probability=0.93333, text="Yes", data={"where": "left"})
BACK = SourceBack(stream="abcdefgh", **SPAN, chunks=2, seconds=2.2, attempts=3)
SAID = {"number": 7, **SPAN, "kind": "commentary", "text": "Goal!", "question": "", "answer": ""}
ANSWER = {**SAID, "kind": "answer", "text": "Red. Goal!", "question": "Who?", "answer": "Red."}


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (report("Goal!"), [("svlm.caption", SAID)]),
        (report("Red. Goal!", "Who?", "Red."), [("svlm.caption", ANSWER)]),
        (report(""), []),
        (report("", note="the clock jumped"), [("svlm.note", {**SPAN, "text": "the clock jumped"})]),
        (ReplyDelta(stream="abcdefgh", number=7, text="Go", chosen_at=0.0), []),
        (
            timeline(ALERT),
            [("svlm.alert", {"name": "fire", "state": True, "probability": 0.9333, "data": {"where": "left"}, "text": "Yes"})],
        ),
        (timeline(Dropped(stream="abcdefgh", **SPAN, chunks=5)), [("svlm.chunk.dropped", {"chunks": 5, "dropped_total": 5})]),
        (
            timeline(SourceLost(stream="abcdefgh", second=3.0, reason="no answer")),
            [("svlm.source.lost", {"reason": "no answer"})],
        ),
        (timeline(BACK), [("svlm.source.back", {**SPAN, "chunks": 2, "seconds": 2.2, "attempts": 3})]),
        (Ended(stream="abcdefgh", reason="over"), [("svlm.stream.ended", {"reason": "over"})]),
    ],
)
def test_programs_outside_are_told(event, told):
    log = EventLog()
    Notifier(log, lambda name: f"title of {name}", clock=lambda: 1.5).publish(event)
    events, _ = log.read(0)
    assert [event.kind for event in events] == [kind for kind, _ in told] and all(event.kind in KINDS for event in events)
    for event, (kind, fields) in zip(events, told, strict=True):
        head = {"type": kind, "created": 1.5, "stream": "abcdefgh", "title": "title of abcdefgh"}
        assert {**head, **fields}.items() <= json.loads(event.data).items() and "\n" not in event.data
