"""Sources as the live page plays them: at the pace of the clock, with more pictures to look at than the model is given.

Owns the clock of a stream (seconds of the video against those of the wall). All feeds begin at a tick of one grid, so that
their chunks are complete at the same moment and share a step. Does not know the model. Units: seconds. Axes: H, W pixels.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from svlm_jax.media.sources import Opener, Source, Timing, open_source
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.pictures import Box, decoded, fitted, header, jpeg

SHOWN = 8.0  # pictures a second that viewers get, about

Show = Callable[[float, bytes], None]  # second of the video, JPEG


class Clock(NamedTuple):
    """What all feeds of a session share. fps: of the model; seconds: of a chunk."""

    fps: float
    seconds: float
    box: Box

    @property
    def stride(self) -> int:
        """Pictures shown for one that the model gets."""
        return max(1, round(SHOWN / self.fps))


class Feed(Source):
    """Pictures by the clock: each is made when it is due, those that only viewers would see only while somebody watches."""

    live = True

    def __init__(self, name: str, clock: Clock, show: Show, watched: Callable[[], bool]) -> None:
        super().__init__(name, Timing(clock.fps, clock.seconds))
        self.clock, self.show, self.watched = clock, show, watched
        self.gone = threading.Event()
        self.size: tuple[int, int] | None = None  # of what the model gets: width, height

    def takes(self) -> Iterator[Callable[[], np.ndarray]]:
        """What makes picture after picture, `clock.fps * clock.stride` a second."""
        raise NotImplementedError

    def begin(self) -> float:
        """When the first picture is due, on the grid that all feeds share."""
        seconds = self.clock.seconds
        return (time.monotonic() // seconds + 1) * seconds

    def frames(self) -> Iterator[np.ndarray]:
        stride = self.stride()
        each, began = 1 / (self.clock.fps * stride), None
        for number, take in enumerate(self.takes()):
            began = self.begin() if began is None else began
            if self.gone.wait(began + number * each - time.monotonic() if self.paced() else 0):
                return
            late = self.paced() and time.monotonic() > began + (number + 1) * each
            wanted, seen = number % stride == 0, self.watched()
            if not wanted and (late or not seen):
                continue
            image = self._fitted(take())
            if seen:
                self.show(number * each, jpeg(image))
            if wanted:
                yield image

    def stride(self) -> int:
        return self.clock.stride

    def paced(self) -> bool:
        """Whether pictures have to be held back until they are due."""
        return True

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        if self.size is None:
            self.size = fitted((image.shape[1], image.shape[0]), self.clock.box)
        if (image.shape[1], image.shape[0]) == self.size:
            return image
        return np.asarray(Image.fromarray(image).resize(self.size, Image.Resampling.BILINEAR, reducing_gap=2.0))

    def reason(self, error: Exception) -> str:
        """What viewers are told of what broke it."""
        return str(error)[:300] or type(error).__name__

    def stop(self) -> None:
        """No more pictures; from any thread."""
        self.gone.set()


class OpenedFeed(Feed):
    """A source that `open_source` opens; a generated game is drawn only when somebody, or the model, looks. Of a
    `private` one nobody is told where it lies."""

    def __init__(self, source: str, title: str, private: bool, schemes: Mapping[str, Opener], *rest: Any) -> None:
        super().__init__(title, *rest)
        self.private, self.address, clock = private, source, self.clock
        fps = clock.fps * clock.stride
        self.inner = open_source(source, fps=fps, chunk_seconds=clock.seconds, schemes=schemes)
        self.notes = self.inner.notes  # jumps of its clock and damage: notes of our chunks

    def takes(self) -> Iterator[Callable[[], np.ndarray]]:
        yield from self.inner.lazy_frames()
        self.ending = self.inner.ending or "the video is over"

    def paced(self) -> bool:
        return not self.inner.live

    def reason(self, error: Exception) -> str:
        line = masked(str(error), self.address, self.name)[:300] or type(error).__name__
        if not self.private:
            return line
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)
        return "the source does not play; whoever runs the server sees why"

    def close(self) -> None:
        self.inner.close()


class CameraFeed(Feed):
    """A browser's camera: the newest picture that came, `fps` times a second; it stands still for a while when none comes."""

    def __init__(self, limits: Limits, *rest: Any) -> None:
        super().__init__("camera", *rest)
        self.limits, self.came = limits, time.monotonic()
        self.newest = np.zeros((1, 1, 3), np.uint8)
        self.arrived = threading.Event()

    def stride(self) -> int:
        return 1

    def check(self, data: bytes) -> None:
        """Refuse a picture as the browser sent it by its header alone.

        Raises:
            InputError: as `pictures.header` does, or too thin.
        """
        known = header(data, self.limits)
        fitted((known.width, known.height), self.clock.box)

    def put(self, data: bytes) -> None:
        """A picture as the browser sent it. Decoded here: takes as long as that takes.

        Raises:
            InputError: too large, of another format, or broken.
        """
        self.newest, self.came = decoded(data, self.limits, self.clock.box), time.monotonic()
        self.arrived.set()

    def takes(self) -> Iterator[Callable[[], np.ndarray]]:
        while not self.gone.is_set():
            quiet = time.monotonic() - self.came
            if quiet > self.limits.camera_silence:
                self.ending = f"no picture from the camera for {quiet:.0f} s"
                return
            if self.arrived.wait(0.25):
                yield lambda: self.newest

    def stop(self) -> None:
        super().stop()
        self.arrived.set()


def masked(text: str, address: str, title: str) -> str:
    """A line about a source without user and password: the title in place of a URL, and no user in any other."""
    text = text.replace(address, title) if "://" in address else text
    return re.sub(r"(\w://)[^\s/]*@", r"\1", text)
