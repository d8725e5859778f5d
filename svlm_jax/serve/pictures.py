"""Pictures that clients send, looked at before a pixel is decoded, and pictures on the way to a browser.

Owns what a picture may cost: only its header and the marks between its parts are read to say what decoding it would take. What
decides is looked for by jumps, so that a picture made to be slow is refused as fast as any other; comments and the like never
reach the decoder. Axes: H, W pixels. Units: pixels, bytes.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.media.image import UNREADABLE
from svlm_jax.serve.limits import Limits

QUALITY = 72  # of JPEG
FORMATS = ("JPEG", "PNG", "WEBP")
THINNEST = 4.0  # largest ratio of sides
PARTS = 256  # segments or chunks of one file: cameras write about ten
READABLE = f"{', '.join(FORMATS)} that can be read"

PNG = b"\x89PNG\r\n\x1a\n"
SOF, OTHER_SOF = (0xC0, 0xC1, 0xC2), (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF)  # CC: arithmetic, too
SOI, EOI, SOS, JFIF, ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
BARE = (0x01, *range(0xD0, 0xD8))  # markers without a length
DECODED = (0xC4, 0xDB, 0xDD, JFIF, ADOBE, *SOF)  # segments that pixels depend on: tables, restarts, colours, the frame
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in coded data: not stuffing, not fill, not a restart
NOT_FILL = re.compile(rb"[^\xff]")


class Box(NamedTuple):
    """The largest picture of a session, in pixels."""

    width: int
    height: int


class Header(NamedTuple):
    """What a file says of itself: its size, passes over its pixels, and the file without what no decoder needs."""

    width: int
    height: int
    scans: int
    data: bytes


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


def header(data: bytes, limits: Limits) -> Header:
    """What a client's picture says of itself, if it may be decoded. No pixel is.

    Raises:
        InputError: too many bytes, pixels or scans; an animation; a rare kind of JPEG; no whole JPEG, PNG or WebP.
    """
    if len(data) > limits.camera_bytes:
        raise InputError("picture", f"{len(data)} bytes", f"at most {limits.camera_bytes}", "send smaller ones")
    try:
        if data[:2] == b"\xff\xd8":
            found = _jpeg(data, limits.camera_scans)
        elif data[: len(PNG)] == PNG:
            found = _png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = _webp(data)
        else:
            raise _broken("another format (UnidentifiedImageError)" if data else "nothing")
    except (IndexError, struct.error):
        raise _broken("a file that ends early") from None
    if not found.width or not found.height:
        raise _broken(f"{found.width}x{found.height} px")
    if found.width * found.height > limits.camera_pixels:
        got = f"{found.width}x{found.height} px"
        raise InputError("picture", got, f"at most {limits.camera_pixels} px", "send smaller ones")
    return found


def decoded(data: bytes, limits: Limits, box: Box) -> np.ndarray:
    """A client's picture as uint8 [H, W, 3], scaled down into the box. Its header is looked at before a pixel is decoded.

    Raises:
        InputError: as `header` does; broken, or too thin.
    """
    known = header(data, limits)
    size = fitted((known.width, known.height), box)
    try:
        with Image.open(io.BytesIO(known.data), formats=FORMATS) as image:
            if image.size != (known.width, known.height):
                raise _broken("two sizes in one file")
            image.draft("RGB", size)  # JPEG: decodes at a fraction of the size already
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    except InputError:
        raise
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _broken(type(error).__name__) from None


def _broken(got: str) -> InputError:
    return InputError("picture", got, READABLE, "send JPEG")


def _jpeg(data: bytes, most: int) -> Header:
    """Segment by segment to the end of the first picture; what follows, or stands in APP segments, is left out."""
    size, scans, kept, at = (0, 0), 0, [data[:2]], 2
    for _ in range(PARTS):
        if data[at] != 0xFF or (found := NOT_FILL.search(data, at)) is None:
            raise _broken("no marker where one must be")
        at, marker = found.start() + 1, data[found.start()]
        if marker == EOI and scans and size[0]:
            return Header(*size, scans, b"".join([*kept, b"\xff\xd9"]))
        if marker in BARE:
            continue
        length = struct.unpack_from(">H", data, at)[0]
        if length < 2 or at + length > len(data) or marker in (0, SOI, EOI):
            raise _broken("a damaged segment")
        if marker in OTHER_SOF or (marker in SOF and size[0]):
            raise InputError("picture", "a rare kind of JPEG", "a baseline or progressive one", "send an ordinary JPEG")
        if marker in SOF:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = (width, height)
        if marker == SOS and not size[0]:
            raise _broken("a scan before the frame")
        if marker == SOS or marker in DECODED:
            kept.append(b"\xff" + data[at - 1 : at + length])
        at += length
        if marker == SOS:
            scans += 1
            if scans > most:
                raise InputError("picture", f"more than {most} scans", f"at most {most}", "send an ordinary JPEG")
            if (found := MARKER.search(data, at)) is None:
                raise _broken("a file that ends early")
            kept.append(data[at : found.start()])
            at = found.start()
    raise InputError("picture", f"more than {PARTS} segments", "a few", "send an ordinary JPEG")


def _png(data: bytes) -> Header:
    """Chunk by chunk; only those that pixels depend on are kept."""
    kept, size = [data[: len(PNG)]], (0, 0)
    for name, start, length in _chunks(data, len(PNG), ">I4s", 4):
        if (name == b"IHDR") != (len(kept) == 1):
            raise _broken("a header that is not where it must be")
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", data, start)
            size = (width, height)
        if name in (b"acTL", b"fcTL", b"fdAT"):
            raise _moving()
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start - 8 : start + length + 4])
        if name == b"IEND":
            return Header(*size, 1, b"".join(kept))
    raise _broken("a file that ends early")


def _webp(data: bytes) -> Header:
    """Chunk by chunk; the size is that of the one picture, and of the canvas around it."""
    canvas, size, kept = (0, 0), (0, 0), b""
    for name, start, length in _chunks(data, 12, "<4sI", 0):
        if name in (b"ANIM", b"ANMF") or (name == b"VP8X" and data[start] & 2):
            raise _moving()
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(data[start + n : start + n + 3], "little") for n in (4, 7))
            canvas = (width, height)
        if name in (b"VP8 ", b"VP8L") and not kept:
            if name == b"VP8 ":
                width, height = struct.unpack_from("<HH", data, start + 6)
                size = (width & 0x3FFF, height & 0x3FFF)
            else:
                bits = struct.unpack_from("<I", data, start + 1)[0]
                size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            kept = data[start - 8 : start + length + length % 2]
    if not kept or canvas not in (size, (0, 0)):
        raise _broken("no picture, or two sizes in one file")
    return Header(*size, 1, b"RIFF" + struct.pack("<I", 4 + len(kept)) + b"WEBP" + kept)


def _chunks(data: bytes, at: int, form: str, check: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, bytes of it) of chunk after chunk; `check`: bytes behind each."""
    for _ in range(PARTS):
        if at >= len(data):
            return
        first, second = struct.unpack_from(form, data, at)
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        start = at + 8
        if start + length > len(data):
            raise _broken("a file that ends early")
        yield name, start, length
        at = start + length + check + (length % 2 if not check else 0)
    raise InputError("picture", f"more than {PARTS} chunks", "a few", "send JPEG")


def _moving() -> InputError:
    return InputError("picture", "an animation", "one picture", "send JPEG")
