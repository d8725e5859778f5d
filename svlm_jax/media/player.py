"""Playing a source: a thread decodes and prepares its chunks ahead of the reader, and drops those that come too late.

The policy. Without a clock every chunk is delivered, as fast as it is read. By the clock (a live source, or a file that is
played at its own speed) a chunk is ready once its last frame has come. Chunks that are late wait, in order, and are caught up
as fast as they are read: after a moment of load nothing is missing. Only when more than `max_delay` seconds of video wait is
the oldest chunk dropped, so that the newest `max_delay` seconds always remain. Chunks are dropped as a unit, and each is
reported.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from svlm_jax.media.chunks import Chunk, Source

PREFETCH = 4  # chunks that are prepared before they are read
MAX_DELAY = 5.0  # seconds of video that may wait


class Player(AbstractContextManager):
    """Iterates over (chunk, `prepare(chunk)`), once; closes the source."""

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Chunk], Any],
        *,
        pace: bool = False,
        max_delay: float | int = MAX_DELAY,
        on_dropped: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
        clock: Callable[[], float] = time.monotonic,
        changed: threading.Condition | None = None,
        chunks: Iterable[Chunk] | None = None,
    ) -> None:
        """Args:
        prepare: called in the thread of the player.
        pace: play a file at its own speed; by default as fast as it is read.
        max_delay: seconds of video that may wait when played by the clock; one chunk always may.
        on_dropped: called with the chunks that were dropped, without their frames, in the thread of the reader.
        clock: seconds, for tests.
        changed: notified when a chunk is ready or the source is over; several players may share one, to be polled together.
        chunks: of the source, where some were read before; `source` itself by default.
        """
        self.source, self.prepare, self.on_dropped, self.clock = source, prepare, on_dropped, clock
        self.chunks = source if chunks is None else chunks
        self.pace = pace
        self.max_ready = max(1, int(max_delay / source.chunk_seconds + 1e-6))  # complete chunks
        self.ready: deque[tuple[Chunk, Any]] = deque()
        self.dropped: list[Chunk] = []  # not reported yet; without their frames
        self.changed = changed or threading.Condition()
        self.ended = self.stopped = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._read, name="decode", daemon=True)

    def __iter__(self) -> Iterator[tuple[Chunk, Any]]:
        self.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.ready or self.ended or self.stopped)
            item = self.poll()
            if item is None:
                return
            yield item

    def start(self) -> None:
        """Start reading the source, before `poll`; iterating does it by itself."""
        self.thread.start()

    def poll(self) -> tuple[Chunk, Any] | None:
        """The next chunk if it is ready, without waiting.

        Raises:
            BaseException: what broke the source, once everything before it has been read.
        """
        with self.changed:
            if self.stopped:
                return None
            item, ended = (self.ready.popleft() if self.ready else None), self.ended
            dropped, self.dropped = self.dropped, []
            self.changed.notify_all()
        if dropped:
            self.on_dropped(dropped)
        if item is None and ended and self.error is not None:
            raise self.error
        return item

    @property
    def paced(self) -> bool:
        """Whether chunks wait here until their time has come."""
        return self.pace and not self.source.live

    @property
    def timed(self) -> bool:
        """Whether chunks come by a clock, and are dropped when they are late. Not before the first chunk is it certain of a
        source whose frames are pushed."""
        return self.pace or self.source.live

    @property
    def has_chunk(self) -> bool:
        """Whether `poll` would give a chunk."""
        return bool(self.ready) and not self.stopped

    @property
    def is_over(self) -> bool:
        """Whether no chunk comes any more."""
        return self.stopped or (self.ended and not self.ready)

    def _read(self) -> None:
        try:
            origin = None  # second 0 of the video on the clock
            for chunk in self.chunks:
                origin = self.clock() - chunk.start if origin is None else origin
                item = (chunk, self.prepare(chunk))
                with self.changed:
                    if self.paced:
                        self.changed.wait_for(lambda: self.stopped, timeout=max(0.0, origin + chunk.end - self.clock()))
                    while not self.timed and len(self.ready) >= PREFETCH and not self.stopped:
                        self.changed.wait()
                    if self.stopped:
                        return
                    self.ready.append(item)
                    if self.timed and len(self.ready) > self.max_ready:
                        dropped, _ = self.ready.popleft()
                        # minutes of them may wait to be reported, while programs are compiled
                        self.dropped.append(dropped._replace(frames=dropped.frames[:0].copy()))
                    self.changed.notify_all()
        except BaseException as error:  # raised in the thread of the reader
            self.error = error
        finally:
            self.source.close()  # in this thread: no other may close it while this one reads
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def stop(self) -> None:
        """Give no more chunks; may be called from a signal handler."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        self.source.stop()

    def __exit__(self, *_: object) -> None:
        """Stop reading; a thread that waits for a slow source ends by itself when that answers."""
        self.stop()
        if self.thread.is_alive():
            self.thread.join(timeout=1.0)
