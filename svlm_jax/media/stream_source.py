"""A webcam or a URL as a source, through PyAV.

Owns which frames of a live source are taken, the size that all of them have, and why a source ended. Does not open a source
again (`reconnect`). PyAV only inside the functions that need it. Units: seconds counted from the first frame of the source.
Axes: H, W pixels.
"""

import errno
import math
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.chunks import REMEDY, Source, Timing
from svlm_jax.media.container import RAW, Reader, can_jump
from svlm_jax.media.display import FrameContext, Orientation, display_size, orientation, to_rgb
from svlm_jax.media.image import fit_inside, on_black
from svlm_jax.media.video import SLACK

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

OPEN_TIMEOUT, READ_TIMEOUT = 15.0, 10.0  # seconds without an answer, and without a frame
MISSING = 0.5  # seconds by which a picture may end before its source does, without a word


class StreamSource(Source):
    """A webcam or a URL, through PyAV. Frame k is the one that was on screen k / fps seconds after the first; when it is late,
    the last one stands still. All frames have the size of the first: those of another are fitted into it without distortion. A
    camera that goes away ends the source, and `ending` says why; no password is in it, nor in `name`.

    Attributes:
        length: seconds of a source that is not live, as far as they are known.
        size: width and height of all frames; None before the first one, unless the caller has set it.
        first_arrival, last_arrival: of a live source, when its first frame and its newest packet came, by `clock`.
    """

    def __init__(self, name: str, address: str, container_format: str | None, timing: Timing) -> None:
        super().__init__(name, timing)
        import av
        from av.error import FFmpegError

        self.address = address
        self.size: tuple[int, int] | None = None
        self.first_arrival: float | None = None
        self.last_orientation: tuple[int, Orientation] | None = None  # with the rotation of its frame
        self.clock: Callable[[], float] = time.monotonic  # of arrivals: whether a gap in their stamps is time that passed
        # TCP loses no packets; some cameras have UDP alone
        options = {"rtsp_flags": "prefer_tcp"} if address.lower().startswith("rtsp") else {}
        started = time.monotonic()
        try:
            timeout = (OPEN_TIMEOUT, READ_TIMEOUT)
            self.container: InputContainer = av.open(address, format=container_format, options=options, timeout=timeout)
        except (FFmpegError, OSError, ValueError) as error:
            timed_out = time.monotonic() - started >= OPEN_TIMEOUT  # RTSP then calls the answer invalid
            reason = f"no answer in {OPEN_TIMEOUT:g} s" if timed_out else self._reason(error)
            if isinstance(error, OSError) and error.errno == errno.EIO and not _is_known_host(address):
                reason = "a host that is not known"
            raise InputError(name, reason, "a source that opens", self._remedy(address)) from None
        length = self.container.duration or 0
        self.live = (length <= 0 and not _has_size(self.container)) or container_format is not None
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
        is_known = not self.live and length > 0 and (not can_jump(self.container) or self.container.format.name == "hls")
        self.length = length / 1e6 if is_known else None
        self.total = self._chunks_in(self.length)

    @property
    def last_arrival(self) -> float | None:
        return self.reader.arrival

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
        previous, image, num_sent, end = None, None, 0, 0.0
        until = math.inf if self.duration is None else self.skip + self.duration
        for second, length, frame in self.reader.frames():
            if image is None:
                size = display_size(frame, self._orientation(frame))
                self.size, self.first_arrival = self.size or size, self.last_arrival
            while image is not None and self.skip + num_sent / self.fps < min(second, until) - SLACK:
                yield image
                num_sent += 1
            due, end = self.skip + num_sent / self.fps, second + length
            if due >= until - SLACK:
                return
            if image is None or second + 1 / self.fps >= due:  # one that no sample can fall on is never converted
                image = self._picture(FrameContext(frame, previous, orientation=self._orientation(frame)))
            previous = frame
        self.ending = self._ending(end)
        self.reader.damage.report(end, is_last=True)
        if image is None:
            remedy = self._remedy(self.container.format.name)
            raise InputError(
                self.name, f"no frame ({self.ending})" if self.ending else "no frame", "a source with frames", remedy
            )
        while not num_sent or self.skip + num_sent / self.fps < min(end, until) - SLACK:  # no frame follows the last one
            yield image
            num_sent += 1

    def _picture(self, context: FrameContext) -> np.ndarray:
        assert self.size is not None
        fitted = fit_inside(display_size(context.frame, context.orientation), self.size)
        return on_black(to_rgb(context, fitted), self.size)

    def _orientation(self, frame: "av.VideoFrame") -> Orientation:
        """Read where the rotation has changed. A frame whose side data was asked for refers to itself and is free when the
        collector of cycles comes by: of 1080p some 200 of them, 600 MB, would wait for it."""
        if self.last_orientation is None or self.last_orientation[0] != frame.rotation:
            self.last_orientation = frame.rotation, orientation(frame)
        return self.last_orientation[1]

    def _ending(self, end: float) -> str:
        error = self.reader.read_error
        if self.reader.gave_up:
            return self.reader.gave_up
        # HTTP without a length has no other end than that of the connection, which FFmpeg takes for a failure
        is_end = isinstance(error, OSError) and error.errno == errno.EIO and self.live and self.address[:4].lower() == "http"
        if error is None and self.length is not None and self.length - end > MISSING and not self.reader.joiner.num_jumps:
            return f"its picture ends at {end:.1f} s of {self.length:.1f} s"  # segments of a playlist that are gone
        if error is None or is_end:
            return "the source has ended"
        return f"the source broke off: {self._reason(error)}"

    def close(self) -> None:
        self.container.close()
        # it refers to this source: FFmpeg's memory is free now, and not when the collector of cycles comes by
        vars(self).pop("reader", None)


def _has_size(container: "InputContainer") -> bool:
    """Whether it is a file of known size behind a server, which waits while it is read. Some cameras state the largest number
    that they know."""
    size = container.size
    return container.format.name not in (*RAW, "hls", "dash") and size > 0 and (size & (size + 1)) != 0


def _is_known_host(address: str) -> bool:
    """FFmpeg calls a name that nobody knows an input/output error."""
    try:
        host = urlsplit(address).hostname
        return not host or bool(socket.getaddrinfo(host, None))
    except OSError:
        return False
    except ValueError:
        return True
