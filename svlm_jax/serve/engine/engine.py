"""The engine: a thread that drives one `Runner`, with one tick whenever streams have a complete chunk, and slices of one-shot
work between the ticks.

A slice runs only while no chunk is ready, so a stream waits for one slice at most; and once after each tick, so that work goes
on however many streams there are. Owns the threads, the feeds of running streams and what clients ask of them. The loop itself
is the runner's. Publishes typed events (`reports`); knows no viewers and no sockets. Units: seconds.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from svlm_jax.errors import InputError
from svlm_jax.families.chat import plain
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import Processor
from svlm_jax.serve.engine.one_shot import OneShotQueue, OneShotWork
from svlm_jax.serve.engine.reporter import Publish, Reporter
from svlm_jax.serve.engine.running_stream import Reply, Request, RunningStream
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.sources.feed import Feed
from svlm_jax.stream.events import Caption, Ended, Event, TokenDelta
from svlm_jax.stream.groups import batch_sizes
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import compile_programs

IDLE_WAIT = 1.0  # seconds; wakes the thread without chunks, for its heartbeat
DEFAULT_LIMITS = Limits()


class Engine:
    """All streams of one model. `start` it once; `open`, `change`, `ask`, `cancel`, `end` and `submit` may be called from any
    thread, and do not wait for the device."""

    def __init__(
        self,
        processor: Processor,
        session: Session,
        clip: Clip,
        *,
        publish: Publish,
        limits: Limits = DEFAULT_LIMITS,
        metrics: Metrics | None = None,
        runner: Runner | None = None,
        wants_tokens: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Args:
        session, clip: of `session_for`; the batch size is the number of streams at a time.
        publish: called with each event, those of one stream in order, in the engine's thread or in the one that calls `cancel`
            or `end`, under the engine's lock: must not block. Nothing follows the `Ended` of a stream.
        runner: of the session; a new one by default.
        wants_tokens: whether anybody reads the words of a stream as they come. A step of streams that nobody reads decodes
            each reply in one call, with no round trip a token; it is published alike, but at its end.
        """
        self.session, self.clip, self.limits = session, clip, limits
        self.metrics = metrics or Metrics()
        self.num_streams, self.chunk_seconds = session.num_streams, session.config.chunk_seconds
        self.runner = runner or Runner(session)
        self.playback = Playback(processor, on_device=session.frame_box is not None, upload=session.upload)
        # Guards `running`, the requests in it and the order of what is published. It is the condition of the playback, so that
        # adding a stream and opening its source are one step for the thread that waits for chunks.
        self.lock = self.playback.changed
        self.running: dict[str, RunningStream] = {}  # what clients started and nobody ended
        self.joined: dict[str, RunningStream] = {}  # what has a place in the runner's batch; the engine's thread only
        self.one_shot = OneShotQueue(self.lock)
        self.changes: deque[tuple[RunningStream, StreamSettings, Future[StreamSettings]]] = deque()
        self.reporter = Reporter(self.runner, publish, self.metrics, self.lock)
        self.wants_tokens = wants_tokens
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

    def open(self, name: str, feed: Feed, settings: StreamSettings) -> None:
        """Start a stream.

        Raises:
            InputError: the batch is full, or the session has no room or no program for the settings. The feed is then closed.
        """
        try:
            self.session.check(settings)
            with self.lock:
                if len(self.running) >= self.num_streams or self.playback.stopped:
                    raise self.no_free_stream()
                self.running[name] = RunningStream(name, feed, settings)
                self.playback.open(name, feed)
                self._count_up(feed.metrics_label)
        except InputError:
            feed.close()
            raise

    def no_free_stream(self) -> InputError:
        """The error of a stream that cannot start."""
        got = f"all {self.num_streams} streams in use"
        return InputError("start", got, "a free one", "join a running stream, or wait until one ends")

    def change(self, name: str, settings: StreamSettings) -> "Future[StreamSettings]":
        """Change the settings of a stream while it plays, before its next chunk.

        Returns:
            The settings in force, once they are; or the InputError that says what cannot change, or that the stream has ended.

        Raises:
            InputError: no such stream.
        """
        future: Future[StreamSettings] = Future()
        with self.lock:
            self.changes.append((self._running(name), settings, future))
            self.lock.notify_all()
        return future

    def ask(self, name: str, question: str, *, request_id: str = "", max_new_tokens: int | None = None) -> int:
        """Queue a request. A question becomes part of the next turn without one; an empty one asks for the next words that the
        stream says of itself. Either ends with a `ChunkReport` of this request_id, or with `Unanswered`.

        Args:
            request_id: the caller's own name of the request, for `cancel` and reports.
            max_new_tokens: of the reply; at most the stream's, which it is by default.

        Returns:
            How many requests of the stream wait before it.

        Raises:
            InputError: no such stream, too many requests waiting, special tokens, a reply longer than the stream's, no question
                for a stream in alert mode, which says nothing of itself.
        """
        plain(question, "question")
        with self.lock:
            running = self._running(name)
            longest = running.settings.max_new_tokens or self.session.config.max_new_tokens
            if max_new_tokens is not None and not 1 <= max_new_tokens <= longest:
                raise InputError("max_new_tokens", max_new_tokens, f"1 to {longest}", "ask for a shorter reply")
            if not question.strip() and running.settings.alert is not None:
                raise InputError(
                    "question", "none of a stream in alert mode", "one", "it says nothing of itself: ask something"
                )
            if len(running.requests) >= self.limits.max_queued_questions:
                raise InputError("question", f"{len(running.requests)} waiting", "fewer", "wait for their answers")
            running.requests.append(Request(request_id, question.strip(), max_new_tokens))
            return len(running.requests) - 1

    def cancel(self, name: str, request_id: str | None = None, *, number: int | None = None) -> bool:
        """Withdraw a request that waits, or end a reply at the token that is being decoded: that of `request_id`, that to the
        chunk `number`, or, without both, whichever is being decoded.

        Returns:
            Whether there was one. What became of it is published: `Unanswered`, or a `ChunkReport` (a reply that ends by
            itself at the same moment is complete).
        """
        with self.lock:
            running = self.running.get(name)
            if running is None:
                return False
            if request_id is not None and (request := running.withdraw(request_id)):
                self.reporter.unanswered(running, request, "cancelled")
                return True
            reply = running.reply
            if reply is None or not reply.is_named(request_id, number):
                return False
            reply.is_cancelled = True
            return True

    def end(self, name: str, reason: str) -> None:
        """End a stream; another one can start at once. Does nothing if it is not running."""
        with self.lock:  # of two threads that end a stream, one publishes it
            running = self.running.pop(name, None)
            if running is not None:
                self.reporter.ended(running, reason)
                self._count_up(running.feed.metrics_label)
        if running is not None:
            self.playback.close(name)

    def submit(self, work: OneShotWork) -> None:
        """Queue work that belongs to no stream, for slices between ticks.

        Raises:
            InputError: the engine has stopped.
        """
        self.one_shot.submit(work)

    def _count_up(self, source: str) -> None:
        is_up = any(item.feed.metrics_label == source and not item.is_lost for item in self.running.values())
        self.metrics.set("svlm_source_up", float(is_up), source)

    def _running(self, name: str) -> RunningStream:
        running = self.running.get(name)
        if running is None:
            raise InputError("stream", "one that has ended", "a running one", "join another")
        return running

    # the threads

    def _compile(self, state: StreamState) -> None:
        """Compile the programs for larger batches; until they are ready, a step runs smaller groups one after the other."""
        session = self.session
        try:
            for size in batch_sizes(self.num_streams) if session.mesh is None else ():
                if not self.playback.stopped and size not in session.batch_sizes:
                    compile_programs(session, (size,), state, self.clip, tokens=True)
                    # a new tuple in one assignment: the engine's thread reads it without a lock
                    session.batch_sizes = tuple(sorted({*session.batch_sizes, size}))
        except Exception as error:  # the programs for one stream are enough to go on
            traceback.print_exception(error)

    def _run(self) -> None:
        try:
            while not self.playback.stopped:
                self.heartbeat = time.monotonic()
                self.playback.wait(IDLE_WAIT, or_if=lambda: bool(self.one_shot or self.changes))
                ready, events = self.playback.poll()
                for event in events:
                    self._report(event)
                self._admit()
                if ready:
                    self._tick(ready)
                self._run_slice()
            reason = "the server is stopping"
        except Exception as error:  # the server stays up, and /health reports 503
            traceback.print_exception(error)
            self.error = reason = f"the engine broke: {type(error).__name__}: {error}"[:300]
        self.one_shot.close(RuntimeError(reason))
        for name in list(self.running):
            self.end(name, reason)
        self._change_settings()

    def _run_slice(self) -> None:
        start = time.monotonic()
        if self.one_shot.run_slice():
            self.metrics.observe("svlm_slice_seconds", time.monotonic() - start)

    def _admit(self) -> None:
        """Bring the runner's batch in line with `running`: streams that have ended leave, new ones join, others change."""
        with self.lock:
            running = dict(self.running)
        for name, stream in list(self.joined.items()):
            if running.get(name) is not stream:
                self.runner.leave(name)
                del self.joined[name]
        for name, stream in running.items():
            if name not in self.joined:
                try:
                    self.runner.join(name, stream.settings)
                except Exception as error:  # `open` has checked the settings; what it has missed is the matter of one stream
                    self.end(name, _line(error))
                else:
                    self.joined[name] = stream
        self._change_settings()

    def _change_settings(self) -> None:
        while self.changes:
            stream, settings, future = self.changes.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked does not wait any more
            try:
                if self.joined.get(stream.name) is not stream or stream.has_ended:
                    raise InputError("stream", "one that has ended", "a running one", "join another")
                self.runner.change(stream.name, settings)
            except Exception as error:  # the result of whoever asked for the change
                future.set_exception(error if isinstance(error, InputError) else RuntimeError(_line(error)))
            else:
                stream.settings = settings
                future.set_result(settings)

    def _tick(self, ready: Mapping[str, Ready]) -> None:
        """One step for the chunks that are ready; a stream that was ended since they were polled is left out."""
        ready = {name: chunk for name, chunk in ready.items() if name in self.joined}
        start = time.monotonic()
        prepared, events = self.runner.prepare(
            {name: self._start_reply(self.joined[name], item) for name, item in ready.items()}
        )
        for event in events:
            self._report(event)
        if not prepared:
            return
        # Where nobody reads words as they come, replies are one call of the device, and nobody is there to cancel one.
        by_token = any(map(self.wants_tokens, prepared))
        callbacks = {"on_token": self._on_token, "cancelled": self._is_cancelled} if by_token else {}
        events = self.runner.step(prepared, **callbacks, recoverable=False)  # a server ends with an interrupt
        now = self.last_step = self.heartbeat = time.monotonic()
        self.reporter.step(now - start)
        for event in events:
            stream = self.joined[event.stream]
            if isinstance(event, TokenDelta):
                self.reporter.token(stream, event)
            elif isinstance(event, Caption):
                self.reporter.caption(stream, event, ready[event.stream], now)
            else:
                self.reporter.event(stream, event)

    def _on_token(self, delta: TokenDelta) -> None:
        self.reporter.token(self.joined[delta.stream], delta)

    def _is_cancelled(self, name: str) -> bool:
        """Whether the device need not say more of a reply. Read without the lock: a token more is no harm."""
        stream = self.joined[name]
        return stream.has_ended or (stream.reply is not None and stream.reply.is_cancelled)

    def _start_reply(self, stream: RunningStream, ready: Ready) -> Chunk:
        """Give a chunk its number and the request that it takes along."""
        with self.lock:
            request = stream.next_request()
            stream.reply = Reply(stream.next_number(), request)
        if request is None:
            return Chunk(ready.start, ready.end, ready.clip)
        return Chunk(ready.start, ready.end, ready.clip, request.question, max_new_tokens=request.max_new_tokens)

    def _report(self, event: Event) -> None:
        """Tell an event that is no reply. The end of a stream that a client ended is published already."""
        stream = self.running.get(event.stream)
        if stream is None:
            return
        if isinstance(event, Ended):
            reason = event.reason or "the source has ended"
            if event.error is not None and not event.reason:
                reason = stream.feed.error_line(event.error)  # without the address of a private source
            self.end(event.stream, reason)
        else:
            self.reporter.event(stream, event)


def _line(error: Exception) -> str:
    """What clients read of an error; one that is no input of theirs goes to stderr."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error)
    return f"the server failed: {type(error).__name__}"
