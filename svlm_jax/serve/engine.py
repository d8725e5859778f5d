"""The engine: a thread that drives one `Runner`, with one tick whenever streams have a complete chunk.

Owns the threads, the feeds of running streams and their queued questions; publishes messages for viewers.
The loop itself is the runner's. Does not know viewers or sockets. Units: seconds; milliseconds if a name ends with ms.
"""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from svlm_jax.config import ResizeOn, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import plain
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, smart_resize
from svlm_jax.media.processor import Processor
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.pretrained import Pretrained
from svlm_jax.serve.cache_message import cache_message
from svlm_jax.serve.client_image import MAX_ASPECT_RATIO, Box
from svlm_jax.serve.feed import Feed
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import Caption, Dropped, Ended, Event, Refused
from svlm_jax.stream.frames import resizes_on_device
from svlm_jax.stream.groups import batch_sizes
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.warmup import OnProgress, compile_programs, warm

IDLE_WAIT = 1.0  # seconds; wakes the thread without chunks, for its heartbeat
SPEED_STEPS = 16  # steps over which the real-time factor is averaged
DEFAULT_LIMITS = Limits()
Publish = Callable[[str, dict[str, Any]], None]  # name of a stream, message to its viewers


class RunningStream:
    """One stream. Only the engine's thread uses its fields; `questions` is shared, under the engine's lock.

    turn_starts: second of the video at which each retained turn started. num_messages: captions and drops published so far.
    dropped_chunks: in all.
    """

    def __init__(self, feed: Feed, query: str, seed: int) -> None:
        self.feed, self.query, self.seed = feed, query, seed
        self.questions: deque[str] = deque()
        self.turn_starts: dict[int, float] = {}
        self.num_messages = self.dropped_chunks = 0

    def next_number(self) -> int:
        """Numbers of captions and drops have no gaps, so that a viewer who comes back knows what it missed."""
        number, self.num_messages = self.num_messages, self.num_messages + 1
        return number


def session_for(
    vlm: Pretrained,
    config: StreamConfig,
    box: Box,
    num_streams: int,
    sampling: Sampling,
    *,
    resize_on: ResizeOn = "auto",
    progress: OnProgress | None = None,
) -> tuple[Session, Clip]:
    """A compiled session for frames that fit into the box, and a black clip of that size.

    Compiles only the programs for one stream, so that the server is ready early. The engine compiles those for larger batches
    in a thread of its own. Over a mesh all are compiled here.
    """
    black = np.zeros((config.chunk_frames, box.height, box.width, 3), np.uint8)
    pixels, frame_box = vlm.processor.video_config, None
    if resizes_on_device(resize_on, vlm.processor, config):
        clip = vlm.processor.frames(black, fps=config.fps)
        # Sides are rounded when a picture is fitted into the box: a small one may be a little longer than it was.
        frame_box = FrameBox.largest(len(black), box.height, box.width, pixels, max_aspect_ratio=1.5 * MAX_ASPECT_RATIO)
    else:
        clip = vlm.processor.video(black, fps=config.fps, raw=True)
    grid = (clip.grid[0], 2, max_frame_patches(pixels, box) // 2)
    options = {"sampling": sampling, "num_streams": num_streams, "frame_box": frame_box}
    session = Session(vlm.model, vlm.tokenizer, config, grid, **options)
    if session.mesh is None:
        session.batch_sizes = session.batch_sizes[:1]
    warm(session, session.init_state(), clip, progress=progress)
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
        publish: called in the engine's thread, and in the thread that calls `end`: must not block.
        """
        self.session, self.clip, self.publish, self.limits = session, clip, publish, limits
        self.metrics = metrics or Metrics()
        self.num_streams, self.chunk_seconds = session.num_streams, session.config.chunk_seconds
        self.runner = Runner(session)
        self.playback = Playback(processor, on_device=session.frame_box is not None, upload=session.upload)
        # Guards `running` and the questions in it. It is the condition of the playback, so that adding a stream and opening its
        # source are one step for the thread that waits for chunks.
        self.lock = self.playback.changed
        self.running: dict[str, RunningStream] = {}  # what viewers started and nobody ended
        self.joined: dict[str, RunningStream] = {}  # what has a place in the runner's batch; the engine's thread only
        self.step_seconds: deque[float] = deque(maxlen=SPEED_STEPS)
        self.heartbeat = self.last_step = time.monotonic()
        self.error = ""
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.compiler = threading.Thread(target=self._compile, args=(self.runner.state,), name="compiler", daemon=True)

    def start(self) -> None:
        self.thread.start()
        self.compiler.start()

    def stop(self) -> None:
        """End all streams and both threads; waits for the current step and the current compilation."""
        self.playback.stop()
        for thread in (self.thread, self.compiler):
            if thread.is_alive():
                thread.join(timeout=30)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives and has completed a round of its loop lately."""
        return self.thread.is_alive() and time.monotonic() - self.heartbeat < self.limits.hang_timeout

    @property
    def num_free(self) -> int:
        """Streams that can be started now."""
        with self.lock:
            return self.num_streams - len(self.running)

    # from any thread

    def open(self, name: str, feed: Feed, *, query: str = "", seed: int = 0) -> None:
        """Start a stream.

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
        """Queue a question: it becomes part of the next turn without one. Returns how many wait before it.

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
        """End a stream; another one can start at once. Does nothing if it is not running."""
        with self.lock:
            running = self.running.pop(name, None)
        if running is not None:  # of two threads that end a stream, one publishes it
            self.playback.close(name)
            self.publish(name, {"type": "ended", "reason": reason})

    # the threads

    def _compile(self, state: StreamState) -> None:
        """Compile the programs for larger batches; until they are ready, a step runs smaller groups one after the other."""
        session = self.session
        try:
            for size in batch_sizes(self.num_streams) if session.mesh is None else ():
                if not self.playback.stopped and size not in session.batch_sizes:
                    compile_programs(session, (size,), state, self.clip)
                    # a new tuple in one assignment: the engine's thread reads it without a lock
                    session.batch_sizes = tuple(sorted({*session.batch_sizes, size}))
        except Exception as error:  # the programs for one stream are enough to go on
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
        except Exception as error:  # the server stays up, and /health reports 503
            traceback.print_exception(error)
            self.error = reason = f"the engine broke: {type(error).__name__}: {error}"[:300]
        for name in list(self.running):
            self.end(name, reason)

    def _admit(self) -> None:
        """Bring the runner's batch in line with `running`: streams that have ended leave, new ones join."""
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
        """One step for the chunks that are ready; a stream that was ended since they were polled is left out."""
        ready = {name: chunk for name, chunk in ready.items() if name in self.joined}
        start = time.monotonic()
        prepared, events = self.runner.prepare({name: self._with_question(name, chunk) for name, chunk in ready.items()})
        for event in events:
            self._report(event)
        if not prepared:
            return
        events = self.runner.step(prepared)
        now = self.last_step = self.heartbeat = time.monotonic()
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
        """Publish an event that is no caption. The end of a stream that a viewer ended is published already."""
        stream = self.running.get(event.stream)
        if stream is None:
            return
        match event:
            case Dropped():
                stream.dropped_chunks += event.chunks
                self.metrics.count("svlm_dropped_chunks_total", event.chunks)
                message = {"number": stream.next_number(), "start": float(event.start), "end": float(event.end)}
                message |= {"chunks": event.chunks, "dropped_total": stream.dropped_chunks}
                self.publish(event.stream, {"type": "dropped", **message})
            case Refused():
                message = {"question": event.question, "error": str(event.error)}
                self.publish(event.stream, {"type": "question_refused", **message})
            case Ended():
                reason = event.reason or "the source has ended"
                if event.error is not None and not event.reason:
                    reason = stream.feed.error_line(event.error)  # without the address of a private source
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
            "dropped_total": stream.dropped_chunks,
            "used_slots": event.used_slots,
            "capacity": event.capacity,
            "cache": cache_message(sequence.spans, event.evicted, stream.turn_starts, self.session.config),
        }
        self.publish(event.stream, message)


def max_frame_patches(config: PixelConfig, box: Box) -> int:
    """The most patches that a frame can have which fits into the box, whatever its aspect ratio (up to 1:4)."""
    height, width = (max(1, round(side / config.factor)) * config.factor for side in (box.height, box.width))
    full_size = math.prod(smart_resize(box.height, box.width, config))
    # A frame below min_pixels is enlarged, and each of its sides rounded up to a multiple of the factor.
    side = math.sqrt(config.min_pixels)
    enlarged = math.prod(
        side * scale + config.factor for scale in (math.sqrt(MAX_ASPECT_RATIO), 1 / math.sqrt(MAX_ASPECT_RATIO))
    )
    pixels = max(min(height * width, config.max_pixels), enlarged, full_size)
    patches = math.ceil(pixels / config.patch_size**2)
    return patches + -patches % config.merge_size**2
