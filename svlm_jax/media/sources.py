"""Where the video of a stream comes from: a file, a folder of frames, a webcam or a URL, as chunks of equal length.

Owns the sampling of live pictures by the clock and what is said when a source ends or breaks. Does not know the model, nor
whether anyone keeps up (`player`). numpy; PyAV only inside the functions that need it. Units: seconds counted from the first
picture of the source. Axes: F frames · H, W pixels.
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
from svlm_jax.media.container import Reader, claimed_length, jumps
from svlm_jax.media.image import load_image
from svlm_jax.media.paths import existing_file, existing_path, is_address, masked
from svlm_jax.media.picture import Shown, picture, shown_size
from svlm_jax.media.video import SLACK, check_clock, sample_video

if TYPE_CHECKING:
    from av.container import InputContainer

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 10.0  # seconds without an answer, and without a picture
NOTES = 5  # of one chunk that are told one by one
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
WEBCAM = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
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
    """Which pictures of a source are taken: `fps` a second from second `start` on, for `duration` seconds or (None) to its end.
    In chunks of `chunk_seconds`."""

    fps: float | int = 2.0
    chunk_seconds: float | int = 1.0
    start: float | int = 0.0
    duration: float | int | None = None


class Source(AbstractContextManager, ABC):
    """A video as chunks, once. live: it does not wait for us. endless: it has no end of its own. total: chunks, or None when
    that is not known before."""

    live: bool = False
    endless: bool = False
    total: int | None = None

    def __init__(self, name: str, timing: Timing) -> None:
        """Raises:
        InputError: a rate, a start or a duration that no video has; a chunk that is no whole number of frames.
        """
        check_clock(timing.fps, timing.start, timing.duration)
        _check_chunks(timing.fps, timing.chunk_seconds, timing.duration)
        self.name = name
        self.fps, self.chunk_seconds, self.start, self.duration = timing
        self.ending = ""  # why a source that had no end has ended
        self.told: list[tuple[float, str]] = []  # (second, what is unusual there), until a chunk notes it

    @abstractmethod
    def pictures(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] `fps` times a second from `start` on."""

    def lazy_pictures(self) -> Iterator[Callable[[], np.ndarray]]:
        """`pictures`, each as a function that returns it: a source that draws its pictures draws those that are called."""
        for image in self.pictures():
            yield lambda image=image: image

    def __iter__(self) -> Iterator[Chunk]:
        count = round(self.fps * self.chunk_seconds)
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
        elif not number:
            raise InputError(self.name, "no picture", "a source with pictures", REMEDY)
        for _, text in self.told:  # behind the last chunk
            warnings.warn(f"{self.name}: {text}", stacklevel=2)

    def _chunk(self, number: int, frames: list[np.ndarray], note: str) -> Chunk:
        start = self.start + number * self.chunk_seconds
        end = start + self.chunk_seconds
        notes = [text for second, text in self.told if second < end]
        notes[NOTES:] = [f"and {len(notes) - NOTES} more"] if len(notes) > NOTES else []
        notes += [note] if note else []
        self.told[:] = [one for one in self.told if one[0] >= end]
        return Chunk(number, start, end, np.stack(frames), "; ".join(notes))

    def _chunks_in(self, length: float | None) -> int | None:
        """Chunks of a video of that length."""
        if length is None and self.duration is None:
            return None
        left = min(float("inf") if length is None else length - self.start, self.duration or float("inf"))
        return max(0, int(np.ceil(left / self.chunk_seconds - SLACK)))

    def close(self) -> None:
        """Let go of files, cameras and connections."""

    def __exit__(self, *_: object) -> None:
        self.close()


class FileSource(Source):
    """A video file, seeked and sampled by its time stamps."""

    def __init__(self, path: Path, timing: Timing) -> None:
        super().__init__(f"video {shortened(str(path))}", timing)
        self.path = path
        self.total = self._chunks_in(claimed_length(path))

    def pictures(self) -> Iterator[np.ndarray]:
        tell = lambda second, text: self.told.append((second, text))  # noqa: E731
        for _, image in sample_video(self.path, self.fps, self.start, self.duration, tell):
            yield image


class FolderSource(Source):
    """A folder of images in natural order (frame2 before frame10), taken `fps` a second; all of the size of the first."""

    def __init__(self, path: Path, timing: Timing) -> None:
        super().__init__(f"folder {shortened(str(path))}", timing)
        # hidden files are no frames: macOS puts a ._NAME beside every NAME
        with os.scandir(path) as entries:
            names = [one.name for one in entries if not one.name.startswith(".") and not one.is_dir()]
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

    def pictures(self) -> Iterator[np.ndarray]:
        size = None
        for file in self.files:
            image = load_image(file)
            if size is not None and image.shape[:2] != size:
                got, expected = f"{image.shape[1]}x{image.shape[0]} px", f"{size[1]}x{size[0]} px, as the first has"
                raise InputError(f"frame {shortened(str(file))}", got, expected, "make all frames of one size")
            size = image.shape[:2]
            yield image


class StreamSource(Source):
    """A webcam or a URL, through PyAV. Frame k is the one that was on show k / fps seconds after the first; when it is late,
    the picture stands still. A camera that goes away ends the stream, which says so in `ending`; no password is in it, nor in
    `name`."""

    clock = staticmethod(time.monotonic)  # when a packet came: whether a gap in its stamps is time that passed

    def __init__(self, name: str, address: str, form: str | None, timing: Timing) -> None:
        super().__init__(name, timing)
        import av
        from av.error import FFmpegError

        self.address, self.form = address, form
        options, began = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}, time.monotonic()
        try:
            timeout = (OPEN_TIMEOUT, READ_TIMEOUT)
            self.container: InputContainer = av.open(address, format=form, options=options, timeout=timeout)
        except (FFmpegError, OSError, ValueError) as error:
            late = time.monotonic() - began >= OPEN_TIMEOUT  # RTSP then calls what came invalid
            reason = f"no answer in {OPEN_TIMEOUT:g} s" if late else self._reason(error)
            raise InputError(name, reason, "a source that opens", self._remedy(address)) from None
        length = self.container.duration or 0
        self.live = length <= 0 or form is not None
        self.endless = self.live
        self.skip = 0.0 if self.live else float(self.start)  # of a live source, `start` only names its first second
        # frame by frame: threads that each hold a picture would make it late, and lose it when the connection is cut
        watched: dict[str, Any] = {"now": self._now, "patience": READ_TIMEOUT} if self.live else {}
        try:
            self.reader = Reader(self.container, name, tell=self._tell, threads="SLICE", **watched)
        except InputError:
            self.container.close()
            raise
        # of a transport stream the length is that of its clock, which may jump
        known = not self.live and (not jumps(self.container) or self.container.format.name == "hls")
        self.total = self._chunks_in(length / 1e6 if known else None)

    def _now(self) -> float:
        return self.clock()

    def _tell(self, second: float, text: str) -> None:
        if second >= self.skip or not second:  # what is before is read to get there, and not watched
            self.told.append((second + self.start - self.skip, text))

    def _reason(self, error: Exception) -> str:
        """What went wrong, without the address, in which there may be a password."""
        from av.error import ExitError

        if isinstance(error, ExitError):
            return f"nothing came for {READ_TIMEOUT:g} s"
        said = (getattr(error, "strerror", None) or str(error)).replace(self.address, self.name)
        return shortened(said)

    def _remedy(self, kind: str) -> str:
        """kind: of the container, or its name where that is not known."""
        if self.address.lower().startswith("http") and re.search(r"mp4|mov|m4v", kind.lower()):
            return f"{REMEDY}; an MP4 with its index at the end needs a server with ranges: remux with -movflags +faststart"
        return REMEDY

    def pictures(self) -> Iterator[np.ndarray]:
        before, held, size, sent, gone = None, None, None, 0, 0.0
        until = float("inf") if self.duration is None else self.skip + self.duration
        for seen, length, frame in self.reader.frames():
            size = size or shown_size(frame)
            while held is not None and self.skip + sent / self.fps < min(seen, until) - SLACK:
                yield held
                sent += 1
            due, gone = self.skip + sent / self.fps, seen + length
            if due >= until - SLACK:
                return
            if held is None or seen + 1 / self.fps >= due:  # one that no sample can fall on is never converted
                held = picture(Shown(frame, before), size)
            before = frame
        self.ending = self._ending()
        self.reader.damage.report(gone, last=True)
        if held is None:
            kind = self.container.format.name
            raise InputError(self.name, self.ending or "no picture", "a source with pictures", self._remedy(kind))
        while not sent or self.skip + sent / self.fps < min(gone, until) - SLACK:  # nothing followed the last one
            yield held
            sent += 1

    def _ending(self) -> str:
        error = self.reader.broke
        if self.reader.given_up:
            return f"nothing could be decoded for {READ_TIMEOUT:g} s"
        # HTTP without a length has no other end than that of the connection, which FFmpeg takes for a failure
        closed = isinstance(error, OSError) and error.errno == errno.EIO and self.live and self.address[:4].lower() == "http"
        if error is None or closed:
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

    "file" for a file or folder that exists, whatever else its name could mean; "webcam" for a number; what stands before the
    first colon if `schemes` has it; "url" for other addresses; "file" for the rest, which then says that there is none.
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
    schemes: Mapping[str, Opener] = SCHEMES,
) -> Source:
    """Open a video file, a folder of frames, a webcam by its number or a URL.

    Args:
        source: its name; or an open source, which is returned if it has this `fps` and `chunk_seconds`.
        fps: frames a second that are taken.
        start: second to start at; of a live source, the name of its first second.
        duration: seconds to watch; to the end (of a live source: for ever) without it.
        schemes: how each kind of source is opened; more kinds are `{**SCHEMES, "match": opener}`, which opens "match:...".

    Raises:
        InputError: a wrong argument; nothing there, no video in it, or nothing that can be opened.
    """
    timing = Timing(fps, chunk_seconds, start, duration)
    if isinstance(source, Source):
        return _check_open(source, timing)
    name = os.fsdecode(source) if isinstance(source, os.PathLike) else source
    return schemes[scheme_of(name, schemes)](str(name), timing)


def _check_open(source: Source, timing: Timing) -> Source:
    """`source`, if it is sampled as `timing` says."""
    if (source.fps, source.chunk_seconds) != (timing.fps, timing.chunk_seconds):
        got = f"{source.name} at {source.fps:g} fps in chunks of {source.chunk_seconds:g} s"
        raise InputError("source", got, f"{timing.fps:g} fps and {timing.chunk_seconds:g} s", "open it with these")
    for field, value, default in (("start", timing.start, 0.0), ("duration", timing.duration, None)):
        if value != default:
            raise InputError(field, f"{value:g} s for an open source", "none", f"open the source with this {field}")
    return source


def _check_chunks(fps: float | int, seconds: float | int, duration: float | int | None) -> None:
    count = fps * seconds
    if not 1 <= count < float("inf") or abs(count - round(count)) > SLACK:
        raise InputError("chunk_seconds", f"{seconds:g} s at {fps:g} fps", "a whole number of frames", "1 s at 2 fps is usual")
    if duration is not None and duration < 1 / fps - SLACK:
        got = f"{duration:g} s, which is shorter than one frame"
        raise InputError("duration", got, f"{1 / fps:g} s or more at {fps:g} fps", "watch for longer")


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
