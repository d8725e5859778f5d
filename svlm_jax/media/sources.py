"""Where the video of a stream comes from: a file, a folder of frames, a webcam or a URL, as chunks of equal length.

Owns which frames of a live source are taken, and why a source ended. Does not know the model, nor whether its reader keeps up
(`player`). numpy; PyAV only inside the functions that need it. Units: seconds counted from the first frame of the source.
Axes: F frames · H, W pixels.
"""

import errno
import math
import os
import re
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.container import Reader, can_jump, declared_length
from svlm_jax.media.display import FrameContext, display_size, to_rgb
from svlm_jax.media.image import load_image
from svlm_jax.media.paths import existing_file, existing_path, is_address, masked
from svlm_jax.media.video import SLACK, check_clock, sample_video

if TYPE_CHECKING:
    from av.container import InputContainer

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 10.0  # seconds without an answer, and without a frame
MAX_NOTES = 5  # of one chunk; the rest is counted
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
WEBCAM = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)  # its number, as one writes it: 0001 is a folder of a dataset
REMEDY = "check that it plays elsewhere"


class Chunk(NamedTuple):
    """One step of video. number: counted from the stream's start. start, end: seconds. frames uint8 [F, H, W, 3], as many in
    every chunk. note: what is unusual about it, or ""."""

    number: int
    start: float
    end: float
    frames: np.ndarray
    note: str = ""


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
        endless: it has no end of its own.
        total: chunks, or None where that is not known before.
        ending: why a source without an end of its own has ended.
        notes: (second, what is unusual at it) of which no chunk has a note yet.
    """

    live: bool = False
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

    @abstractmethod
    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] `fps` times a second from `start` on."""

    def lazy_frames(self) -> Iterator[Callable[[], np.ndarray]]:
        """`frames`, each as a function that returns it: a source that draws its frames draws only those that are called."""
        for frame in self.frames():
            yield lambda frame=frame: frame

    def __iter__(self) -> Iterator[Chunk]:
        count = round(self.fps * self.first_chunk_seconds)
        frames: list[np.ndarray] = []
        number = 0
        for frame in self.frames():
            frames.append(frame)
            if len(frames) == count:
                yield self._chunk(number, frames, "")
                frames, number, count = [], number + 1, round(self.fps * self.chunk_seconds)
        if frames:
            missing = count - len(frames)
            note = f"ends {missing / self.fps:g} s early: its last frame stands for the missing {missing}"
            yield self._chunk(number, frames + frames[-1:] * missing, note)
        elif not number:
            raise InputError(self.name, "no frame", "a source with frames", REMEDY)
        for _, text in self.notes:  # of seconds after the last chunk
            warnings.warn(f"{self.name}: {text}", stacklevel=2)

    def _chunk(self, number: int, frames: list[np.ndarray], note: str) -> Chunk:
        start, seconds = self.start, self.first_chunk_seconds
        if number:
            start, seconds = self.start + number * self.chunk_seconds + self._first_excess, self.chunk_seconds
        end = start + seconds
        notes = [text for second, text in self.notes if second < end]
        notes[MAX_NOTES:] = [f"and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else []
        notes += [note] if note else []
        self.notes[:] = [(second, text) for second, text in self.notes if second >= end]
        return Chunk(number, start, end, np.stack(frames), "; ".join(notes))

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


class FileSource(Source):
    """A video file, seeked and sampled by its time stamps."""

    def __init__(self, path: Path, timing: Timing) -> None:
        super().__init__(f"video {shortened(str(path))}", timing)
        self.path = path
        self.total = self._chunks_in(declared_length(path))

    def frames(self) -> Iterator[np.ndarray]:
        on_note = lambda second, text: self.notes.append((second, text))  # noqa: E731
        for _, frame in sample_video(self.path, self.fps, self.start, self.duration, on_note):
            yield frame


class FolderSource(Source):
    """A folder of images in natural order (frame2 before frame10), taken `fps` a second; all of the size of the first."""

    def __init__(self, path: Path, timing: Timing) -> None:
        super().__init__(f"folder {shortened(str(path))}", timing)
        # hidden files are no frames: macOS writes a ._NAME for every NAME
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
        names = [name for name in names if Path(name).suffix.lower() in IMAGES]
        self.files = [path / name for name in sorted(names, key=_natural)]
        first = round(self.start * self.fps)
        last = None if self.duration is None else first + math.ceil(self.duration * self.fps - SLACK)
        if not self.files:
            raise InputError(self.name, "no images", f"files that end with {' '.join(sorted(IMAGES))}", "name another folder")
        if first >= len(self.files):
            got, expected = f"{self.start:g} s", f"less than {len(self.files) / self.fps:g} s, where it ends"
            raise InputError("start", got, expected, "choose an earlier start")
        self.total = self._chunks_in(len(self.files) / self.fps)
        self.files = self.files[first:last]

    def frames(self) -> Iterator[np.ndarray]:
        size = None
        for file in self.files:
            frame = load_image(file)
            if size is not None and frame.shape[:2] != size:
                got, expected = f"{frame.shape[1]}x{frame.shape[0]} px", f"{size[1]}x{size[0]} px, as the first has"
                raise InputError(f"frame {shortened(str(file))}", got, expected, "make all frames of one size")
            size = frame.shape[:2]
            yield frame


class StreamSource(Source):
    """A webcam or a URL, through PyAV. Frame k is the one that was on screen k / fps seconds after the first; when it is late,
    the last one stands still. A camera that goes away ends the stream, and `ending` says why; no password is in it, nor in
    `name`."""

    clock = staticmethod(time.monotonic)  # arrival of packets: whether a gap in their stamps is time that passed

    def __init__(self, name: str, address: str, container_format: str | None, timing: Timing) -> None:
        super().__init__(name, timing)
        import av
        from av.error import FFmpegError

        self.address = address
        options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
        started = time.monotonic()
        try:
            timeout = (OPEN_TIMEOUT, READ_TIMEOUT)
            self.container: InputContainer = av.open(address, format=container_format, options=options, timeout=timeout)
        except (FFmpegError, OSError, ValueError) as error:
            timed_out = time.monotonic() - started >= OPEN_TIMEOUT  # RTSP then calls the answer invalid
            reason = f"no answer in {OPEN_TIMEOUT:g} s" if timed_out else self._reason(error)
            raise InputError(name, reason, "a source that opens", self._remedy(address)) from None
        length = self.container.duration or 0
        self.live = length <= 0 or container_format is not None
        self.endless = self.live
        self.skip = 0.0 if self.live else float(self.start)  # of a live source, `start` only names its first second
        # not threads by frame, each of which would delay a frame, and lose it when the connection is cut
        options = {"now": self._now, "patience": READ_TIMEOUT} if self.live else {}
        try:
            self.reader = Reader(self.container, name, on_note=self._note, threads="SLICE", **options)
        except InputError:
            self.container.close()
            raise
        # of a transport stream the length is that of its clock, which may jump
        is_known = not self.live and (not can_jump(self.container) or self.container.format.name == "hls")
        self.total = self._chunks_in(length / 1e6 if is_known else None)

    def _now(self) -> float:
        return self.clock()

    def _note(self, second: float, text: str) -> None:
        if second >= self.skip or not second:  # what is before the start is read, and not watched
            self.notes.append((second + self.start - self.skip, text))

    def _reason(self, error: Exception) -> str:
        """What went wrong, without the address, in which there may be a password."""
        from av.error import ExitError

        if isinstance(error, ExitError):
            return f"nothing came for {READ_TIMEOUT:g} s"
        return shortened((getattr(error, "strerror", None) or str(error)).replace(self.address, self.name))

    def _remedy(self, container_format: str) -> str:
        """container_format: or the name of the file where that is not known."""
        if self.address.lower().startswith("http") and re.search(r"mp4|mov|m4v", container_format.lower()):
            return f"{REMEDY}; an MP4 with its index at the end needs a server with ranges: remux with -movflags +faststart"
        return REMEDY

    def frames(self) -> Iterator[np.ndarray]:
        previous, image, size, num_sent, end = None, None, None, 0, 0.0
        until = math.inf if self.duration is None else self.skip + self.duration
        for second, length, frame in self.reader.frames():
            size = size or display_size(frame)
            while image is not None and self.skip + num_sent / self.fps < min(second, until) - SLACK:
                yield image
                num_sent += 1
            due, end = self.skip + num_sent / self.fps, second + length
            if due >= until - SLACK:
                return
            if image is None or second + 1 / self.fps >= due:  # one that no sample can fall on is never converted
                image = to_rgb(FrameContext(frame, previous), size)
            previous = frame
        self.ending = self._ending()
        self.reader.damage.report(end, is_last=True)
        if image is None:
            remedy = self._remedy(self.container.format.name)
            raise InputError(self.name, self.ending or "no frame", "a source with frames", remedy)
        while not num_sent or self.skip + num_sent / self.fps < min(end, until) - SLACK:  # no frame follows the last one
            yield image
            num_sent += 1

    def _ending(self) -> str:
        error = self.reader.read_error
        if self.reader.gave_up:
            return f"nothing could be decoded for {READ_TIMEOUT:g} s"
        # HTTP without a length has no other end than that of the connection, which FFmpeg takes for a failure
        is_end = isinstance(error, OSError) and error.errno == errno.EIO and self.live and self.address[:4].lower() == "http"
        if error is None or is_end:
            return "the source has ended"
        return f"the source broke off: {self._reason(error)}"

    def close(self) -> None:
        self.container.close()


def _open_path(name: str, timing: Timing) -> Source:
    path = existing_path(name)
    return (
        FolderSource(path, timing) if path is not None and path.is_dir() else FileSource(existing_file(name, "video"), timing)
    )


def _open_webcam(name: str, timing: Timing) -> Source:
    container_format, address = WEBCAMS.get(sys.platform, WEBCAMS["linux"])
    return StreamSource(f"webcam {name}", address.format(name), container_format, timing)


def _open_url(name: str, timing: Timing) -> Source:
    return StreamSource(masked(name), name, None, timing)


Opener = Callable[[str, Timing], Source]
SCHEMES: Mapping[str, Opener] = {"file": _open_path, "webcam": _open_webcam, "url": _open_url}


def scheme_of(name: str | int, schemes: Mapping[str, Opener] = SCHEMES) -> str:
    """The key of `schemes` that opens a source of this name.

    "file" for a file or folder that exists, whatever else its name could mean; "webcam" for a number; the text before the first
    colon if `schemes` has it; "url" for other addresses; "file" for the rest, whose opener then says that there is none.
    """
    text = str(name)
    if not isinstance(name, int) and existing_path(text) is not None:
        return "file"
    if WEBCAM.fullmatch(text):
        return "webcam"
    prefix, colon, _ = text.partition(":")
    if colon and prefix in schemes and prefix not in SCHEMES:
        return prefix
    return "url" if is_address(text) else "file"


def open_source(
    source: str | int | os.PathLike | Source,
    *,
    fps: float | int = 2.0,
    chunk_seconds: float | int = 1.0,
    start: float | int = 0.0,
    duration: float | int | None = None,
    first_chunk_seconds: float | int | None = None,
    schemes: Mapping[str, Opener] = SCHEMES,
) -> Source:
    """Open a video file, a folder of frames, a webcam by its number or a URL.

    Args:
        source: its name; or an open source, which is returned if it has this `fps` and lengths of chunks.
        fps: frames a second that are taken.
        start: second to start at; of a live source, the name of its first second.
        duration: seconds to watch; to the end (of a live source: for ever) without it.
        first_chunk_seconds: length of the first chunk; that of the others by default.
        schemes: how each kind of source is opened; more kinds are `{**SCHEMES, "match": opener}`, which opens "match:...".

    Raises:
        InputError: a wrong argument; nothing there, no video in it, or nothing that can be opened.
    """
    timing = Timing(fps, chunk_seconds, start, duration, first_chunk_seconds)
    if isinstance(source, Source):
        return _check_open(source, timing)
    name = os.fsdecode(source) if isinstance(source, os.PathLike) else source
    return schemes[scheme_of(name, schemes)](str(name), timing)


def _check_open(source: Source, timing: Timing) -> Source:
    """`source`, if it is sampled as `timing` says."""
    first = timing.chunk_seconds if timing.first_chunk_seconds is None else timing.first_chunk_seconds
    if (source.fps, source.chunk_seconds) != (timing.fps, timing.chunk_seconds):
        got = f"{source.name} at {source.fps:g} fps in chunks of {source.chunk_seconds:g} s"
        raise InputError("source", got, f"{timing.fps:g} fps and {timing.chunk_seconds:g} s", "open it with these")
    if source.first_chunk_seconds != first:
        got = f"{source.name} with a first chunk of {source.first_chunk_seconds:g} s"
        raise InputError("source", got, f"one of {first:g} s", "open it with this first_chunk_seconds")
    for field, value, default in (("start", timing.start, 0.0), ("duration", timing.duration, None)):
        if value != default:
            raise InputError(field, f"{value:g} s for an open source", "none", f"open the source with this {field}")
    return source


def _check_chunks(fps: float | int, chunk_seconds: float | int, duration: float | int | None) -> None:
    count = fps * chunk_seconds
    if not 1 <= count < float("inf") or abs(count - round(count)) > SLACK:
        raise InputError(
            "chunk_seconds", f"{chunk_seconds:g} s at {fps:g} fps", "a whole number of frames", "1 s at 2 fps is usual"
        )
    if duration is not None and duration < 1 / fps - SLACK:
        got = f"{duration:g} s, which is shorter than one frame"
        raise InputError("duration", got, f"{1 / fps:g} s or more at {fps:g} fps", "watch for longer")


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
