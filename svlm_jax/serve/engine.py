"""The thread that watches: one `Runner` for all streams, one tick whenever streams have a chunk.

Owns which streams run and the questions that wait; reports through `publish`, from its own thread. Does not know viewers or
sockets. Units: seconds; milliseconds where a name says ms.
"""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import plain
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, smart_resize
from svlm_jax.media.processor import Processor
from svlm_jax.pretrained import Pretrained
from svlm_jax.serve.client_image import MAX_ASPECT_RATIO, Box
from svlm_jax.serve.feed import Feed
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.retained import picture
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import Caption, Dropped, Ended, Event, Refused
from svlm_jax.stream.groups import batch_sizes
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState

IDLE_WAIT = 1.0  # longest wait for a chunk, so that the heartbeat goes on without streams
SPEED_STEPS = 16  # steps over which the real-time factor is averaged
DEFAULT_LIMITS = Limits()
Publish = Callable[[str, dict[str, Any]], None]  # name of a stream, message to its viewers


class RunningStream:
    """One stream. Its fields belong to the engine's thread, but for `questions` (under the engine's lock)."""

    def __init__(self, feed: Feed, query: str, seed: int) -> None:
        self.feed, self.query, self.seed = feed, query, seed
        self.questions: deque[str] = deque()
        self.turn_starts: dict[int, float] = {}  # second at which each retained turn began
        self.num_messages = self.dropped = 0  # captions and drops so far; chunks lost

    def next_number(self) -> int:
        number, self.num_messages = self.num_messages, self.num_messages + 1
        return number


def session_for(vlm: Pretrained, config: StreamConfig, box: Box, num_streams: int, sampling: Sampling) -> tuple[Session, Clip]:
    """A compiled session for pictures that fit in the box, and black frames of that size.

    Takes as long as the compiler does for one stream: it can be watched as soon as its programs are there. Those for more
    streams at a time are left to the engine, beside its steps. Over a mesh all are compiled here.
    """
    black = np.zeros((config.chunk_frames, box.height, box.width, 3), np.uint8)
    clip = vlm.processor.video(black, fps=config.fps, raw=True)
    grid = (clip.grid[0], 2, max_frame_patches(vlm.processor.video_config, box) // 2)
    session = Session(vlm.model, vlm.tokenizer, config, grid, sampling=sampling, rows=num_streams)
    if session.mesh is None:
        session.sizes = session.sizes[:1]
    session.warm(session.start(), clip)
    return session, clip


class Engine:
    """All streams of one model. `start` it once; `open`, `ask` and `end` may be called from any thread."""

    def __init__(
        self,
        processor: Processor,
        session: Session,
        clip: Clip,
        *,
        publish: Publish,
        limits: Limits = DEFAULT_LIMITS,
        metrics: Metrics | None = None,
    ) -> None:
        """Args:
        session, clip: of `session_for`; the batch size is the number of streams at a time.
        publish: called in the engine's thread: must not block.
        """
        self.session, self.clip, self.publish, self.limits = session, clip, publish, limits
        self.metrics = metrics or Metrics()
        self.num_streams, self.chunk_seconds = session.batch, session.config.chunk_seconds
        self.runner = Runner(session)
        self.playback = Playback(processor)
        self.lock = self.playback.changed  # of `running` and of the questions in it
        self.running: dict[str, RunningStream] = {}  # as viewers know it
        self.joined: dict[str, RunningStream] = {}  # as the runner knows it
        self.step_seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        self.heartbeat = self.stepped = time.monotonic()
        self.error = ""
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.compiler = threading.Thread(target=self._compile, args=(self.runner.state,), name="compiler", daemon=True)

    def start(self) -> None:
        self.thread.start()
        self.compiler.start()

    def stop(self) -> None:
        """End all streams and the threads; waits for the step, and for the program, that is under way."""
        self.playback.stop()
        for thread in (self.thread, self.compiler):
            if thread.is_alive():
                thread.join(timeout=30)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and its loop has come round lately."""
        return self.thread.is_alive() and time.monotonic() - self.heartbeat < self.limits.hang_timeout

    @property
    def num_free(self) -> int:
        """Streams that can be started now."""
        with self.lock:
            return self.num_streams - len(self.running)

    # from any thread

    def open(self, name: str, feed: Feed, *, query: str = "", seed: int = 0) -> None:
        """Begin a stream.

        Raises:
            InputError: the batch is full, or `query` is too long or holds special tokens. The feed is then closed.
        """
        try:
            self.session.check_query(query)
            with self.lock:
                if len(self.running) >= self.num_streams or self.playback.stopped:
                    raise self.no_free_stream()
                self.running[name] = RunningStream(feed, query, seed)
                self.playback.open(name, feed)
        except InputError:
            feed.close()
            raise

    def no_free_stream(self) -> InputError:
        """The error of a stream that cannot start."""
        got = f"all {self.num_streams} streams in use"
        return InputError("start", got, "a free one", "join a running stream, or wait until one ends")

    def ask(self, name: str, question: str) -> int:
        """Put a question to a stream: it goes into its next turn that has none. Returns how many wait before it.

        Raises:
            InputError: no such stream, too many questions waiting, special tokens.
        """
        plain(question, "question")
        with self.lock:
            running = self.running.get(name)
            if running is None:
                raise InputError("stream", "one that has ended", "a running one", "join another")
            if len(running.questions) >= self.limits.max_queued_questions:
                raise InputError("question", f"{len(running.questions)} waiting", "fewer", "wait for their answers")
            running.questions.append(question.strip())
            return len(running.questions) - 1

    def end(self, name: str, reason: str) -> None:
        """End a stream; another can start at once. Nothing happens if it is not running."""
        with self.lock:
            running = self.running.pop(name, None)
        if running is not None:
            self.playback.close(name)
            self.publish(name, {"type": "ended", "reason": reason})

    # the threads

    def _compile(self, state: StreamState) -> None:
        """Compile the programs for more streams at a time; until they are ready a step is made of smaller groups."""
        session = self.session
        try:
            for size in batch_sizes(self.num_streams) if session.mesh is None else ():
                if not self.playback.stopped and size not in session.sizes:
                    session.compile(size, state, self.clip)
                    session.sizes = tuple(sorted({*session.sizes, size}))
        except Exception as error:  # what is compiled is enough to go on with
            traceback.print_exception(error)

    def _run(self) -> None:
        try:
            while not self.playback.stopped:
                self.heartbeat = time.monotonic()
                self.playback.wait(IDLE_WAIT)
                ready, events = self.playback.poll()
                for event in events:
                    self._report(event)
                self._admit()
                if ready:
                    self._tick(ready)
            reason = "the server is stopping"
        except Exception as error:  # the server goes on and says so: /health is 503
            traceback.print_exception(error)
            self.error = reason = f"the engine broke: {type(error).__name__}: {error}"[:300]
        for name in list(self.running):
            self.end(name, reason)

    def _admit(self) -> None:
        """Let the runner have the streams of `running`: those that have ended leave, new ones join."""
        with self.lock:
            running = dict(self.running)
        for name, stream in list(self.joined.items()):
            if running.get(name) is not stream:
                self.runner.leave(name)
                del self.joined[name]
        for name, stream in running.items():
            if name not in self.joined:
                self.runner.join(name, query=stream.query, seed=stream.seed)
                self.joined[name] = stream

    def _tick(self, ready: Mapping[str, Ready]) -> None:
        """Watch the chunks of the streams that nobody has ended since they were polled."""
        ready = {name: chunk for name, chunk in ready.items() if name in self.joined}
        prepared, events = self.runner.prepare({name: self._with_question(name, chunk) for name, chunk in ready.items()})
        for event in events:
            self._report(event)
        if not prepared:
            return
        start = time.monotonic()
        events = self.runner.step(prepared)
        now = self.stepped = self.heartbeat = time.monotonic()
        self.step_seconds.append(now - start)
        self.metrics.observe("svlm_step_seconds", now - start)
        for event in events:
            if isinstance(event, Caption):
                self._report_caption(event, ready[event.stream], now - ready[event.stream].arrival)

    def _with_question(self, name: str, ready: Ready) -> Chunk:
        questions = self.joined[name].questions
        with self.lock:
            question = questions.popleft() if questions else ""
        return Chunk(ready.start, ready.end, ready.clip, question)

    def _report(self, event: Event) -> None:
        """Everything but captions. A stream that a viewer has ended has been reported already."""
        stream = self.running.get(event.stream)
        if stream is None:
            return
        match event:
            case Dropped():
                stream.dropped += event.chunks
                self.metrics.count("svlm_dropped_chunks_total", event.chunks)
                message = {"number": stream.next_number(), "start": float(event.start), "end": float(event.end)}
                message |= {"chunks": event.chunks, "dropped_total": stream.dropped}
                self.publish(event.stream, {"type": "dropped", **message})
            case Refused():
                message = {"question": event.question, "error": str(event.error)}
                self.publish(event.stream, {"type": "question_refused", **message})
            case Ended():
                reason = event.reason or "the source has ended"
                if event.error is not None and not event.reason:
                    reason = stream.feed.error_line(event.error)  # which may not name the source
                self.end(event.stream, reason)

    def _report_caption(self, event: Caption, ready: Ready, latency: float) -> None:
        stream, steps = self.joined[event.stream], self.step_seconds
        self.metrics.count("svlm_chunks_total")
        self.metrics.observe("svlm_latency_seconds", latency)
        sequence = self.runner.sequence(event.stream)
        stream.turn_starts[sequence.chunk - 1] = float(event.start)
        message = {
            "type": "caption",
            "number": stream.next_number(),
            "start": float(event.start),
            "end": float(event.end),
            "text": one_line(event.text).strip(),
            "question": event.question,
            "note": ready.note,
            "latency_seconds": round(latency, 3),
            "realtime_factor": round(self.chunk_seconds * len(steps) / sum(steps), 2),
            "stage_ms": {stage: round(ms, 1) for stage, ms in event.ms.items()},
            "dropped_total": stream.dropped,
            "used_slots": event.slots,
            "capacity": event.capacity,
            "cache": picture(sequence.spans, event.evicted, stream.turn_starts, self.session.config),
        }
        self.publish(event.stream, message)


def max_frame_patches(config: PixelConfig, box: Box) -> int:
    """Most patches in a frame that any picture which fits in the box (sides within 1:4) is resized to."""
    height, width = (max(1, round(side / config.factor)) * config.factor for side in (box.height, box.width))
    full_size = math.prod(smart_resize(box.height, box.width, config))
    # A picture below min_pixels is enlarged, and each of its sides rounded up.
    side = math.sqrt(config.min_pixels)
    enlarged = math.prod(
        side * scale + config.factor for scale in (math.sqrt(MAX_ASPECT_RATIO), 1 / math.sqrt(MAX_ASPECT_RATIO))
    )
    pixels = max(min(height * width, config.max_pixels), enlarged, full_size)
    patches = math.ceil(pixels / config.patch_size**2)
    return patches + -patches % config.merge_size**2
