"""Where the video of a stream comes from: a file, a folder of frames, a webcam, a URL or a generated match, as chunks of equal
length.

Owns the sampling of live pictures by the clock and what is said when a source ends or breaks. Does not know the model, nor
whether anyone keeps up (`player`). numpy; PyAV only inside the functions that need it. Units: seconds counted from the first
picture of the source. Axes: F frames · H, W pixels.
"""

import itertools
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from svlm_jax.data.image import existing_file, load_image
from svlm_jax.data.video import SLACK, check_clock, claimed_length, picture, sample_video, video_stream
from svlm_jax.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 10.0  # seconds without an answer, and without a picture
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
REMEDY = "check that it plays elsewhere"


class Chunk(NamedTuple):
    """One step of video. number: counted from the stream's start. start, end: seconds. frames uint8 [F, H, W, 3], as many in
    every chunk. note: what is unusual about it, or ""."""

    number: int
    start: float
    end: float
    frames: np.ndarray
    note: str = ""


class Source(AbstractContextManager, ABC):
    """A video as chunks, once. live: it does not wait for us. total: chunks, or None when that is not known before."""

    live: bool = False
    total: int | None = None

    def __init__(self, name: str, fps: float | int, seconds: float | int, start: float | int, duration: float | int | None):
        self.name, self.fps, self.seconds, self.start, self.duration = name, fps, seconds, start, duration
        self.ending = ""  # why a source that had no end has ended

    @abstractmethod
    def pictures(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] `fps` times a second from `start` on."""

    def __iter__(self) -> Iterator[Chunk]:
        count = round(self.fps * self.seconds)
        waiting: list[np.ndarray] = []
        number = 0
        for image in self.pictures():
            waiting.append(image)
            if len(waiting) == count:
                yield self._chunk(number, waiting, "")
                waiting, number = [], number + 1
        if waiting:
            missing = count - len(waiting)
            note = f"ends {missing / self.fps:g} s early: its last frame stands for the missing {missing}"
            yield self._chunk(number, waiting + waiting[-1:] * missing, note)

    def _chunk(self, number: int, frames: list[np.ndarray], note: str) -> Chunk:
        start = self.start + number * self.seconds
        return Chunk(number, start, start + self.seconds, np.stack(frames), note)

    def _chunks_in(self, length: float | None) -> int | None:
        """Chunks of a video of that length."""
        if length is None and self.duration is None:
            return None
        left = min(float("inf") if length is None else length - self.start, self.duration or float("inf"))
        return max(0, int(np.ceil(left / self.seconds - SLACK)))

    def close(self) -> None:
        """Let go of files, cameras and connections."""

    def __exit__(self, *_: object) -> None:
        self.close()


class FileSource(Source):
    """A video file, seeked and sampled by its time stamps."""

    def __init__(self, path: Path, *clock: Any) -> None:
        super().__init__(f"video {path}", *clock)
        self.path = path
        self.total = self._chunks_in(claimed_length(path))

    def pictures(self) -> Iterator[np.ndarray]:
        for _, image in sample_video(self.path, self.fps, self.start, self.duration):
            yield image


class FolderSource(Source):
    """A folder of images in natural order (frame2 before frame10), taken `fps` a second; all of the size of the first."""

    def __init__(self, path: Path, *clock: Any) -> None:
        super().__init__(f"folder {path}", *clock)
        names = [name for name in os.listdir(path) if Path(name).suffix.lower() in IMAGES]
        self.files = [path / name for name in sorted(names, key=_natural)]
        first = round(self.start * self.fps)
        last = None if self.duration is None else first + round(self.duration * self.fps)
        if not self.files:
            raise InputError(self.name, "no images", f"files that end with {' '.join(sorted(IMAGES))}", "name another folder")
        if first >= len(self.files):
            got, expected = f"{self.start:g} s", f"less than {len(self.files) / self.fps:g} s, where {path} ends"
            raise InputError("start", got, expected, "choose an earlier start")
        self.total = self._chunks_in(len(self.files) / self.fps)
        self.files = self.files[first:last]

    def pictures(self) -> Iterator[np.ndarray]:
        size = None
        for file in self.files:
            image = load_image(file)
            if size is not None and image.shape[:2] != size:
                got, expected = f"{image.shape[1]}x{image.shape[0]} px", f"{size[1]}x{size[0]} px, as the first has"
                raise InputError(f"frame {file}", got, expected, "make all frames of one size")
            size = image.shape[:2]
            yield image


class StreamSource(Source):
    """A webcam or a URL, through PyAV. Frame k is the one that was on show k / fps seconds after the first; when it is late,
    the picture stands still. A camera that goes away ends the stream, which says so in `ending`."""

    def __init__(self, name: str, address: str, form: str | None, *clock: Any) -> None:
        super().__init__(name, *clock)
        import av
        from av.error import FFmpegError

        options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
        try:
            timeout = (OPEN_TIMEOUT, READ_TIMEOUT)
            self.container: InputContainer = av.open(address, format=form, options=options, timeout=timeout)
        except (FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(name, reason, "a source that opens", REMEDY) from None
        try:
            self.stream = video_stream(self.container, Path(address))
        except InputError:
            self.container.close()
            raise
        length = self.container.duration or 0
        self.live = length <= 0 or form is not None
        self.total = self._chunks_in(None if self.live else length / 1e6)
        self.skip = 0.0 if self.live else float(self.start)  # of a live source, `start` only names its first second

    def pictures(self) -> Iterator[np.ndarray]:
        held, size, sent, gone = None, None, 0, 0.0
        until = float("inf") if self.duration is None else self.skip + self.duration
        for seen, length, frame in self._frames():
            size = size or (frame.width, frame.height)
            while held is not None and self.skip + sent / self.fps < min(seen, until) - SLACK:
                yield held
                sent += 1
            due, gone = self.skip + sent / self.fps, seen + length
            if due >= until - SLACK:
                return
            if seen + 1 / self.fps >= due:  # one that no sample can fall on is never converted
                held = picture(frame, size)
        if held is None:
            raise InputError(self.name, self.ending or "no picture", "a source with pictures", REMEDY)
        while not sent or self.skip + sent / self.fps < min(gone, until) - SLACK:  # nothing followed the last one
            yield held
            sent += 1

    def _frames(self) -> Iterator[tuple[float, float, Any]]:
        """(second, seconds on show, frame)"""
        from av.error import FFmpegError

        origin, began = None, None
        self.stream.thread_type = "AUTO"
        usual = 1 / float(self.stream.guessed_rate) if self.stream.guessed_rate else 0.0
        try:
            for frame in self.container.decode(self.stream):
                now = time.monotonic()
                began = now if began is None else began
                stamp = None if frame.pts is None else float(frame.pts * (self.stream.time_base or 1))
                origin = stamp if origin is None else origin
                yield (now - began if stamp is None or origin is None else stamp - origin), usual, frame
            self.ending = "the source has ended"
        except (FFmpegError, OSError) as error:
            self.ending = f"the source broke off: {type(error).__name__} ({getattr(error, 'strerror', None) or error})"

    def close(self) -> None:
        self.container.close()


class MatchSource(Source):
    """match:SEED, a game that never ends, drawn as it is watched. With :unseen behind it: pitches and shades that no training
    film has."""

    def __init__(self, name: str, *clock: Any) -> None:
        super().__init__(name, *clock)
        from svlm_jax.world.film import Film

        if not (parts := re.fullmatch(r"match:(\d+)(:unseen)?", name)):
            raise InputError("source", repr(name), "match:SEED or match:SEED:unseen", "for example match:1000000")
        self.film = Film(int(parts[1]), unseen=bool(parts[2]))
        self.total = self._chunks_in(None)

    def pictures(self) -> Iterator[np.ndarray]:
        count = None if self.duration is None else round(self.duration * self.fps)
        for image in itertools.islice(self.film.pictures(self.fps, self.start), count):
            self.film.world.forget()
            yield image


def open_source(
    source: str | int | os.PathLike,
    *,
    fps: float | int = 2.0,
    chunk_seconds: float | int = 1.0,
    start: float | int = 0.0,
    duration: float | int | None = None,
) -> Source:
    """Open a video file, a folder of frames, a webcam by its number, a URL, or "match:SEED": a game that never ends.

    Args:
        fps: frames a second that are taken.
        start: second to start at; of a live source, the name of its first second.
        duration: seconds to watch; to the end (of a live source: for ever) without it.

    Raises:
        InputError: a wrong argument; nothing there, no video in it, or nothing that can be opened.
    """
    check_clock(fps, start, duration)
    clock, name = (fps, chunk_seconds, start, duration), str(source)
    if name.startswith("match:"):
        return MatchSource(name, *clock)
    if name.isdigit():
        form, address = WEBCAMS.get(sys.platform, WEBCAMS["linux"])
        return StreamSource(f"webcam {name}", address.format(name), form, *clock)
    if re.match(r"[a-z][a-z0-9+.\-]+://", name, re.IGNORECASE):
        return StreamSource(name, name, None, *clock)
    if Path(name).is_dir():
        return FolderSource(Path(name), *clock)
    return FileSource(existing_file(name, "video"), *clock)


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
