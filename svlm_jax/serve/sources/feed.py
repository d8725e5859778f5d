"""Sources as the live page plays them: at the pace of the clock, with more frames for viewers than for the model.

Owns the clock of a stream: which wall-clock time a second of the video belongs to. All feeds start at a tick of one grid, so
that their chunks are complete at the same moment and share a step of the batch. Does not know the model. Runs in the threads of
players. Units: seconds. Axes: H, W pixels.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from svlm_jax.media.chunks import Interruption, Source, Timing
from svlm_jax.media.image import letterbox
from svlm_jax.media.reconnect import Reconnect
from svlm_jax.media.sources import Opener, open_source, scheme_of
from svlm_jax.serve.sources.images import Box, encode_jpeg, fit_size

VIEWER_FPS = 8.0  # about; a multiple of the model's rate


class FeedConfig(NamedTuple):
    """What all feeds of a server share. fps: of the model; box: the largest frame."""

    fps: float
    chunk_seconds: float
    box: Box
    first_chunk_seconds: float | None = None

    @property
    def stride(self) -> int:
        """Frames for viewers for each frame of the model."""
        return max(1, round(VIEWER_FPS / self.fps))


class FrameSink(NamedTuple):
    """Where frames for viewers go. send: takes the second of the video and JPEG; is_watched: whether anybody would see one."""

    send: Callable[[float, bytes], None]
    is_watched: Callable[[], bool]


class Feed(Source):
    """Frames at the pace of the clock: each is drawn or decoded when it is due, those for viewers only while somebody
    watches."""

    live = True
    is_game = False  # whether it is a generated game, which is all that the shipped model knows
    metrics_label = "client"  # `source` of its metrics: the title of a listed one, else one of a few constants

    def __init__(self, name: str, config: FeedConfig, sink: FrameSink) -> None:
        super().__init__(name, Timing(config.fps, config.chunk_seconds, first_chunk_seconds=config.first_chunk_seconds))
        self.config, self.sink = config, sink
        self.stop_event = threading.Event()
        self.frame_size: tuple[int, int] | None = None  # width, height of all frames; that of the first one in the box
        self.position = 0.0  # second of the newest frame

    def draw_calls(self) -> Iterator[Callable[[], np.ndarray] | Interruption]:
        """Yields a function per frame that returns it, `config.fps * stride()` a second; frames nobody needs are not drawn."""
        raise NotImplementedError

    def stride(self) -> int:
        return self.config.stride

    def is_paced_here(self) -> bool:
        """Whether frames must wait here until they are due; a live source is paced by its camera."""
        return True

    def first_frame_time(self) -> float:
        """The next tick of the grid that all feeds share."""
        period = self.config.chunk_seconds
        # on the monotonic clock, which all threads of the process share
        return (time.monotonic() // period + 1) * period

    def frames(self) -> Iterator[np.ndarray | Interruption]:
        stride, paced = self.stride(), self.is_paced_here()
        interval, start, index = 1 / (self.config.fps * stride), None, 0
        for draw in self.draw_calls():
            if isinstance(draw, Interruption):
                yield draw
                index = round((self.next_start - self.start) / interval)
                continue
            start = self.first_frame_time() if start is None else start
            due = start + index * interval
            if self.stop_event.wait(due - time.monotonic() if paced else 0):  # sleeps, unless `stop` wakes it
                return
            # a late frame for viewers is skipped, to catch up; the model must get all of its frames
            is_late = paced and time.monotonic() > due + interval
            for_model, for_viewers = index % stride == 0, self.sink.is_watched()
            self.position = index * interval
            index += 1
            if not for_model and (is_late or not for_viewers):
                continue
            image = self._fit(draw())
            if for_viewers:
                self.sink.send(self.position, encode_jpeg(image))
            if for_model:
                yield image

    def _fit(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.frame_size is None:
            self.frame_size = fit_size(width, height, self.config.box)
        return letterbox(image, self.frame_size)

    def error_line(self, error: Exception) -> str:
        """The reason that viewers read when this error has ended the stream."""
        return str(error)[:300] or type(error).__name__

    def stop(self) -> None:
        """No more frames; from any thread."""
        self.stop_event.set()


class OpenedFeed(Feed):
    """A source that `open_source` opens. Viewers of a private one never read its address, in no title and no error line."""

    def __init__(
        self,
        config: FeedConfig,
        sink: FrameSink,
        address: str,
        *,
        title: str,
        is_private: bool,
        schemes: Mapping[str, Opener],
        reconnect: Reconnect | None = None,
    ) -> None:
        super().__init__(title, config, sink)
        self.address, self.is_private = address, is_private
        self.is_game = scheme_of(address, schemes) == "match"
        fps = config.fps * config.stride
        timing = {"fps": fps, "chunk_seconds": config.chunk_seconds}
        self.inner = open_source(address, **timing, schemes=schemes, reconnect=reconnect)
        self.notes = self.inner.notes  # shared: jumps of its clock and damage become notes of this feed's chunks

    def draw_calls(self) -> Iterator[Callable[[], np.ndarray] | Interruption]:
        yield from self.inner.lazy_frames()
        self.ending = self.inner.ending or "the video is over"

    def is_paced_here(self) -> bool:
        return not self.inner.live

    def error_line(self, error: Exception) -> str:
        line = mask_address(str(error), self.address, self.name)[:300] or type(error).__name__
        if not self.is_private:
            return line
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)
        return "the source does not play; whoever runs the server sees why"

    def stop(self) -> None:
        super().stop()
        self.inner.stop()

    def close(self) -> None:
        self.inner.close()


def mask_address(text: str, address: str, title: str) -> str:
    """A line about a source without user and password: the title instead of its URL, and no user in any other URL."""
    text = text.replace(address, title) if "://" in address else text
    return re.sub(r"(\w://)[^\s/]*@", r"\1", text)
