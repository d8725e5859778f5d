"""Video files to uint8 RGB frames, sampled by the clock, and a small writer.

Owns decoding and everything that can be wrong with a file. Does not know the sizes a model likes, patches or tokens.
numpy and PIL; PyAV only inside the functions that need it. Units: seconds counted from the first frame of the video
stream, pixels, levels 0..255. Axes: F frames · H, W pixels · 3 channels R, G, B.
"""

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from svlm_jax.data.image import existing_file
from svlm_jax.errors import InputError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

SLACK = 1e-3  # seconds; Matroska and FLV round time stamps to a millisecond
SEEK_BACK = 5.0  # seconds; second try when the keyframe found lies after the start (an index by decoding time)
KEYFRAME = 10.0  # seconds
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
    Rotation by quarter turns is applied, mirroring is not; pixels count as square; a change of size in mid-video is
    scaled to the first. When a file breaks off, the frames before are returned with a warning that says where and why.

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
    too_long = InputError(f"video {path}", got, f"at most {room:g} s at {fps:g} fps", remedy)
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
    source: str | os.PathLike, fps: float | int = 2.0, start: float | int = 0.0, duration: float | int | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """`read_video` one frame at a time, for streams: yields (second, uint8 [H, W, 3]); same rules, errors, warnings."""
    path = existing_file(source, "video")
    check_clock(fps, start, duration)
    until = float("inf") if duration is None else start + duration
    sent, due, gone, size = 0, float(start), 0.0, None
    for gone, frame in _shown(path, start):
        size = size or (frame.width, frame.height)
        image = None  # a frame that no sample falls on is never converted
        while due < min(gone, until) - SLACK:
            image = picture(frame, size) if image is None else image
            yield due, image
            sent += 1
            due = start + sent / fps
        if due >= until - SLACK:
            return
    if not sent:
        raise InputError("start", f"{start:g} s", f"less than {gone:g} s, where {path} ends", "choose an earlier start")


def check_clock(fps: float | int, start: float | int, duration: float | int | None) -> None:
    for name, value in (("fps", fps), ("duration", duration)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(name, value, "a number above 0", "2 fps is usual; without a duration all is read")
    if not 0 <= start < float("inf"):
        raise InputError("start", start, "0 or more seconds", "count from the beginning of the video")


def _shown(path: Path, start: float | int) -> Iterator[tuple[float, "av.VideoFrame"]]:
    """(second at which the frame leaves the screen, frame), from one on screen at or before `start`."""
    held = None
    for second, length, frame in _decoded(path, start):
        if held is not None:
            yield second, held
        held, gone = frame, second + max(length, 2 * SLACK)
    if held is not None:
        yield gone, held


def _decoded(path: Path, start: float | int) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """(second, seconds on screen or 0, frame) in order; seeks that land too late are repeated, libav's errors told."""
    from av.error import FFmpegError

    last, reason = None, "no frame that can be decoded"
    for target in dict.fromkeys((start, max(start - SEEK_BACK, 0.0), 0.0)):
        try:
            for second, length, frame in _from_keyframe(path, target):
                if last is None and target > 0 and second > start + SLACK:
                    break
                last = second
                yield second, length, frame
        except FFmpegError as error:
            reason = f"{type(error).__name__} ({error.strerror})"
            if last is not None:
                warnings.warn(f"video {path}: decoding stopped at {last:.3f} s: {reason}", stacklevel=2)
        if last is not None:
            return
    raise InputError(f"video {path}", reason, "a readable video", "play it to check it, and copy or convert it again")


def _from_keyframe(path: Path, target: float | int) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """Decode from the keyframe at or before `target` seconds, as far as the container's index is right."""
    import av

    with av.open(str(path), metadata_errors="ignore") as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        tick, origin = float(stream.time_base or 1), stream.start_time or 0
        usual = 1 / float(stream.guessed_rate) if stream.guessed_rate else 0.0
        if target > 0:
            container.seek(origin + int(target / tick), stream=stream)
        second, length = None, 0.0
        for frame in container.decode(stream):
            if frame.pts is not None:
                second = (frame.pts - origin) * tick
            elif second is None and target > 0:
                return  # no time stamps: a seek leaves us nowhere
            else:
                second = 0.0 if second is None else second + length
            length = (frame.duration or 0) * tick or usual
            yield second, length, frame
        if second is not None and stream.duration and second + length < stream.duration * tick - CUT_SHORT:
            claimed = f"its header says {stream.duration * tick:.3f} s"
            warnings.warn(f"video {path}: ends at {second + length:.3f} s but {claimed}: cut short?", stacklevel=2)


def video_stream(container: "InputContainer", path: Path) -> "av.VideoStream":
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no video
            return stream
    raise InputError(f"video {path}", "no video stream", "a file with one", "check that it is not audio only")


def claimed_length(path: Path) -> float | None:
    """Seconds of video by the header; None where it is silent or unreadable (decoding then tells why)."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = video_stream(container, path)
            return stream.duration * float(stream.time_base or 1) if stream.duration else None
    except FFmpegError:
        return None


def picture(frame: "av.VideoFrame", size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3], upright; `size` is (width, height) before the rotation."""
    image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    turns = round(frame.rotation / 90) % 4  # both count counter-clockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


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
        with av.open(str(part), "w", format="mp4") as container:
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
