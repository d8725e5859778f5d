"""Sources as the live page plays them: at the pace of the clock, with more pictures to look at than the model is given.

Owns the clock of a stream (seconds of the video against those of the wall) and what pictures look like on the way to a browser
(JPEG). All feeds begin at a tick of one grid, so that their chunks are complete at the same moment and share a step. Does not
know the model. Units: seconds, pixels. Axes: H, W pixels.
"""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from svlm_jax.data.image import UNREADABLE
from svlm_jax.data.sources import Source, open_source
from svlm_jax.errors import InputError
from svlm_jax.serve.limits import Limits

SHOWN = 8.0  # pictures a second that viewers get, about
QUALITY = 72  # of JPEG
FORMATS = ("JPEG", "PNG", "WEBP")
THINNEST = 4.0  # largest ratio of sides

Show = Callable[[float, bytes], None]  # second of the video, JPEG


class Box(NamedTuple):
    """The largest picture of a session, in pixels."""

    width: int
    height: int


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
        super().__init__(name, clock.fps, clock.seconds, 0.0, None)
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

    def pictures(self) -> Iterator[np.ndarray]:
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


class MatchFeed(Feed):
    """A generated ball game: drawn only when somebody, or the model, looks."""

    def __init__(self, seed: int, *rest: Any) -> None:
        from svlm_jax.world.film import Film

        super().__init__(f"match {seed}", *rest)
        self.film = Film(seed)

    def takes(self) -> Iterator[Callable[[], np.ndarray]]:
        from svlm_jax.world.film import moments

        for moment in moments(self.film.world, self.clock.fps * self.clock.stride):
            self.film.world.forget()
            yield partial(self.film.draw, moment)


class OpenedFeed(Feed):
    """A file, folder, webcam or URL that `open_source` opens. Of a `private` one nobody is told where it lies."""

    def __init__(self, source: str, title: str, private: bool, *rest: Any) -> None:
        super().__init__(title, *rest)
        self.private, clock = private, self.clock
        self.inner = open_source(source, fps=clock.fps * clock.stride, chunk_seconds=clock.seconds)
        self.told = self.inner.told  # jumps of its clock and damage: notes of our chunks

    def takes(self) -> Iterator[Callable[[], np.ndarray]]:
        for image in self.inner.pictures():
            yield lambda image=image: image
        self.ending = self.inner.ending or "the video is over"

    def paced(self) -> bool:
        return not self.inner.live

    def reason(self, error: Exception) -> str:
        if not self.private:
            return super().reason(error)
        print(f"{self.name}: {error}", file=sys.stderr, flush=True)
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

    def put(self, data: bytes) -> None:
        """A picture as the browser sent it. Decoded here: the caller is told of what is wrong with it.

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


def fitted(size: tuple[int, int], box: Box) -> tuple[int, int]:
    """Width and height of a picture of that size, scaled down into the box.

    Raises:
        InputError: a side more than four times the other.
    """
    width, height = size
    if max(width, height) > THINNEST * min(width, height):
        raise InputError("picture", f"{width}x{height} px", f"sides within 1:{THINNEST:g}", "crop it")
    scale = min(1.0, box.width / width, box.height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as JPEG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def decoded(data: bytes, limits: Limits, box: Box) -> np.ndarray:
    """A client's picture as uint8 [H, W, 3], scaled down into the box. Its size is looked at before a pixel is decoded.

    Raises:
        InputError: too many bytes or pixels, no JPEG, PNG or WebP, broken, or too thin.
    """
    if len(data) > limits.camera_bytes:
        raise InputError("picture", f"{len(data)} bytes", f"at most {limits.camera_bytes}", "send smaller ones")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.camera_pixels:
                raise InputError("picture", f"{width}x{height} px", f"at most {limits.camera_pixels} px", "send smaller ones")
            size = fitted((width, height), box)
            image.draft("RGB", size)  # JPEG: decodes at a fraction of the size already
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    except InputError:
        raise
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        got = f"{type(error).__name__}"
        raise InputError("picture", got, f"{', '.join(FORMATS)} that can be read", "send JPEG") from None
