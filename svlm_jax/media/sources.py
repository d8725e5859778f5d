"""Where the video of a stream comes from: a file, a folder of frames, a webcam or a URL, as chunks of equal length.

Owns which kind of source a name means, files and folders of images. The base of all sources is `chunks`, what is live
`stream_source` and `reconnect`. Does not know the model, nor whether its reader keeps up (`player`). numpy. Units: seconds
counted from the first frame of the source. Axes: H, W pixels.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.chunks import Source, Timing
from svlm_jax.media.container import Damage, declared_length
from svlm_jax.media.image import load_image
from svlm_jax.media.paths import existing_file, existing_path, is_address, masked
from svlm_jax.media.reconnect import Reconnect, open_reconnecting
from svlm_jax.media.stream_source import StreamSource
from svlm_jax.media.video import SLACK, sample_video

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
WEBCAM = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)  # its number, as one writes it: 0001 is a folder of a dataset


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
    """A folder of images in natural order (frame2 before frame10), taken `fps` a second; all of the size of the first. For one
    that cannot be read stands the one before it, at the beginning the one after it, and a note says so."""

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
        last, num_unreadable, unreadable = None, 0, None
        damage = Damage(lambda second, text: self.notes.append((second, text)), "picture")
        for number, file in enumerate(self.files):
            second = self.start + number / self.fps
            try:
                frame = load_image(file)
            except InputError as error:
                unreadable = unreadable or error
                damage.add(second, f"{shortened(file.name, 60)}: {str(error.got).partition(' (')[0]}")
                damage.report(second + SLACK)
                if last is None:
                    num_unreadable += 1
                else:
                    yield last
                continue
            if last is not None and frame.shape != last.shape:
                got, expected = (f"{image.shape[1]}x{image.shape[0]} px" for image in (frame, last))
                remedy = "make all frames of one size"
                raise InputError(f"frame {shortened(str(file))}", got, f"{expected}, as the first has", remedy)
            damage.report(second)
            yield from [frame] * (1 if last is not None else 1 + num_unreadable)
            last = frame
        if last is None and unreadable is not None:
            raise unreadable
        damage.report(self.start + len(self.files) / self.fps, is_last=True)


def _open_path(name: str, timing: Timing) -> Source:
    path = existing_path(name)
    return (
        FolderSource(path, timing) if path is not None and path.is_dir() else FileSource(existing_file(name, "video"), timing)
    )


def source_name(name: str | int) -> str:
    """What a webcam or a URL is called in lines for people."""
    return f"webcam {name}" if WEBCAM.fullmatch(str(name)) else masked(str(name))


def _open_webcam(name: str, timing: Timing) -> Source:
    container_format, address = WEBCAMS.get(sys.platform, WEBCAMS["linux"])
    return StreamSource(source_name(name), address.format(name), container_format, timing)


def _open_url(name: str, timing: Timing) -> Source:
    return StreamSource(source_name(name), name, None, timing)


Opener = Callable[[str, Timing], Source]
SCHEMES: Mapping[str, Opener] = {"file": _open_path, "webcam": _open_webcam, "url": _open_url}
CAMERAS = ("webcam", "url")  # what may be lost and come back


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
    reconnect: Reconnect | None = None,
) -> Source:
    """Open a video file, a folder of frames, a webcam by its number or a URL.

    Args:
        source: its name; or an open source, which is returned if it has this `fps` and lengths of chunks.
        fps: frames a second that are taken.
        start: second to start at; of a live source, the name of its first second.
        duration: seconds to watch; to the end (of a live source: for ever) without it.
        first_chunk_seconds: length of the first chunk; that of the others by default.
        schemes: how each kind of source is opened; more kinds are `{**SCHEMES, "match": opener}`, which opens "match:...".
        reconnect: how a webcam or a URL that is lost is opened again; by default it has then ended.

    Raises:
        InputError: a wrong argument; nothing there, no video in it, or nothing that can be opened.
    """
    timing = Timing(fps, chunk_seconds, start, duration, first_chunk_seconds)
    if isinstance(source, Source):
        return _check_open(source, timing)
    name = os.fsdecode(source) if isinstance(source, os.PathLike) else source
    scheme = scheme_of(name, schemes)
    opener = partial(schemes[scheme], str(name))
    if reconnect is None or scheme not in CAMERAS:
        return opener(timing)
    return open_reconnecting(source_name(name), timing, opener, reconnect)


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


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)  # every other one is a number
    return [(int(part), "") if index % 2 else (-1, part.lower()) for index, part in enumerate(parts)]
