"""Frames that a program pushes, with their time stamps, as a live source.

Owns the buffer between the threads that push and the one that reads. Stamps that jump are joined by the rule that a camera's
are (`timestamps.Joiner`). Does not know the model, nor how frames arrive: over a socket, from a driver, from a decoder of one's
own. Units: seconds. Axes: H, W pixels.

source = PushSource("my camera")
for frame, second in camera:                 # in any thread
    source.push(frame, second)
source.finish()                              # meanwhile, in another: for reply in vlm.watch(source): ...
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Source, Timing
from svlm_jax.media.timestamps import STILL_PACKETS, Joiner
from svlm_jax.media.video import SLACK

TICK = 1e-6  # seconds: stamps are compared as integers
MAX_STAMP = 1e12  # seconds
MAX_STANDSTILL = 10.0  # seconds in which stamps may stand still while frames come: nothing can be watched meanwhile
MAX_FRAMES = 32  # that wait to be read; at 2 frames a second 16 s


class Pushed(NamedTuple):
    """sample: number of the first sample that the frame can be shown at. on_time: its stamp is that of this sample, so that no
    later frame can take its place there."""

    sample: int
    on_time: bool
    frame: np.ndarray


class PushSource(Source):
    """Sample k is the newest frame that was pushed with a stamp of at most k / fps seconds after the first frame's. While none
    comes the last one stands still, as that of a camera does; the samples that it fills are read when the next frame comes."""

    live = endless = True

    def __init__(
        self,
        name: str,
        timing: Timing | None = None,
        *,
        max_frames: int = MAX_FRAMES,
        max_silence: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        timing: of the samples; 2 a second by default. `start` only names the first second.
        max_frames: frames that may wait to be read; of more the oldest are dropped, and a chunk's note says how many.
        max_silence: seconds without a frame after which the source ends.
        clock: seconds of the host, for frames without stamps, and to tell a pause from a jump of the stamps.
        on_taken: called when a frame that waited was read, in the thread that reads, and when the source ends.

        Raises:
            InputError: `timing` is of no video; no frame may wait.
        """
        super().__init__(name, timing or Timing())
        if max_frames < 1:
            raise InputError("max_frames", max_frames, "1 or more", f"{MAX_FRAMES} is the default")
        self.max_frames, self.max_silence, self.clock, self.on_taken = max_frames, max_silence, clock, on_taken
        self.total = self._chunks_in(None)
        self.joiner = Joiner(TICK, 1 / self.fps, can_jump=True)
        self.size: tuple[int, int] | None = None  # height and width of all frames
        self.origin: int | None = None  # stamp of second 0
        self.second = 0.0  # of the newest frame on the joined clock; never goes back
        self.length = 0.0  # seconds that it stands for when no frame follows
        self.advanced_at = 0.0  # when a frame last came whose second was a new one, by `clock`
        self.num_still = 0  # frames since then
        self.last_sample = -1  # the newest one that a frame is on time for
        self.num_certain = 0  # samples that no later frame changes
        self.waiting: deque[Pushed] = deque()
        self.pushed_notes: list[tuple[float, str]] = []  # (second, text), until the reader takes them
        self.num_dropped = 0  # since the reader last took a frame
        self.finished = False
        self.changed = threading.Condition()

    def push(self, frame: np.ndarray, second: float | None = None) -> bool:
        """Add a frame, uint8 [H, W, 3] of the size of the first; it is copied. From any thread, in order of time.

        Args:
            second: its time stamp, counted from anywhere; by default the time of this call.

        Returns:
            Whether the source is still open; a frame that comes later is ignored.

        Raises:
            InputError: another shape, dtype or size; a stamp that is no number; stamps that have stood still, or gone back
                little by little, for `MAX_STANDSTILL`.
        """
        arrival = self.clock()
        second = arrival if second is None else second
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise InputError("frame", f"{frame.dtype} {list(frame.shape)}", "uint8 [H, W, 3]", "convert it first")
        if not isinstance(second, float | int | np.number) or not abs(second) < MAX_STAMP:
            raise InputError("second", second, f"a number of seconds below {MAX_STAMP:g}", "leave it out: the time of the call")
        with self.changed:
            if self.finished:
                return False
            self.size = self.size or (frame.shape[0], frame.shape[1])
            if frame.shape[:2] != self.size:
                got, expected = f"{frame.shape[1]}x{frame.shape[0]} px", f"{self.size[1]}x{self.size[0]} px, as the first has"
                raise InputError("frame", got, expected, "resize it before it is pushed")
            self._append(frame.copy(), round(second / TICK), arrival)
            self.changed.notify_all()
        return True

    def _append(self, frame: np.ndarray, stamp: int, arrival: float) -> None:
        jump = self.joiner.join(stamp, arrival=arrival)
        self.origin = stamp if self.origin is None else self.origin
        # a little back is disorder: the frame then takes the position of the last one
        second = max(self.second, (stamp + self.joiner.offset - self.origin) * TICK)
        self._check_advance(second, arrival)
        self.length, self.second = min(second - self.second, 1 / self.fps), second
        if jump is not None:
            self.pushed_notes.append((self.start + self.second, jump.note()))
        sample = max(0, math.ceil((self.second - SLACK) * self.fps))
        on_time = sample > self.last_sample and sample / self.fps <= self.second + SLACK
        self.last_sample = sample if on_time else self.last_sample
        self.num_certain = max(self.num_certain, sample + on_time)
        last = self.waiting[-1] if self.waiting else None
        if last is not None and last.sample == sample and not last.on_time:
            self.waiting.pop()  # no sample falls between the two
        self.waiting.append(Pushed(sample, on_time, frame))
        if len(self.waiting) > self.max_frames:
            self.waiting.popleft()
            self.num_dropped += 1

    def _check_advance(self, second: float, arrival: float) -> None:
        if second > self.second or not self.num_still:
            self.advanced_at, self.num_still = arrival, 1
            return
        self.num_still += 1
        if self.num_still > STILL_PACKETS and arrival - self.advanced_at > MAX_STANDSTILL:
            got = f"no later one for {arrival - self.advanced_at:.0f} s"
            raise InputError("second", got, "the time of each frame", "count it from anywhere, or leave it out")

    @property
    def has_room(self) -> bool:
        """Whether a frame that is pushed now drops none that waits."""
        return len(self.waiting) < self.max_frames

    @property
    def complete_until(self) -> float | int:
        """End of the last chunk that needs no further frame; `start` before the first one is complete."""
        return self.end_of(self.num_certain)

    def finish(self, reason: str = "the source has ended") -> None:
        """No more frames; those that wait are still read. From any thread."""
        with self.changed:
            if not self.finished:
                self.finished, self.ending = True, reason
            self.changed.notify_all()
        self.on_taken()

    def stop(self) -> None:
        self.finish()

    def close(self) -> None:
        self.finish()

    def frames(self) -> Iterator[np.ndarray]:
        limit = math.inf if self.duration is None else math.ceil(self.duration * self.fps - SLACK)
        num_sent, current = 0, None
        while num_sent < limit and (pushed := self._take()) is not None:
            # those before it were dropped where there is none that could stand for them
            standing = pushed if current is None else current
            while num_sent < min(pushed.sample, limit):
                yield standing.frame
                num_sent += 1
            current = pushed
            if current.on_time and num_sent == current.sample < limit:  # need not wait for the next one
                yield current.frame
                num_sent += 1
        if current is not None and num_sent < limit and num_sent / self.fps < self.second + self.length - SLACK:
            yield current.frame  # no frame follows
        self.finish("")

    def _take(self) -> Pushed | None:
        """The oldest frame that waits, or None when no more come."""
        with self.changed:
            timeout = None if math.isinf(self.max_silence) else self.max_silence
            if not self.changed.wait_for(lambda: self.waiting or self.finished, timeout):
                self.finished, self.ending = True, f"no frame came for {self.max_silence:g} s"
            pushed = self.waiting.popleft() if self.waiting else None
            if self.num_dropped and pushed is not None:
                second = self.start + pushed.sample / self.fps
                text = f"{self.num_dropped} frames dropped before it: more than {self.max_frames} waited to be read"
                self.pushed_notes.append((second, text))
                self.num_dropped = 0
            self.notes += self.pushed_notes
            self.pushed_notes = []
        self.on_taken()
        return pushed
