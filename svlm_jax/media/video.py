"""Video files to uint8 RGB frames, sampled by the clock, and a small writer.

Owns which frame is on screen at a second, and the errors of a file that cannot be watched. Does not know the sizes a model
takes, patches or tokens. numpy and PIL; PyAV only inside the functions that need it. Units: seconds counted from the
container's start, pixels, values 0..255. Axes: F frames · H, W pixels · 3 channels R, G, B.
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
from svlm_jax.files import atomic_write, placeholder
from svlm_jax.media.container import (
    MAX_FPS,
    OnNote,
    Reader,
    can_jump,
    can_seek,
    declared_length,
    open_file,
    scan,
)
from svlm_jax.media.display import FrameContext, display_size, to_rgb
from svlm_jax.media.mp4 import cut_fragment, has_second_film, lacks_index
from svlm_jax.media.paths import existing_file

if TYPE_CHECKING:
    import av

SLACK = 1e-3  # seconds; Matroska and FLV round time stamps to a millisecond
SEEK_BACK = 5.0  # seconds; second try when the seek lands after the start (an index by decoding time)
KEYFRAME_SECONDS = 10.0
MAX_START = 1e9  # seconds; a start beyond it is a slip of the keyboard
CUT_SHORT = 1.0  # seconds by which a header may exceed its frames before the file counts as cut short


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
    Frames are upright and mirrored as a player shows them, deinterlaced, and laid on white where they are transparent;
    pixels count as square; a change of size in mid-video is scaled to the first. Seconds count from the container's start:
    where sound comes first, the first frame stands for them. A clock that restarts goes on from the last frame.
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
    max_seconds, got = max_frames / fps, f"more than max_frames={max_frames} frames"
    remedy = "set a shorter duration, lower fps, or raise max_frames"
    too_long = InputError(f"video {shortened(str(path))}", got, f"at most {max_seconds:g} s at {fps:g} fps", remedy)
    if duration is None or duration - SLACK > max_seconds:  # ask the header first: decoding up to the limit may take minutes
        length = declared_length(path)
        if length is not None and min(length - start, duration or length) - SLACK > max_seconds:
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
    on_note: OnNote | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """`read_video` one frame at a time, for streams: yields (second, uint8 [H, W, 3]); same rules and errors. `on_note`
    is called (second, text) for what is unusual, before the frames that it is about; by default it is a warning."""
    path = existing_file(source, "video")
    check_clock(fps, start, duration)
    until = float("inf") if duration is None else start + duration
    num_samples, due, end, size = 0, float(start), 0.0, None  # due: second of the next sample
    on_note = on_note or _warner(path)

    def note_watched(second: float, text: str) -> None:
        if second >= start:  # what is before the start is read, and not watched
            on_note(second, text)

    for end, context in with_neighbours(_decoded(path, start, note_watched)):
        size = size or display_size(context.frame)
        image = None  # a frame that no sample falls on is never converted
        while due < min(end, until) - SLACK:
            image = to_rgb(context, size) if image is None else image
            yield due, image
            num_samples += 1
            due = start + num_samples / fps  # not by adding 1 / fps, which drifts
        if due >= until - SLACK:
            return
    if not num_samples:
        name = shortened(str(path))
        raise InputError("start", f"{start:g} s", f"less than {end:g} s, where {name} ends", "choose an earlier start")


def _warner(path: Path) -> OnNote:
    def warn(second: float, text: str) -> None:
        warnings.warn(f"video {path}: {text}" if " at " in text else f"video {path}: at {second:.3f} s: {text}", stacklevel=3)

    return warn


def check_clock(fps: float | int, start: float | int, duration: float | int | None) -> None:
    for name, value in (("fps", fps), ("duration", duration)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(name, value, "a number above 0", "2 fps is usual; without a duration all is read")
    if fps > MAX_FPS:
        raise InputError("fps", f"{fps:g}", f"at most {MAX_FPS:g}", "2 fps is usual")
    if not 0 <= start <= MAX_START:
        got = f"{start:g}" if start == start else start
        raise InputError("start", got, f"0 or more seconds, at most {MAX_START:g}", "count from the beginning of the video")


def with_neighbours(frames: Iterable[tuple[float, float, "av.VideoFrame"]]) -> Iterator[tuple[float, FrameContext]]:
    """(second at which it leaves the screen, frame and its neighbours) of every (second, seconds on screen or 0, frame)."""
    previous, current, end = None, None, 0.0
    for second, length, frame in frames:
        if current is not None:
            yield second, FrameContext(current, previous, frame)
        previous, current, end = current, frame, second + max(length, 2 * SLACK)
    if current is not None:
        yield end, FrameContext(current, previous)


def _decoded(path: Path, start: float | int, on_note: OnNote) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """(second, seconds on screen or 0, frame) in order of time; seeks that land too late are repeated, libav's errors named."""
    from av.error import FFmpegError

    last, reason = None, "no frame that can be decoded"
    noted: set[tuple[float, str]] = set()  # a second try comes by the same damage

    def note_once(second: float, text: str) -> None:
        if (second, text) not in noted:
            on_note(second, text)
        noted.add((second, text))

    for target in dict.fromkeys((start, max(start - SEEK_BACK, 0.0), 0.0)):
        try:
            for second, length, frame in _from_keyframe(path, target, note_once):
                if last is None and target > 0 and second > start + SLACK:
                    break
                last = second
                yield second, length, frame
        except FFmpegError as error:
            reason = f"{type(error).__name__} ({error.strerror})"
        if last is not None:
            return
    remedy = "play it to check it, and copy or convert it again"
    if lacks_index(path):
        reason, remedy = "an MP4 without its index", "the recording was not finished: repair it (untrunc), or record it again"
    elif _is_playlist(path):
        reason, remedy = "a playlist of what a file may not open", "give the address of the playlist, or of the video in it"
    elif kind := placeholder(path):
        reason, remedy = kind
    raise InputError(f"video {shortened(str(path))}", reason, "a readable video", remedy)


def _is_playlist(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith((b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml"))


def _from_keyframe(path: Path, target: float | int, on_note: OnNote) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
    """Decode from the keyframe at or before `target` seconds, as far as the container's index is right."""
    with open_file(path) as container:
        reader = Reader(container, f"video {shortened(str(path))}", on_note=on_note)
        skim = target > 0 and (not can_seek(container) or (can_jump(container) and scan(path)[1] > 0))
        try:
            yield from reader.frames(target, skim)
        except GeneratorExit:  # the caller has its frames
            reader.damage.report(0.0, is_last=True)
            raise
        first_reader = reader
        if reader.lost_last or (reader.clock.second is None and reader.damage.count):
            reader = yield from _decode_rest(path, reader, skim, on_note)
        if reader.clock.second is None:
            return
        last, length = reader.clock.second, reader.clock.length
        end, declared_end = max(last + length, first_reader.audio_end), first_reader.declared_end
    readers, error = tuple(dict.fromkeys((first_reader, reader))), first_reader.read_error
    if error is not None:
        reason = f"{type(error).__name__} ({getattr(error, 'strerror', None) or error})"
        on_note(end, f"decoding stopped at {last:.3f} s: {reason}")
    elif declared_end is not None and max(end, *(each.damage.second for each in readers)) < declared_end - CUT_SHORT:
        on_note(end, f"ends at {end:.3f} s but its header says {declared_end:.3f} s: cut short?")
    else:
        for each in readers:
            each.damage.report(end, is_last=True)
    if cut_fragment(path) is not None:
        on_note(end, f"ends at {end:.3f} s, within the index of its next fragment: cut short?")
    if has_second_film(path):
        on_note(end, "another MP4 follows in the same file and is not watched: split them, or join them with FFmpeg")


def _decode_rest(
    path: Path, first_reader: Reader, skim: bool, on_note: OnNote
) -> Generator[tuple[float, float, "av.VideoFrame"], None, Reader]:
    """The frames after the last of `first_reader`, decoded in one thread; returns their reader, or the first if there are
    none."""
    newest = first_reader.clock.second
    start = newest or 0.0

    def note_new(second: float, text: str) -> None:
        if second > max(start, first_reader.damage.second):
            on_note(second, text)

    with open_file(path) as container:
        reader = Reader(container, f"video {path}", on_note=note_new, threads="SLICE")
        for second, length, frame in reader.frames(start, skim):
            if newest is None or second > newest + SLACK:
                yield second, length, frame
    return first_reader if reader.clock.second is None else reader


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float | int) -> None:
    """Frames, each uint8 [H, W, 3] -> an mp4 file (H.264 where FFmpeg has it, else MPEG-4) that appears complete or not at all,
    with a keyframe to seek to every `KEYFRAME_SECONDS`.

    Raises:
        InputError: no frames, wrong dtype or shape, odd sides (yuv420p halves them), fps, folder, not `.mp4`; a full disk.
    """
    path = Path(path)
    check_clock(fps, 0.0, None)
    if path.suffix.lower() != ".mp4" or not path.parent.is_dir():
        raise InputError("path", path, "a .mp4 file in an existing folder", "rename it or make the folder")
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise InputError("frames", "none", "uint8 [F, H, W, 3], F >= 1", "give at least one")
    with atomic_write(path) as draft:
        name = f"file:{draft}"
        try:
            _encode(name, itertools.chain([first], rest), _even_size(first), fps)
        except OSError as error:
            if error.filename != name:  # of whoever gives the frames
                raise
            got = f"a file that cannot be written ({str(error.strerror).lower()})"
            raise InputError(shortened(path), got, "a place with room", "choose another") from None


def _encode(name: str, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float | int) -> None:
    import av

    height, width = size
    faststart = {"movflags": "faststart"}  # the index goes in front, so that a server without ranges can play the file
    with av.open(name, "w", format="mp4", options=faststart) as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size = max(1, round(KEYFRAME_SECONDS * fps))
        for frame in frames:
            if _even_size(frame) != (height, width):
                raise InputError("frames", f"{frame.shape[1]}x{frame.shape[0]} px", f"{width}x{height}", "use one size")
            encoded = stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            container.mux(encoded)
        container.mux(stream.encode())


def _even_size(frame: np.ndarray) -> tuple[int, int]:
    """(height, width) of a frame that can be encoded."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        got, expected = f"{frame.dtype} {list(frame.shape)}", "each uint8 [H, W, 3]"
        raise InputError("frames", got, expected, "convert them first, for example with as_frames")
    if frame.shape[0] % 2 or frame.shape[1] % 2:
        raise InputError("frames", f"{frame.shape[1]}x{frame.shape[0]} px", "even sides", "crop or pad by one pixel")
    return frame.shape[0], frame.shape[1]
