"""Playing a source: decoding and preparing run ahead in a thread; chunks that nobody was ready for are dropped, and said.

The policy. Without a pace every chunk is delivered, as fast as it is taken. At the pace of the clock (a live source, or a file
that is played at its own speed) a chunk can be had once its last frame is there. What is late waits, in order, and is caught
up as fast as it is taken: after a moment of load nothing is missing. Only when more than `late` seconds of video wait is the
oldest chunk dropped, so that the newest `late` seconds are always there. Chunks are dropped whole, and each is reported.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from svlm_jax.media.sources import Chunk, Source

AHEAD = 4  # chunks that are prepared before they are wanted
LATE = 5.0  # seconds of video that may wait


class Player(AbstractContextManager):
    """Iterate over (chunk, what `prepare` made of it), once; closes the source."""

    def __init__(
        self,
        source: Source,
        prepare: Callable[[Chunk], Any],
        *,
        pace: bool = False,
        late: float | int = LATE,
        report: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
        clock: Callable[[], float] = time.monotonic,
        changed: threading.Condition | None = None,
        chunks: Iterable[Chunk] | None = None,
    ) -> None:
        """Args:
        prepare: run in the thread.
        pace: keep to the clock even if the source could go faster.
        late: seconds of video that may wait at that pace; one chunk always may.
        report: told the chunks that are dropped, in the thread that takes.
        clock: seconds, for tests.
        changed: notified when something can be had; one that several players share, for who polls them all.
        chunks: of the source, where some were taken from it before; `source` itself by default.
        """
        self.source, self.prepare, self.report, self.clock = source, prepare, report, clock
        self.chunks = source if chunks is None else chunks
        self.wait, self.timed = pace and not source.live, pace or source.live
        self.most = max(1, int(late / source.chunk_seconds + 1e-6))  # complete chunks
        self.ready: deque[tuple[Chunk, Any]] = deque()
        self.lost: list[Chunk] = []
        self.changed = changed or threading.Condition()
        self.ended = self.stopped = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._read, name="decode", daemon=True)

    def __iter__(self) -> Iterator[tuple[Chunk, Any]]:
        self.begin()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.ready or self.ended or self.stopped)
            taken = self.poll()
            if taken is None:
                return
            yield taken

    def begin(self) -> None:
        """Start reading, for who polls; iterating does it by itself."""
        self.thread.start()

    def poll(self) -> tuple[Chunk, Any] | None:
        """The next chunk if it is there, without waiting.

        Raises:
            BaseException: what broke the source, once everything before it has been taken.
        """
        with self.changed:
            if self.stopped:
                return None
            taken, over = (self.ready.popleft() if self.ready else None), self.ended
            lost, self.lost = self.lost, []
            self.changed.notify_all()
        if lost:
            self.report(lost)
        if taken is None and over and self.error is not None:
            raise self.error
        return taken

    @property
    def has_chunk(self) -> bool:
        """Whether `poll` would give a chunk."""
        return bool(self.ready) and not self.stopped

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return self.stopped or (self.ended and not self.ready)

    def _read(self) -> None:
        try:
            began = None
            for chunk in self.chunks:
                began = self.clock() - chunk.start if began is None else began
                item = (chunk, self.prepare(chunk))
                with self.changed:
                    if self.wait:
                        self.changed.wait_for(lambda: self.stopped, timeout=max(0.0, began + chunk.end - self.clock()))
                    while not self.timed and len(self.ready) >= AHEAD and not self.stopped:
                        self.changed.wait()
                    if self.stopped:
                        return
                    self.ready.append(item)
                    if self.timed and len(self.ready) > self.most:
                        self.lost.append(self.ready.popleft()[0])
                    self.changed.notify_all()
        except BaseException as error:  # goes to the thread that takes
            self.error = error
        finally:
            self.source.close()  # here: nobody may close it while this thread reads
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def stop(self) -> None:
        """Give no more chunks; may be called from a signal handler."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def __exit__(self, *_: object) -> None:
        """Stop reading; a thread that is held up by a slow source ends by itself when that answers."""
        self.stop()
        if self.thread.is_alive():
            self.thread.join(timeout=1.0)
