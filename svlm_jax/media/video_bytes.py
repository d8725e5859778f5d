"""A video file that somebody sent, from its bytes in memory, with a bound on what decoding it may cost.

Only containers that hold their own frames are opened, by the format that their first bytes say: a playlist, or a list of files,
would have the reader open what it names on this machine or elsewhere. Frames are sampled by the clock as `video.read_video`
does. PyAV inside the functions that need it. Units: seconds, pixels, bytes. Axes: F frames · H, W pixels.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.container import Reader, stream_end
from svlm_jax.media.display import display_size, to_rgb
from svlm_jax.media.mp4 import cut_fragment, lacks_index
from svlm_jax.media.video import SLACK, with_neighbours

if TYPE_CHECKING:
    from av.container import InputContainer

FIELD = "video"
READABLE = "an MP4, MOV, WebM, Matroska, AVI, MPEG-TS or GIF file that can be read"
TS_PACKET = 188  # bytes


@dataclass(frozen=True)
class VideoBounds:
    """What a video may cost. max_frames: that are sampled. max_seconds: of the video. max_frame_pixels, max_pixels: of one
    frame, and of all that are sampled. timeout: seconds for all of it."""

    max_frames: int = 64
    max_seconds: float = 600.0
    max_frame_pixels: int = 4096 * 2304
    max_pixels: int = 150_000_000
    timeout: float = 30.0


class SampledVideo(NamedTuple):
    """frames uint8 [F, H, W, 3], and how many a second."""

    frames: np.ndarray
    fps: float


def read_video_bytes(data: bytes, *, fps: float = 2.0, bounds: VideoBounds = VideoBounds()) -> SampledVideo:
    """Sample a video: frame k is the one on screen at k / fps, to the end of the video. One that would have more frames than
    the bounds allow has them farther apart, so that they span all of it.

    Raises:
        InputError: no video, one of another container, a broken one, or one that costs more than the bounds.
    """
    from av.error import FFmpegError

    deadline = time.monotonic() + bounds.timeout
    try:
        with _open(data) as container:
            seconds = _length(container, data, bounds, deadline)
            fps = min(fps, bounds.max_frames / seconds)
            images = list(_sample(container, fps, bounds, deadline))
    except (FFmpegError, InputError) as error:
        if lacks_index(io.BytesIO(data)):
            raise _unreadable("an MP4 without its index: it is not whole") from None
        if isinstance(error, InputError):
            raise
        raise _unreadable(f"{type(error).__name__} ({error.strerror})") from None
    if not images:
        raise _unreadable("no frame that can be decoded")
    return SampledVideo(np.stack(images), fps)


def container_format(data: bytes) -> str:
    """The name that FFmpeg has for the container of a file.

    Raises:
        InputError: none that is opened here.
    """
    head = data[: 4 * TS_PACKET]
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if len(head) == 4 * TS_PACKET and head[::TS_PACKET] == b"\x47" * 4:
        return "mpegts"
    raise _unreadable(f"other bytes ({head[:8].hex()})" if head else "nothing")


def _open(data: bytes) -> "InputContainer":
    import av

    options = {"enable_drefs": "0", "protocol_whitelist": "none"}  # nothing but these bytes is read
    data = data[: cut_fragment(io.BytesIO(data))]
    return av.open(io.BytesIO(data), "r", format=container_format(data), options=options, metadata_errors="ignore")


def _length(container: "InputContainer", data: bytes, bounds: VideoBounds, deadline: float) -> float:
    """Seconds of the video by its header, or, where that says nothing, by its packets."""
    reader = Reader(container, FIELD)  # also refuses what has no video
    codec = reader.stream.codec_context
    if codec.width * codec.height > bounds.max_frame_pixels:
        got = f"{codec.width}x{codec.height} px"
        raise InputError(FIELD, got, f"at most {bounds.max_frame_pixels} px a frame", "send a smaller one")
    duration = container.duration / 1e6 if container.duration else None
    seconds = stream_end(container, reader.stream) or duration
    if seconds is None:
        with _open(data) as packets:
            counter, ticks = Reader(packets, FIELD), 0
            for packet in counter.packets():
                _check_deadline(deadline, bounds)
                if packet is not None and packet.pts is not None:
                    ticks = max(ticks, packet.pts + (packet.duration or counter.joiner.frame_ticks))
            seconds = counter.clock.seconds(ticks)
    if seconds > bounds.max_seconds:
        raise InputError(FIELD, f"{seconds:.0f} s", f"at most {bounds.max_seconds:g} s", "send a part of it")
    return max(seconds, SLACK)


def _sample(container: "InputContainer", fps: float, bounds: VideoBounds, deadline: float) -> Iterator[np.ndarray]:
    """The frames on screen at 0, 1 / fps, 2 / fps ..."""
    due, size, num_samples, num_pixels = 0.0, None, 0, 0
    reader = Reader(container, FIELD)
    reader.codec.options = {"max_pixels": str(bounds.max_frame_pixels)}  # frames may grow in mid-video
    for end, context in with_neighbours(reader.frames()):
        _check_deadline(deadline, bounds)
        size = size or display_size(context.frame)
        image = None
        while due < end - SLACK and num_samples < bounds.max_frames:
            num_pixels += size[0] * size[1]
            if max(size[0] * size[1], context.frame.width * context.frame.height) > bounds.max_frame_pixels:
                raise InputError(FIELD, f"{size[0]}x{size[1]} px", f"at most {bounds.max_frame_pixels} px", "make it smaller")
            if num_pixels > bounds.max_pixels:
                got, expected = f"frames of {size[0]}x{size[1]} px", f"at most {bounds.max_pixels} px in all"
                raise InputError(FIELD, got, expected, "send a smaller or shorter one")
            image = to_rgb(context, size) if image is None else image
            yield image
            num_samples += 1
            due = num_samples / fps
        if end > bounds.max_seconds + 1 or num_samples == bounds.max_frames:
            return


def _check_deadline(deadline: float, bounds: VideoBounds) -> None:
    if time.monotonic() > deadline:
        got, remedy = f"more than {bounds.timeout:g} s to decode", "send a shorter or smaller one"
        raise InputError(FIELD, got, "less", remedy)


def _unreadable(got: str) -> InputError:
    return InputError(FIELD, shortened(got, 80), READABLE, "convert it to MP4")
