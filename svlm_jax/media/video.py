"""Video files to uint8 RGB frames, sampled by the clock, and a small writer.

Owns which frame is on screen when, and what is said of a file that cannot be watched. Does not know the sizes a model likes,
patches or tokens. numpy and PIL; PyAV only inside the functions that need it. Units: seconds counted from the container's start
(`decode`), pixels, levels 0..255. Axes: F frames · H, W pixels · 3 channels R, G, B.
"""

import itertools
import os
import warnings
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.container import FASTEST, Reader, Tell, claimed_length, jumps, open_file, scan, scannable, without_index
from svlm_jax.media.paths import existing_file
from svlm_jax.media.picture import Shown, picture, shown_size

if TYPE_CHECKING:
    import av

SLACK = 1e-3  # seconds; Matroska and FLV round time stamps to a millisecond
SEEK_BACK = 5.0  # seconds; second try when the keyframe found lies after the start (an index by decoding time)
KEYFRAME = 10.0  # seconds
LATEST = 1e9  # seconds; a start beyond it is a slip of the keyboard
CUT_SHORT = 1.0  # seconds by which a header may exceed its frames before we call the file cut short


def read_video(
    source: str | os.PathLike,
    fps: float | int = 2.0,
    start: float | int = 0.0,
    duration: float | int | None = None,
    max_frames: int = 768,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sample a video file by the clock.

    Frame k is the one on screen at `start + k / fps`, by the time stamps and not by a frame rate, up to (and without)
    `start + duration` or the end of the video. Returns (frames uint8 [F, H, W, 3], times float64 [F] in seconds, fps).
    Pictures are upright and mirrored as a player shows them, deinterlaced, and laid on white where they are transparent;
    pixels count as square; a change of size in mid-video is scaled to the first. Seconds count from the container's start:
    where sound comes first, the first picture stands for them. A clock that restarts goes on from the last picture.
    Warnings say what was damaged and left out, where time stamps jumped, and where and why a file breaks off.

    Args:
        fps: frames a second to sample, not that of the file.
        start, duration: seconds; no duration means to the end.
        max_frames: a longer result is an error, never a thinned one.

    Raises:
        InputError: a wrong argument; a missing, empty or broken file; no video in it; a start beyond its end; too long.
    """
    path = existing_file(source, "video")
    check_clock(fps, start, duration)
    room, got = max_frames / fps, f"more than max_frames={max_frames} frames"
    remedy = "set a shorter duration, lower fps, or raise max_frames"
    too_long = InputError(f"video {shortened(str(path))}", got, f"at most {room:g} s at {fps:g} fps", remedy)
    if duration is None or duration - SLACK > room:  # ask the header first: decoding up to the limit may take minutes
        length = claimed_length(path)
        if length is not None and min(length - start, duration or length) - SLACK > room:
            raise too_long
    images, times = [], []
    for time, image in sample_video(path, fps, start, duration):
        if len(times) == max_frames:
            raise too_long
        images.append(image)
        times.append(time)
    return np.stack(images), np.asarray(times, np.float64), float(fps)


def sample_video(
    source: str | os.PathLike,
    fps: float | int = 2.0,
    start: float | int = 0.0,
    duration: float | int | None = None,
    tell: Tell | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """`read_video` one frame at a time, for streams: yields (second, uint8 [H, W, 3]); same rules and errors. What is unusual
    goes to `tell` (second, text) before the frames that it is about; without one it is a warning."""
    path = existing_file(source, "video")
    check_clock(fps, start, duration)
    until = float("inf") if duration is None else start + duration
    sent, due, gone, size = 0, float(start), 0.0, None
    say = tell or _warner(path)

    def from_start(second: float, text: str) -> None:
        if second >= start:  # what is before is read to get there, and not watched
            say(second, text)

    for gone, shown in _shown(path, start, from_start):
        size = size or shown_size(shown.frame)
        image = None  # a frame that no sample falls on is never converted
        while due < min(gone, until) - SLACK:
            image = picture(shown, size) if image is None else image
            yield due, image
            sent += 1
            due = start + sent / fps
        if due >= until - SLACK:
            return
    if not sent:
        name = shortened(str(path))
        raise InputError("start", f"{start:g} s", f"less than {gone:g} s, where {name} ends", "choose an earlier start")


def _warner(path: Path) -> Tell:
    def warn(second: float, text: str) -> None:
        warnings.warn(f"video {path}: {text}" if " at " in text else f"video {path}: at {second:.3f} s: {text}", stacklevel=3)

    return warn


def check_clock(fps: float | int, start: float | int, duration: float | int | None) -> None:
    for name, value in (("fps", fps), ("duration", duration)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(name, value, "a number above 0", "2 fps is usual; without a duration all is read")
    if fps > FASTEST:
        raise InputError("fps", f"{fps:g}", f"at most {FASTEST:g}", "2 fps is usual")
    if not 0 <= start <= LATEST:
        got = f"{start:g}" if start == start else start
        raise InputError("start", got, f"0 or more seconds, at most {LATEST:g}", "count from the beginning of the video")


def _shown(path: Path, start: float | int, tell: Tell) -> Iterator[tuple[float, Shown]]:
    """(second at which it leaves the screen, frame and its neighbours), from one on screen at or before `start`."""
    before, held, gone = None, None, 0.0
    for second, length, frame in _decoded(path, start, tell):
        if held is not None:
            yield second, Shown(held, before, frame)
        before, held, gone = held, frame, second + max(length, 2 * SLACK)
    if held is not None:
        yield gone, Shown(held, before)


def _decoded(path: Path, start: float | int, tell: Tell) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """(second, seconds on screen or 0, frame) in order; seeks that land too late are repeated, libav's errors told."""
    from av.error import FFmpegError

    last, reason, told = None, "no frame that can be decoded", set()

    def once(second: float, text: str) -> None:
        if (second, text) not in told:
            tell(second, text)
        told.add((second, text))

    for target in dict.fromkeys((start, max(start - SEEK_BACK, 0.0), 0.0)):
        try:
            for second, length, frame in _from_keyframe(path, target, once):
                if last is None and target > 0 and second > start + SLACK:
                    break
                last = second
                yield second, length, frame
        except FFmpegError as error:
            reason = f"{type(error).__name__} ({error.strerror})"
        if last is not None:
            return
    remedy = "play it to check it, and copy or convert it again"
    if without_index(path):
        reason, remedy = "an MP4 without its index", "the recording was not finished: repair it (untrunc), or record it again"
    raise InputError(f"video {shortened(str(path))}", reason, "a readable video", remedy)


def _from_keyframe(path: Path, target: float | int, tell: Tell) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """Decode from the keyframe at or before `target` seconds, as far as the container's index is right."""
    with open_file(path) as container:
        reader = Reader(container, f"video {shortened(str(path))}", tell=tell)
        skim = target > 0 and jumps(container) and (not scannable(container) or scan(path)[1] > 0)
        try:
            yield from reader.frames(target, skim)
        except GeneratorExit:  # enough was seen
            reader.damage.report(0.0, last=True)
            raise
        if reader.clock.second is None:
            return
        first, broke, heard, promised = reader, reader.broke, reader.heard, reader.promised
        if reader.lost:
            reader = yield from _again(path, reader, skim, tell)
        last, length = reader.clock.second or 0.0, reader.clock.length
        end = max(last + length, heard)
    if broke is not None:
        reason = f"{type(broke).__name__} ({getattr(broke, 'strerror', None) or broke})"
        tell(end, f"decoding stopped at {last:.3f} s: {reason}")
    elif promised is not None and end < promised - CUT_SHORT:
        tell(end, f"ends at {end:.3f} s but its header says {promised:.3f} s: cut short?")
    else:
        first.damage.report(end, last=True)
        if reader is not first:
            reader.damage.report(end, last=True)


def _again(path: Path, first: Reader, skim: bool, tell: Tell) -> Generator[tuple[float, float, "av.VideoFrame"], None, Reader]:
    """The pictures after the last of `first`, decoded in one thread; returns their reader, or `first` if there are none."""
    after = first.clock.second or 0.0

    def new(second: float, text: str) -> None:
        if second > max(after, first.damage.second):
            tell(second, text)

    with open_file(path) as container:
        reader = Reader(container, f"video {path}", tell=new, threads="SLICE")
        for second, length, frame in reader.frames(after, skim):
            if second > after + SLACK:
                yield second, length, frame
    return first if reader.clock.second is None else reader


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float | int) -> None:
    """Pictures, each uint8 [H, W, 3] -> an mp4 file (H.264 where the codec is there, else MPEG-4), whole or not at all, with a
    picture to seek to every `KEYFRAME` seconds.

    Raises:
        InputError: no frames, wrong dtype or shape, odd sides (yuv420p halves them), fps, folder, not `.mp4`.
    """
    import av

    path = Path(path)
    check_clock(fps, 0.0, None)
    if path.suffix.lower() != ".mp4" or not path.parent.is_dir():
        raise InputError("path", path, "a .mp4 file in an existing folder", "rename it or make the folder")
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise InputError("frames", "none", "uint8 [F, H, W, 3], F >= 1", "give at least one")
    height, width = _film_size(first)
    part = path.with_name(f"{path.name}.tmp")
    try:
        # the index goes in front, so that a server without ranges can play it
        with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "faststart"}) as container:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.gop_size = max(1, round(KEYFRAME * fps))
            for frame in itertools.chain([first], pictures):
                if _film_size(frame) != (height, width):
                    raise InputError("frames", f"{frame.shape[1]}x{frame.shape[0]} px", f"{width}x{height}", "use one size")
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _film_size(frame: np.ndarray) -> tuple[int, int]:
    """(height, width) of a picture that a film can have."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        got, expected = f"{frame.dtype} {list(frame.shape)}", "each uint8 [H, W, 3]"
        raise InputError("frames", got, expected, "convert them first, for example with as_frames")
    if frame.shape[0] % 2 or frame.shape[1] % 2:
        raise InputError("frames", f"{frame.shape[1]}x{frame.shape[0]} px", "even sides", "crop or pad by one pixel")
    return frame.shape[0], frame.shape[1]
