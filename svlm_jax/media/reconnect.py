"""A live source that is opened again whenever it is lost: a camera that restarts, a network that fails.

Owns when it is tried again, and how long it was away. The seconds of the video go on with the clock of the host: what was not
seen is missing, and no frame is made up for it. Does not know how a source is opened or decoded (`stream_source`), nor who
hears of a loss (`chunks.Source.on_outage`). Units: seconds. Axes: H, W pixels.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.chunks import Interruption, Lost, Returned, Source, Timing
from svlm_jax.media.stream_source import StreamSource
from svlm_jax.media.video import SLACK

GIVE_UP_AFTER = 300.0  # seconds
STEADY = 10.0  # seconds of frames after which a connection counts as good: the next loss is tried again at once


class Reconnect(NamedTuple):
    """When a source that is lost is opened again: after 1, 2, 4, 8, 16 and then every 30 s. Each wait is shortened by up to
    half at random, so that the cameras of one switch do not all come at once.

    seconds: without a frame after which it is given up; 0: at once; infinity: never. must_open: whether a source that does not
    open at the start is an error; else it is waited for like one that was lost.
    """

    seconds: float = GIVE_UP_AFTER
    first_delay: float = 1.0
    longest_delay: float = 30.0
    jitter: float = 0.5
    must_open: bool = True

    def delay(self, failures: int, share: float) -> float:
        """Seconds to wait after that many failures in a row. share: 0 to 1, of the jitter."""
        return min(self.longest_delay, self.first_delay * 2 ** min(failures, 32)) * (1 - self.jitter * share)


def open_reconnecting(name: str, timing: Timing, open_again: Callable[[Timing], Source], policy: Reconnect) -> Source:
    """A source that is opened again when it is lost, if it is live; a video with an end comes back as it is.

    Args:
        name: for people, without passwords.

    Raises:
        InputError: it does not open, and `policy` says that it must.
    """
    try:
        source = open_again(timing)
    except InputError as error:
        if policy.must_open or not policy.seconds:
            raise
        return ReconnectingSource(name, timing, open_again, policy, reason=_reason(error))
    if not isinstance(source, StreamSource) or not source.live or not policy.seconds:
        return source
    return ReconnectingSource(name, timing, open_again, policy, first=source)


class ReconnectingSource(Source):
    """A live source, and those that take its place, one after the other. All frames have the size of the first one's."""

    live = endless = True

    def __init__(
        self,
        name: str,
        timing: Timing,
        open_again: Callable[[Timing], Source],
        policy: Reconnect,
        *,
        first: StreamSource | None = None,
        reason: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Args:
        open_again: opens the source; called in the thread that reads.
        first: an open one. Without it the source is lost from the start, for `reason`.
        clock: seconds of the host. sleep: waits so many of them; by default until `stop`. draw: 0 to 1, for the jitter.
        """
        super().__init__(name, timing)
        self.timing, self.open_again, self.policy, self.clock, self.draw = timing, open_again, policy, clock, draw
        self.stopping = threading.Event()
        self.sleep = sleep or self.stopping.wait
        self.total = self._chunks_in(None)
        self.inner = first
        self.size: tuple[int, int] | None = None
        self.reason = reason  # of the last loss or failure
        self.elapsed = 0.0  # seconds from the first frame to the next one, outages included
        self.failures = self.attempts = 0  # since the last connection that was good; in this outage
        self.lost_at = clock()  # by `clock`, when the last frame came
        self.in_outage = False

    def frames(self) -> Iterator[np.ndarray | Interruption]:
        while not self.stopping.is_set():
            if self.inner is not None:
                yield from self._watch(self.inner)
                if not self.inner.live and not self.in_outage:  # a video with an end, which was not there at the start
                    self.ending = self.reason
                    return
                self._close()
            if self.stopping.is_set() or self._is_complete():
                return
            if not self.in_outage:
                self.in_outage, self.attempts, first_reason = True, 0, self.reason
                yield Lost(self.reason)
            if not self._wait():
                self.ending = f"{first_reason}; not back in {self.policy.seconds:g} s ({self.reason})"
                return
            self._open()

    def _watch(self, source: StreamSource) -> Iterator[np.ndarray | Interruption]:
        """The frames of one connection."""
        started = None
        source.size, source.clock = self.size, self.clock
        try:
            for frame in source.frames():
                if started is None:
                    started = self.clock() if source.first_arrival is None else source.first_arrival
                    self.size = source.size
                    if self.in_outage:
                        yield self._returned(started)
                self._take_notes(source)
                self.elapsed += 1 / self.fps
                yield frame
            self.reason = source.ending
        except Exception as error:  # whatever a camera sends must not end its stream: the reason is told, and it is tried again
            self.reason = _reason(error)
        self._take_notes(source)
        if started is not None:
            self.lost_at = self.clock() if source.last_arrival is None else source.last_arrival
            self.failures = 0 if self.lost_at - started >= STEADY else self.failures

    def _returned(self, now: float) -> Returned:
        seconds = max(0.0, now - self.lost_at)
        self.elapsed += seconds if self.elapsed else 0.0  # before the first frame no second has passed
        self.in_outage = False
        return Returned(seconds, self.attempts)

    def _take_notes(self, source: StreamSource) -> None:
        """What the source notes, with its second of this video: its own begin at 0 with every connection."""
        for second, text in source.notes:
            self.notes.append((max(second, self.start + self.elapsed), text))
        source.notes.clear()

    def _is_complete(self) -> bool:
        return self.duration is not None and self._remaining() < 1 / self.fps - SLACK

    def _remaining(self) -> float:
        """Seconds of `duration` that are left."""
        assert self.duration is not None
        passed = self.clock() - self.lost_at if self.in_outage and self.elapsed else 0.0
        return self.duration - self.elapsed - passed

    def _wait(self) -> bool:
        """Until the next attempt. False: it is given up."""
        left = self.policy.seconds - (self.clock() - self.lost_at)
        if left <= 0:
            return False
        self.sleep(min(left, self.policy.delay(self.failures, self.draw())))
        return True

    def _open(self) -> None:
        if self.stopping.is_set() or self._is_complete():
            return
        self.failures, self.attempts = self.failures + 1, self.attempts + 1
        duration = None if self.duration is None else self._remaining()
        try:
            source = self.open_again(self.timing._replace(duration=duration))
            assert isinstance(source, StreamSource)
            self.inner = source
        except InputError as error:
            self.reason = _reason(error)

    def _close(self) -> None:
        if self.inner is not None:
            self.inner.close()
        self.inner = None

    def stop(self) -> None:
        self.stopping.set()

    def close(self) -> None:
        self._close()


def _reason(error: Exception) -> str:
    """Why a source is lost. Of an `InputError` only what is wrong, since the rest names the source; of others the kind alone,
    since FFmpeg's text has the address in it."""
    return shortened(str(error.got)) if isinstance(error, InputError) else type(error).__name__
