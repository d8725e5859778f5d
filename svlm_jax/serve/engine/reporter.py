"""From events of the runner to what the engine publishes: numbers, starts of replies, measurements.

Owns which words of a reply are published, and the order of what is published of a stream: under the engine's lock, and nothing
after `Ended`. Units: seconds of `time.monotonic` for names that end with `_at` and for `now`.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Literal

from svlm_jax.errors import InputError
from svlm_jax.serve.engine.cache_json import cache_json
from svlm_jax.serve.engine.reports import ChunkReport, Published, ReplyDelta, ReplyStarted, TimelineEvent, Unanswered
from svlm_jax.serve.engine.running_stream import Request, RunningStream
from svlm_jax.serve.metrics import Metrics
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import Alert, Caption, Dropped, Ended, Event, Refused, SourceBack, SourceLost, TokenDelta
from svlm_jax.stream.playback import Ready
from svlm_jax.stream.runner import Runner

SPEED_STEPS = 16  # steps over which the real-time factor is averaged
Publish = Callable[[Published], None]


class Reporter:
    """What the engine's thread publishes. `unanswered` and `ended` are called under the lock, from any thread."""

    def __init__(self, runner: Runner, publish: Publish, metrics: Metrics, lock: threading.Condition) -> None:
        self.runner, self._publish, self.metrics, self.lock = runner, publish, metrics, lock
        self.step_seconds: deque[float] = deque(maxlen=SPEED_STEPS)

    def publish(self, stream: RunningStream, event: Published) -> None:
        """Unless the stream has ended: another thread may end it at any moment."""
        with self.lock:
            if not stream.has_ended:
                self._publish(event)

    def step(self, seconds: float) -> None:
        """A step of the batch has taken that long."""
        self.step_seconds.append(seconds)
        self.metrics.observe("svlm_step_seconds", seconds)

    def token(self, stream: RunningStream, delta: TokenDelta) -> None:
        """Words of the reply that is being decoded. A reply starts with its first visible character: one that turns out silent
        is never told as one."""
        reply, text = stream.reply, one_line(delta.text)
        assert reply is not None
        if not reply.has_started:
            text = text.lstrip()
        if not text:
            return
        if not reply.has_started:
            reply.has_started = True
            request = reply.request
            started = ReplyStarted(
                stream=stream.name,
                number=reply.number,
                start=float(delta.start),
                end=float(delta.end),
                question=request.question if request else "",
                request_id=request.request_id if request else "",
            )
            self.publish(stream, started)
        words = ReplyDelta(stream=stream.name, number=reply.number, text=text, chosen_at=delta.chosen_at)
        self.publish(stream, words)

    def event(self, stream: RunningStream, event: Event) -> None:
        """Publish an event that comes with no chunk of its own."""
        match event:
            case Dropped():
                stream.dropped_chunks += event.chunks
                self.metrics.count("svlm_dropped_chunks_total", event.chunks)
                self.metrics.count("svlm_source_dropped_chunks_total", event.chunks, stream.feed.metrics_label)
                self._timeline(stream, event)
            case SourceLost() | SourceBack():
                stream.is_lost = isinstance(event, SourceLost)
                self.metrics.set("svlm_source_up", float(not stream.is_lost), stream.feed.metrics_label)
                if isinstance(event, SourceLost):
                    self.metrics.count("svlm_source_lost_total", label=stream.feed.metrics_label)
                else:
                    self.metrics.count("svlm_source_missed_chunks_total", event.chunks, stream.feed.metrics_label)
                self._timeline(stream, event)
            case Alert():
                self._timeline(stream, event)
            case Refused() if stream.reply is not None and stream.reply.request is not None:
                request, stream.reply.request = stream.reply.request, None
                self.publish(stream, _unanswered(stream, request, "refused", event.error))

    def _timeline(self, stream: RunningStream, event: Dropped | SourceLost | SourceBack | Alert) -> None:
        entry = TimelineEvent(stream=stream.name, number=stream.next_number(), event=event, dropped_total=stream.dropped_chunks)
        self.publish(stream, entry)

    def caption(self, stream: RunningStream, caption: Caption, ready: Ready, now: float) -> None:
        """The chunk has been watched. now: when its step was over."""
        reply, steps, latency = stream.reply, self.step_seconds, now - ready.arrival
        assert reply is not None
        if caption.callback_error is not None:
            traceback.print_exception(caption.callback_error)
        if not reply.has_started:  # nobody wanted its words before
            span = {"start": caption.start, "end": caption.end}
            self.token(stream, TokenDelta(stream=stream.name, **span, token=None, text=caption.text, chosen_at=now))
        sequence = self.runner.sequence(stream.name)
        stream.turn_starts[sequence.chunk - 1] = float(caption.start)
        self._measure(stream.feed.metrics_label, latency)
        report = ChunkReport(
            stream=stream.name,
            number=reply.number,
            caption=caption,
            request_id=self._close(stream),
            note=ready.note,
            finish=caption.finish,
            latency_seconds=latency,
            realtime_factor=self.runner.session.config.chunk_seconds * len(steps) / sum(steps),
            dropped_total=stream.dropped_chunks,
            cache=cache_json(sequence.spans, caption.evicted, stream.turn_starts, sequence.config),
        )
        self.publish(stream, report)

    def _measure(self, source: str, latency: float) -> None:
        self.metrics.count("svlm_chunks_total")
        self.metrics.observe("svlm_latency_seconds", latency)
        self.metrics.count("svlm_source_chunks_total", label=source)
        self.metrics.observe("svlm_source_latency_seconds", latency, source)
        self.metrics.set("svlm_source_last_frame_timestamp_seconds", time.time() - latency, source)

    def _close(self, stream: RunningStream) -> str:
        """End the reply of a stream; its request_id. A request for any words goes on waiting if there were none."""
        with self.lock:
            reply, stream.reply = stream.reply, None
            if reply is None or reply.request is None:
                return ""
            if reply.request.question or reply.has_started or reply.is_cancelled:
                return reply.request.request_id
            stream.requests.appendleft(reply.request)
            return ""

    def unanswered(self, stream: RunningStream, request: Request, reason: Literal["cancelled", "ended"]) -> None:
        """A request gets no reply."""
        self._publish(_unanswered(stream, request, reason))

    def ended(self, stream: RunningStream, reason: str) -> None:
        """The last event of a stream, after those of its requests that nobody answers any more."""
        open_request = stream.reply.request if stream.reply is not None else None
        for request in [*([open_request] if open_request else []), *stream.requests]:
            self.unanswered(stream, request, "ended")
        stream.has_ended = True
        self._publish(Ended(stream=stream.name, reason=reason))


def _unanswered(
    stream: RunningStream,
    request: Request,
    reason: Literal["cancelled", "refused", "ended"],
    error: InputError | None = None,
) -> Unanswered:
    return Unanswered(stream=stream.name, request_id=request.request_id, question=request.question, reason=reason, error=error)
