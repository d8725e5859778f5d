"""Sources that play side by side: whose next chunk is ready, what was dropped, which has ended.

Owns one reading thread a source (`media.player`) and the condition that they share. Does not know the session: a source is
opened and closed while others go on. Units: seconds.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from svlm_jax.inputs import Clip
from svlm_jax.media import sources
from svlm_jax.media.player import MAX_DELAY, Player
from svlm_jax.media.processor import Processor
from svlm_jax.media.sources import Source
from svlm_jax.stream.events import Dropped, Ended

PATIENCE = 0.1  # of a chunk: how long a batch waits for the streams that have no chunk yet


class Ready(NamedTuple):
    """A chunk that can be watched now: its frames, and when (`time.monotonic`) the last of them was there."""

    start: float | int
    end: float | int
    clip: Clip
    note: str
    arrival: float


class Playback(AbstractContextManager["Playback"]):
    """Sources by the names of their streams. `wait` and `poll` belong to one thread, the rest may be called from any."""

    def __init__(
        self,
        processor: Processor,
        *,
        pace: bool = False,
        max_delay: float | int = MAX_DELAY,
        on_device: bool = False,
        upload: Callable[[Clip], Clip] | None = None,
    ) -> None:
        """Args:
        pace: play files at their own speed; otherwise as fast as their chunks are taken.
        max_delay: seconds of live or paced video that may wait before the oldest chunks are dropped.
        on_device: leave frames as they are, for a device that resizes them (`frames.resizes_on_device`).
        upload: of the session (`Session.upload`), called in the reading threads; may be set later.
        """
        self.processor, self.pace, self.max_delay = processor, pace, max_delay
        self.on_device, self.upload = on_device, upload
        self.players: dict[str, Player] = {}
        self.changed = threading.Condition()  # reentrant, so `stop` may be called from a signal handler
        self.stopped = False
        self._dropped: list[Dropped] = []

    def __contains__(self, stream: str) -> bool:
        return stream in self.players

    def clip(self, chunk: sources.Chunk, fps: float | int) -> Clip:
        """The frames of a chunk as the session takes them: as patches, or as they are."""
        if self.on_device:
            return self.processor.frames(chunk.frames, fps=fps, start=chunk.start)
        return self.processor.video(chunk.frames, fps=fps, start=chunk.start, raw=True)

    def open(self, stream: str, source: Source, chunks: Iterable[sources.Chunk] | None = None) -> None:
        """Begin to read a source; it is closed when it has ended or `close` is called.

        Args:
            chunks: of the source, where some were taken from it already; by default `source` itself is iterated.
        """
        with self.changed:
            if stream in self.players:
                raise ValueError(f"open: stream {stream!r} is playing")
            player = Player(
                source,
                partial(self._prepare, fps=source.fps),
                pace=self.pace,
                max_delay=self.max_delay,
                on_dropped=partial(self._report, stream),
                changed=self.changed,
                chunks=chunks,
            )
            self.players[stream] = player
            player.start()

    def close(self, stream: str) -> None:
        """Take nothing more from a source; one that has ended is closed already."""
        with self.changed:
            player = self.players.pop(stream, None)
        if player is not None:
            player.stop()

    def stop(self) -> None:
        """Take nothing more from any source, and end every wait."""
        with self.changed:
            self.stopped = True
            for player in self.players.values():
                player.stop()
            self.changed.notify_all()

    def __exit__(self, *_: object) -> None:
        """Stop, and give the reading threads a moment to close their sources."""
        self.stop()
        for player in self.players.values():
            player.__exit__(None, None, None)

    def wait(self, timeout: float | None = None) -> None:
        """Until a stream has a chunk or has ended, at most `timeout` seconds, and a little longer for the others: what is ready
        together is one batch. Sources without a clock are waited for, since waiting loses nothing."""

        def is_due(quantifier: Callable[[Iterable[bool]], bool]) -> bool:
            return self.stopped or quantifier(player.has_chunk or player.is_over for player in self.players.values())

        with self.changed:
            if self.changed.wait_for(lambda: is_due(any), timeout):
                paced = [player.source.chunk_seconds for player in self.players.values() if player.timed]
                self.changed.wait_for(lambda: is_due(all), PATIENCE * min(paced) if paced else None)

    def poll(self) -> tuple[dict[str, Ready], list[Dropped | Ended]]:
        """The next chunk of every stream that has one, and what has happened to the others; does not wait. Sources that have
        ended are not in the playback any more."""
        ready: dict[str, Ready] = {}
        events: list[Dropped | Ended] = []
        with self.changed:
            players = {} if self.stopped else dict(self.players)
        for stream, player in players.items():
            error: Exception | None = None
            try:
                chunk = player.poll()
            except Exception as broken:  # whatever broke one source is no matter of the others
                chunk, error = None, broken
            events += self._dropped
            self._dropped.clear()
            if chunk is not None:
                (video, (clip, arrival)) = chunk
                ready[stream] = Ready(video.start, video.end, clip, video.note, arrival)
            elif error is not None or player.is_over:
                self.close(stream)
                reason = player.source.ending if error is None else ""
                events.append(Ended(stream=stream, reason=reason, error=error))
        return ready, events

    # in the reading threads

    def _prepare(self, chunk: sources.Chunk, fps: float | int) -> tuple[Clip, float]:
        arrival, clip = time.monotonic(), self.clip(chunk, fps)
        # Sent from here, frames travel while the device works on the chunk before.
        return clip if self.upload is None else self.upload(clip), arrival

    # in the thread that polls

    def _report(self, stream: str, chunks: Sequence[sources.Chunk]) -> None:
        first, last = chunks[0], chunks[-1]
        self._dropped.append(Dropped(stream=stream, start=first.start, end=last.end, chunks=len(chunks)))
