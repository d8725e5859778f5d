"""Sources that play side by side: whose next chunk is ready, what was dropped, which has ended.

Owns one reading thread a source (`media.player`) and the condition that they share. Does not know the session: a source is
opened and closed while others go on. Units: seconds.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from svlm_jax.inputs import Clip
from svlm_jax.media.chunks import Chunk, Outage, Source
from svlm_jax.media.player import MAX_DELAY, Player
from svlm_jax.media.processor import Processor
from svlm_jax.stream.events import Dropped, Ended, SourceBack, SourceLost

PATIENCE = 0.1  # of a chunk: how long a batch waits for the streams that have no chunk yet


SourceEvent = Dropped | SourceLost | SourceBack


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
        self._events: list[SourceEvent] = []  # not polled yet

    def __contains__(self, stream: str) -> bool:
        return stream in self.players

    def clip(self, chunk: Chunk, fps: float | int) -> Clip:
        """The frames of a chunk as the session takes them: as patches, or as they are."""
        if self.on_device:
            return self.processor.frames(chunk.frames, fps=fps, start=chunk.start)
        return self.processor.video(chunk.frames, fps=fps, start=chunk.start, raw=True)

    def open(self, stream: str, source: Source, chunks: Iterable[Chunk] | None = None) -> None:
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
            source.on_outage = partial(self._report_outage, stream, source)
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

    def wait(self, timeout: float | None = None, *, or_if: Callable[[], bool] = lambda: False) -> None:
        """Until there is something to poll, at most `timeout` seconds. Where it is a chunk, a little longer for those of the
        other streams: what is ready together is one batch. Sources without a clock are waited for, since waiting loses nothing;
        not those that may stall, and those that are lost not at all.

        Args:
            or_if: what else ends the wait, checked whenever `changed` is notified.
        """

        def is_due() -> bool:
            waiting = any(player.has_chunk or player.is_over for player in self.players.values())
            return self.stopped or bool(self._events) or waiting

        def are_all_due() -> bool:
            players = self.players.values()
            return self.stopped or all(player.has_chunk or player.is_over or player.source.is_lost for player in players)

        with self.changed:
            self.changed.wait_for(lambda: or_if() or is_due(), timeout)
            if any(player.has_chunk for player in self.players.values()):
                players = self.players.values()
                paced = [player.source.chunk_seconds for player in players if player.timed or player.source.may_stall]
                self.changed.wait_for(are_all_due, PATIENCE * min(paced) if paced else None)

    def poll(self) -> tuple[dict[str, Ready], list[SourceEvent | Ended]]:
        """The next chunk of every stream that has one, and what has happened to the sources; does not wait. A loss is told at
        once, even while chunks from before it wait; a return with the first chunk after it. Sources that have ended are not in
        the playback any more."""
        ready: dict[str, Ready] = {}
        ended: list[Ended] = []
        with self.changed:
            players = {} if self.stopped else dict(self.players)
        for stream, player in players.items():
            error: Exception | None = None
            try:
                chunk = player.poll()
            except Exception as broken:  # whatever broke one source is no matter of the others
                chunk, error = None, broken
            if chunk is not None:
                (video, (clip, arrival)) = chunk
                ready[stream] = Ready(video.start, video.end, clip, video.note, arrival)
            elif error is not None or player.is_over:
                self.close(stream)
                reason = player.source.ending if error is None else ""
                ended.append(Ended(stream=stream, reason=reason, error=error))
        return ready, [*self._take_events(ready), *ended]

    def _take_events(self, ready: Mapping[str, Ready]) -> list[SourceEvent]:
        """What can be told now, in the order of the video. A return, and what follows it, waits for the chunks before it."""
        due: list[SourceEvent] = []
        waiting: list[SourceEvent] = []
        held_back: set[str] = set()  # streams with such a return
        with self.changed:
            for event in self._events:
                if isinstance(event, SourceBack) and self._next_start(event.stream, ready) < event.end:
                    held_back.add(event.stream)
                must_wait = event.stream in held_back and not isinstance(event, Dropped)
                (waiting if must_wait else due).append(event)
            self._events = waiting
        return sorted(due, key=lambda event: event.second if isinstance(event, SourceLost) else event.start)

    def _next_start(self, stream: str, ready: Mapping[str, Ready]) -> float:
        """Second of the oldest chunk that is not watched yet; infinity: there is none."""
        if stream in ready:
            return ready[stream].start
        player = self.players.get(stream)
        return player.ready[0][0].start if player is not None and player.ready else math.inf

    # in the reading threads

    def _prepare(self, chunk: Chunk, fps: float | int) -> tuple[Clip, float]:
        arrival, clip = time.monotonic(), self.clip(chunk, fps)
        # Sent from here, frames travel while the device works on the chunk before.
        return clip if self.upload is None else self.upload(clip), arrival

    def _report_outage(self, stream: str, source: Source, outage: Outage) -> None:
        if outage.end is None:
            event = SourceLost(stream=stream, second=outage.start, reason=outage.reason)
        else:
            missing = {"start": outage.start, "end": outage.end, "chunks": outage.chunks}
            event = SourceBack(stream=stream, **missing, seconds=outage.seconds, attempts=outage.attempts)
        with self.changed:
            if (player := self.players.get(stream)) is not None and player.source is source:  # not one that was closed
                self._events.append(event)
                self.changed.notify_all()

    # in the thread that polls

    def _report(self, stream: str, chunks: Sequence[Chunk]) -> None:
        """Chunks that were dropped, a run of seconds at a time: between two runs the source was lost."""
        first = 0
        for last, chunk in enumerate(chunks):
            if last + 1 == len(chunks) or chunks[last + 1].number != chunk.number + 1:
                dropped = Dropped(stream=stream, start=chunks[first].start, end=chunk.end, chunks=last + 1 - first)
                self._events.append(dropped)
                first = last + 1
