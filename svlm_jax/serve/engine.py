"""The thread that watches: one `Session` with rows, one step a tick for all streams that have a chunk ready.

Owns the rows and their order of events; tells what happens through `publish`, from its own thread. Does not know viewers or
sockets. Units: seconds; milliseconds where a name says ms.
"""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import plain
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, smart_resize
from svlm_jax.media.player import Player
from svlm_jax.pretrained import Pretrained
from svlm_jax.serve.client_image import MAX_ASPECT_RATIO, Box
from svlm_jax.serve.feed import Feed
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.retained import picture
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.results import Reply
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Prepared, Session, StreamState

TOGETHER = 0.1  # of a chunk: how long a step waits for streams that are not ready yet
USUAL = Limits()
RECENT = 16  # steps over which the real-time factor is taken
Publish = Callable[[str, dict[str, Any]], None]  # name of a stream, what happened


class Running:
    """One stream in a row. Its fields belong to the engine's thread, but for `questions` (under the engine's lock)."""

    def __init__(self, name: str, row: int, feed: Feed, query: str, seed: int) -> None:
        self.name, self.row, self.feed, self.query, self.seed = name, row, feed, query, seed
        self.player: Player
        self.questions: deque[str] = deque()
        self.seconds: dict[int, float] = {}  # when retained turns began
        self.number = self.dropped = 0  # captions given, chunks lost


class Engine:
    """All streams of one model. `start` it once; `open`, `ask` and `end` may be called from any thread."""

    def __init__(
        self,
        vlm: Pretrained,
        config: StreamConfig,
        box: Box,
        *,
        num_streams: int,
        publish: Publish,
        limits: Limits = USUAL,
        metrics: Metrics | None = None,
        sampling: Sampling = COMMENTARY,
    ) -> None:
        """Compiles; takes as long as that takes.

        Args:
            box: the largest picture of a stream.
            num_streams: streams at a time, in one batch.
            publish: called in the engine's thread: must not block.
        """
        self.vlm, self.config, self.limits, self.num_streams, self.publish = vlm, config, limits, num_streams, publish
        self.metrics = metrics or Metrics()
        black = np.zeros((config.chunk_frames, box.height, box.width, 3), np.uint8)
        self.clip = vlm.processor.video(black, fps=config.fps, raw=True)
        grid = (self.clip.grid[0], 2, budget(vlm.processor.video_config, box) // 2)
        self.session = session = Session(vlm.model, vlm.tokenizer, config, grid, sampling=sampling, rows=num_streams)
        # One stream can be watched as soon as its programs are there; those of larger groups are compiled beside the steps.
        self.larger = () if session.mesh else session.sizes[1:]
        session.sizes = session.sizes[: len(session.sizes) - len(self.larger)]
        self.state = session.warm(session.start(), self.clip)
        self.changed = threading.Condition()
        self.running: dict[str, Running] = {}
        self.seated: list[Running | None] = [None] * num_streams
        self.spent: deque[float] = deque(maxlen=RECENT)
        self.beat = self.stepped = time.monotonic()
        self.stopping, self.error = False, ""
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.compiler = self.thread  # until `start`

    def start(self) -> None:
        self.thread.start()
        self.compiler = threading.Thread(target=self._compile, args=(self.state,), name="compiler", daemon=True)
        self.compiler.start()

    def stop(self) -> None:
        """End all streams and the threads; waits for the step, and for the program, that is under way."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        for thread in (self.thread, self.compiler):
            if thread.is_alive():
                thread.join(timeout=30)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and has shown itself lately."""
        return self.thread.is_alive() and time.monotonic() - self.beat < self.limits.hang_timeout

    @property
    def num_free(self) -> int:
        """Streams that can be started now."""
        with self.changed:
            return self.num_streams - len(self.running)

    # from any thread

    def open(self, name: str, feed: Feed, *, query: str = "", seed: int = 0) -> None:
        """Give a stream a row.

        Raises:
            InputError: no row is free, or `query` is too long or holds special tokens. The feed is then closed.
        """
        try:
            self.session.check_query(query)
            with self.changed:
                rows = set(range(self.num_streams)) - {one.row for one in self.running.values()}
                if not rows or self.stopping:
                    raise self.no_free_stream()
                one = Running(name, min(rows), feed, query, seed)
                one.player = Player(feed, self._prepare, on_dropped=lambda lost: self._lost(one, lost), changed=self.changed)
                self.running[name] = one
                one.player.start()
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
        with self.changed:
            one = self.running.get(name)
            if one is None:
                raise InputError("stream", "one that has ended", "a running one", "join another")
            if len(one.questions) >= self.limits.max_queued_questions:
                raise InputError("question", f"{len(one.questions)} waiting", "fewer", "wait for their answers")
            one.questions.append(question.strip())
            return len(one.questions) - 1

    def end(self, name: str, reason: str) -> None:
        """End a stream; its row is free at once. Nothing happens if it is not running."""
        with self.changed:
            one = self.running.pop(name, None)
        if one is not None:
            one.feed.stop()
            one.player.stop()
            self.publish(name, {"type": "ended", "reason": reason})

    # the threads

    def _compile(self, state: StreamState) -> None:
        """Programs for more streams at a time; until they are there a step is made of smaller groups."""
        try:
            for size in self.larger:
                if not self.stopping and size not in self.session.sizes:
                    self.session.compile(size, state, self.clip)
                    self.session.sizes = tuple(sorted({*self.session.sizes, size}))
        except Exception as error:  # what is compiled is enough to go on with
            traceback.print_exception(error)

    def _run(self) -> None:
        try:
            while not self.stopping:
                self._wait()
                taken = self._take()
                self._seat()
                if taken:
                    self._step(taken)
            reason = "the server is stopping"
        except Exception as error:  # the server goes on and says so: /health is 503
            traceback.print_exception(error)
            self.error = reason = f"the engine broke: {type(error).__name__}: {error}"[:300]
        for name in list(self.running):
            self.end(name, reason)

    def _wait(self) -> None:
        """Until a stream has a chunk, and a little longer for those that have none yet."""
        with self.changed:
            self.beat = time.monotonic()

            def some() -> bool:
                return self.stopping or any(one.player.ready or one.player.is_over for one in self.running.values())

            def all_of_them() -> bool:
                return self.stopping or all(one.player.ready or one.player.is_over for one in self.running.values())

            if self.changed.wait_for(some, timeout=1.0):
                self.changed.wait_for(all_of_them, timeout=TOGETHER * self.config.chunk_seconds)

    def _take(self) -> list[tuple[Running, Any, Clip, float]]:
        """(stream, chunk, patches, when its last frame was there) of every stream that has one; ends those that are over."""
        with self.changed:
            running = list(self.running.values())
        taken = []
        for one in running:
            try:
                item = one.player.poll()
            except Exception as error:  # whatever broke one source is no matter of the other streams
                self.end(one.name, one.feed.error_line(error))
                continue
            if item is not None:
                taken.append((one, item[0], *item[1]))
            elif one.player.is_over:
                self.end(one.name, one.feed.ending or "the source has ended")
        return taken

    def _seat(self) -> None:
        """Rows as `running` says: those who came join the state, those who went leave it."""
        with self.changed:
            wanted: list[Running | None] = [None] * self.num_streams
            for one in self.running.values():
                wanted[one.row] = one
        for row, (new, old) in enumerate(zip(wanted, self.seated, strict=True)):
            if new is not old:
                if new is None:
                    self.state = self.session.leave(self.state, row)
                else:
                    self.state = self.session.join(self.state, row, query=new.query, seed=new.seed)
        self.seated = wanted

    def _step(self, taken: list[tuple[Running, Any, Clip, float]]) -> None:
        chunks: list[Prepared | None] = [None] * self.num_streams
        for one, chunk, clip, _ in taken:
            if self.seated[one.row] is one:
                chunks[one.row] = self._asked(one, Chunk(chunk.start, chunk.end, clip))
        if all(chunk is None for chunk in chunks):
            return
        before, started = self.state.streams, time.monotonic()
        self.state, replies = self.session.step(self.state, chunks)
        now = self.stepped = self.beat = time.monotonic()
        self.spent.append(now - started)
        self.metrics.observe("svlm_step_seconds", now - started)
        for one, chunk, _, there in taken:
            reply, asked, was = replies[one.row], chunks[one.row], before[one.row]
            if isinstance(reply, Reply) and asked is not None and was is not None and self.seated[one.row] is one:
                self.metrics.count("svlm_chunks_total")
                self.metrics.observe("svlm_latency_seconds", now - there)
                self.publish(one.name, self._told(one, reply, asked.chunk.question, was, now - there, chunk.note))

    def _asked(self, one: Running, chunk: Chunk) -> Prepared | None:
        """The chunk with the question that waits, if there is one and room for it. A chunk that cannot be watched at all ends
        its stream, here and alone: a step is shared."""
        with self.changed:
            question = one.questions.popleft() if one.questions else ""
        if question:
            try:
                return self.session.prepare(self.state, one.row, chunk._replace(question=question))
            except InputError as error:
                self.publish(one.name, {"type": "question_refused", "question": question, "error": str(error)})
        try:
            return self.session.prepare(self.state, one.row, chunk)
        except InputError as error:
            self.end(one.name, str(error))
            return None

    def _told(self, one: Running, reply: Reply, question: str, before: Any, latency: float, note: str) -> dict[str, Any]:
        """What viewers are told of a chunk."""
        after = self.state.streams[one.row]
        assert after is not None
        one.seconds[before.chunk] = float(reply.start)
        number, one.number = one.number, one.number + 1
        return {
            "type": "caption",
            "number": number,
            "start": float(reply.start),
            "end": float(reply.end),
            "text": one_line(reply.text).strip(),
            "question": question,
            "note": note,
            "latency_seconds": round(latency, 3),
            "realtime_factor": round(self.config.chunk_seconds * len(self.spent) / sum(self.spent), 2),
            "stage_ms": {stage: round(ms, 1) for stage, ms in reply.ms.items()},
            "dropped_total": one.dropped,
            "used_slots": reply.after,
            "capacity": self.state.cache.capacity,
            "cache": picture(after.spans, reply.evicted, one.seconds, self.config),
        }

    # in the threads of players

    def _prepare(self, chunk: Any) -> tuple[Clip, float]:
        there = time.monotonic()
        return self.vlm.processor.video(chunk.frames, fps=self.config.fps, raw=True), there

    def _lost(self, one: Running, lost: Any) -> None:
        one.dropped += len(lost)
        self.metrics.count("svlm_dropped_chunks_total", len(lost))
        number, one.number = one.number, one.number + 1
        told = {"type": "dropped", "number": number, "start": float(lost[0].start), "end": float(lost[-1].end)}
        self.publish(one.name, told | {"chunks": len(lost), "dropped_total": one.dropped})


def budget(config: PixelConfig, box: Box) -> int:
    """Most patches in a frame that any picture which fits in the box (sides within 1:4) is resized to."""
    rows, columns = (max(1, round(side / config.factor)) * config.factor for side in (box.height, box.width))
    usual = smart_resize(box.height, box.width, config)
    least = math.sqrt(config.min_pixels)  # a picture that is enlarged: its sides are rounded up
    grown = math.prod(least * scale + config.factor for scale in (math.sqrt(MAX_ASPECT_RATIO), 1 / math.sqrt(MAX_ASPECT_RATIO)))
    most = max(min(rows * columns, config.max_pixels), grown, math.prod(usual))
    patches = math.ceil(most / config.patch_size**2)
    return patches + -patches % config.merge_size**2
