"""The video of a stream as chunks of equal length: the base of all sources.

Owns the seconds of chunks, their notes, and what follows when the frames of a source are interrupted. Does not know where
frames come from. numpy. Units: seconds counted from the first frame of the source. Axes: F frames · H, W pixels.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.video import SLACK, check_clock

MAX_NOTES = 5  # of one chunk; the rest is counted
REMEDY = "check that it plays elsewhere"


class Chunk(NamedTuple):
    """One step of video. number: counted from the stream's start. start, end: seconds. frames uint8 [F, H, W, 3], as many in
    every chunk. note: what is unusual about it, or ""."""

    number: int
    start: float
    end: float
    frames: np.ndarray
    note: str = ""


class Lost(NamedTuple):
    """In place of a frame: the source gives nothing any more, and is opened again until it does. reason: without passwords."""

    reason: str


class Returned(NamedTuple):
    """In place of a frame, before the first one after `Lost`. seconds: from the last frame before to this one, by the clock of
    the host. attempts: how often the source was opened."""

    seconds: float
    attempts: int


Interruption = Lost | Returned


class Outage(NamedTuple):
    """What `Source.on_outage` hears: a source is lost at second `start` (`end` is None), or goes on at second `end`.

    reason: of the loss. chunks: that are missing from `start` to `end`. seconds: it was away, by the clock of the host.
    attempts: how often it was opened.
    """

    start: float | int
    end: float | int | None = None
    reason: str = ""
    chunks: int = 0
    seconds: float = 0.0
    attempts: int = 0


class Timing(NamedTuple):
    """Which frames of a source are taken: `fps` a second from second `start` on, for `duration` seconds or (None) to its end.
    In chunks of `chunk_seconds`, but for the first if it has a length of its own."""

    fps: float | int = 2.0
    chunk_seconds: float | int = 1.0
    start: float | int = 0.0
    duration: float | int | None = None
    first_chunk_seconds: float | int | None = None


class Source(AbstractContextManager, ABC):
    """A video as chunks, once.

    Attributes:
        live: frames are lost that are not taken in time.
        may_stall: its frames come when somebody sends them: no other stream should wait for it.
        endless: it has no end of its own.
        total: chunks, or None where that is not known before.
        ending: why a source without an end of its own has ended.
        notes: (second, what is unusual at it) of which no chunk has a note yet.
        is_lost: between a loss and the return.
        on_outage: called, in the thread that reads, when the source is lost and when it is back. Chunks that are missing then
            are missing from the numbers and seconds of the chunks, too.
    """

    live: bool = False
    may_stall: bool = False
    endless: bool = False
    total: int | None = None

    def __init__(self, name: str, timing: Timing) -> None:
        """Raises:
        InputError: a rate, a start or a duration that no video has; a chunk that is no whole number of frames.
        """
        check_clock(timing.fps, timing.start, timing.duration)
        first = timing.chunk_seconds if timing.first_chunk_seconds is None else timing.first_chunk_seconds
        for seconds in (timing.chunk_seconds, first):
            _check_chunks(timing.fps, seconds, timing.duration)
        self.name = name
        self.fps, self.chunk_seconds, self.start, self.duration, _ = timing
        self.first_chunk_seconds = first
        self.ending = ""
        self.notes: list[tuple[float, str]] = []
        self.is_lost = False
        self.on_outage: Callable[[Outage], None] = lambda outage: None
        self.next_start = self.start  # second at which the chunk begins that follows an outage
        self.exact_second = float(self.start)  # of the next frame, while it is iterated; in an outage by the clock of the host

    @abstractmethod
    def frames(self) -> Iterator[np.ndarray | Interruption]:
        """uint8 [H, W, 3] `fps` times a second from `start` on."""

    def lazy_frames(self) -> Iterator[Callable[[], np.ndarray] | Interruption]:
        """`frames`, each as a function that returns it: a source that draws its frames draws only those that are called."""
        for frame in self.frames():
            yield frame if isinstance(frame, Interruption) else (lambda frame=frame: frame)

    def __iter__(self) -> Iterator[Chunk]:
        frames: list[np.ndarray] = []
        number = 0
        for frame in self.frames():
            if isinstance(frame, Returned):
                number = self._return(number, frame)
                continue
            if not isinstance(frame, Lost):
                frames.append(frame)
                self.exact_second += 1 / self.fps
            if len(frames) == self._frames_in(number) or (frames and isinstance(frame, Lost)):
                yield self._chunk(number, frames)  # what was seen before a loss does not wait for the return
                frames, number = [], number + 1
            if isinstance(frame, Lost):
                self.is_lost = True
                self.on_outage(Outage(self._start_of(number), reason=frame.reason))
        if frames:
            yield self._chunk(number, frames)
        elif not number:
            raise InputError(
                self.name, f"no frame ({self.ending})" if self.ending else "no frame", "a source with frames", REMEDY
            )
        for _, text in self.notes:  # of seconds after the last chunk
            warnings.warn(f"{self.name}: {text}", stacklevel=2)

    def _return(self, number: int, returned: Returned) -> int:
        """The number of the first chunk after an outage: that of the second which the host's clock says, to the nearest chunk.
        Chunk `number` would have been next."""
        start, before = self._start_of(number), number
        if number:  # before the first frame no second has passed
            # not from the chunk's second: rounding does not add up over many returns
            self.exact_second += returned.seconds
            number = max(number, self.chunks_until(self.exact_second))
        missing, end = number - before, self._start_of(number)
        self.next_start = end
        if before:
            gap = f"no video from {start:g} s to {end:g} s" if missing else "no chunk is missing"
            self.notes.append((end, f"the source was away for {returned.seconds:.1f} s before it: {gap}"))
        self.is_lost = False
        self.on_outage(Outage(start, end, "", missing, returned.seconds, returned.attempts))
        return number

    def _frames_in(self, number: int) -> int:
        return round(self.fps * (self.chunk_seconds if number else self.first_chunk_seconds))

    def _start_of(self, number: int) -> float | int:
        return self.start + number * self.chunk_seconds + self._first_excess if number else self.start

    def _chunk(self, number: int, frames: list[np.ndarray]) -> Chunk:
        start, end = self._start_of(number), self._start_of(number + 1)
        notes = [text for second, text in self.notes if second < end]
        notes[MAX_NOTES:] = [f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else []
        self.notes[:] = [(second, text) for second, text in self.notes if second >= end]
        if missing := self._frames_in(number) - len(frames):
            notes.append(f"ends {missing / self.fps:g} s early: its last frame stands for the missing {missing}")
            frames = frames + frames[-1:] * missing
        return Chunk(number, start, end, np.stack(frames), "; ".join(notes))

    def end_of(self, num_frames: int) -> float | int:
        """Second at which the last chunk ends that this many frames complete; `start` where they complete none."""
        excess = round(self.fps * self._first_excess)
        chunks = max(0, (num_frames - excess) // round(self.fps * self.chunk_seconds))
        return self.start + chunks * self.chunk_seconds + (self._first_excess if chunks else 0)

    @property
    def _first_excess(self) -> float | int:
        """Seconds by which the first chunk is longer than the others."""
        return self.first_chunk_seconds - self.chunk_seconds

    def chunks_until(self, second: float | int) -> int:
        """Chunks of the source that have ended at a second at which one ends."""
        return round((second - self.start - self._first_excess) / self.chunk_seconds)

    def _chunks_in(self, length: float | None) -> int | None:
        """Chunks of a video of that many seconds; None: it has no end."""
        if length is None and self.duration is None:
            return None
        seconds = min(math.inf if length is None else length - self.start, self.duration or math.inf)
        at_least = 1 if seconds / self.chunk_seconds > SLACK else 0
        return max(at_least, math.ceil((seconds - self._first_excess) / self.chunk_seconds - SLACK))

    def stop(self) -> None:
        """Make `frames` end soon where it waits for others; from any thread."""

    def close(self) -> None:
        """Release files, cameras and connections."""

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_chunks(fps: float | int, chunk_seconds: float | int, duration: float | int | None) -> None:
    count = fps * chunk_seconds
    if not 1 <= count < float("inf") or abs(count - round(count)) > SLACK:
        raise InputError(
            "chunk_seconds", f"{chunk_seconds:g} s at {fps:g} fps", "a whole number of frames", "1 s at 2 fps is usual"
        )
    if duration is not None and duration < 1 / fps - SLACK:
        got = f"{duration:g} s, which is shorter than one frame"
        raise InputError("duration", got, f"{1 / fps:g} s or more at {fps:g} fps", "watch for longer")
