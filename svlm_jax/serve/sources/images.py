"""Images that clients send, checked before a pixel is decoded; and frames encoded for browsers.

Owns what an image may cost: only its header and the markers between its segments are read to tell what decoding it would take.
Markers are searched for by regular expressions and jumps, so that an image made to be slow is refused as fast as any other;
segments that pixels do not depend on never reach the decoder. Axes: H, W pixels. Units: pixels, bytes.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.media.image import UNREADABLE, load_image
from svlm_jax.serve.limits import Limits

JPEG_QUALITY = 72
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_ASPECT_RATIO = 4.0
MAX_SEGMENTS = 256  # segments or chunks of one file: cameras write about ten
MIN_CHUNK_BYTES = 1024  # of the other chunks of a large PNG, on average: encoders write 4 kB, 8 kB or more
MAX_EXIF_ENTRIES = 256
READABLE = f"{', '.join(FORMATS)} that can be read"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SOF, OTHER_SOF = (0xC0, 0xC1, 0xC2), (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF)  # CC: arithmetic, too
SOI, EOI, SOS, JFIF, ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
APP1 = 0xE1  # EXIF
ORIENTATION, SHORT = 0x0112, 3  # tag and type of an entry of EXIF
DECODER_SEGMENTS = (0xC4, 0xDB, 0xDD, JFIF, ADOBE, *SOF)  # that pixels depend on: tables, restarts, colours, the frame
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in coded data: not stuffing, not fill, not a restart
NOT_FILL = re.compile(rb"[^\xff]")


class Box(NamedTuple):
    """The largest frame of a session, in pixels."""

    width: int
    height: int


class ImageHeader(NamedTuple):
    """width, height: of the pixels as they are stored; scans: passes over them; data: the file without what no decoder needs;
    orientation: as EXIF counts it, 1 to 8."""

    width: int
    height: int
    scans: int
    data: bytes
    orientation: int = 1

    @property
    def is_on_its_side(self) -> bool:
        """Whether rows and columns change places."""
        return self.orientation >= 5


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what puts an image upright, by its orientation


def fit_size(width: int, height: int, box: Box) -> tuple[int, int]:
    """Width and height of an image, scaled down into the box.

    Raises:
        InputError: a side more than four times the other.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InputError("image", f"{width}x{height} px", f"sides within 1:{MAX_ASPECT_RATIO:g}", "crop it")
    scale = min(1.0, box.width / width, box.height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode_jpeg(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as JPEG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def read_header(data: bytes, limits: Limits) -> ImageHeader:
    """The header of a client's image, if the image may be decoded. Decodes no pixel.

    Raises:
        InputError: too many bytes, pixels or scans; an animation; a rare kind of JPEG; no complete JPEG, PNG or WebP.
    """
    if len(data) > limits.max_image_bytes:
        raise InputError("image", f"{len(data)} bytes", f"at most {limits.max_image_bytes}", "send smaller ones")
    try:
        if data[:2] == b"\xff\xd8":
            header = _read_jpeg(data, limits.max_image_scans)
        elif data[: len(PNG_SIGNATURE)] == PNG_SIGNATURE:
            header = _read_png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _read_webp(data)
        else:
            raise _unreadable("another format (UnidentifiedImageError)" if data else "nothing")
    except (IndexError, struct.error):
        raise _unreadable("a file that ends early") from None
    if not header.width or not header.height:
        raise _unreadable(f"{header.width}x{header.height} px")
    if header.width * header.height > limits.max_image_pixels:
        got = f"{header.width}x{header.height} px"
        raise InputError("image", got, f"at most {limits.max_image_pixels} px", "send smaller ones")
    return header


def decode_image(data: bytes, limits: Limits, box: Box) -> np.ndarray:
    """A client's image as uint8 [H, W, 3], upright, opaque, scaled down into the box. Its header is checked before a pixel is
    decoded.

    Raises:
        InputError: as `read_header` and `fit_size` do; or the pixels cannot be decoded.
    """
    header = read_header(data, limits)
    size = fit_size(*upright_size(header), box)
    with decoder(header) as image:
        try:
            stored = (size[1], size[0]) if header.is_on_its_side else size
            image.draft("RGB", stored)  # JPEG: decodes at a fraction of the size already
            pixels = upright(load_image(image), header)
        except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _unreadable(type(error).__name__) from None
    return np.asarray(pixels.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def decoder(header: ImageHeader) -> Image.Image:
    """The opened image of a header that was checked, to be closed. No pixel is decoded yet.

    Raises:
        InputError: the decoder does not take it, or sees another size.
    """
    try:
        image = Image.open(io.BytesIO(header.data), formats=FORMATS)
    except (*UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _unreadable(type(error).__name__) from None
    if image.size != (header.width, header.height):
        image.close()
        raise _unreadable("two sizes in one file")
    return image


def upright_size(header: ImageHeader) -> tuple[int, int]:
    """(width, height) of an image as people see it."""
    return (header.height, header.width) if header.is_on_its_side else (header.width, header.height)


def upright(pixels: np.ndarray, header: ImageHeader) -> Image.Image:
    """Decoded pixels, uint8 [H, W, 3], the right way up."""
    image = Image.fromarray(pixels)
    turn = TURNS.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def exif_orientation(exif: bytes) -> int:
    """1 to 8, of the TIFF in a segment or chunk of EXIF; 1 where it says nothing. One entry is read and none is loaded: a
    library that loads all of them may take seconds."""
    tiff = exif.removeprefix(b"Exif\0\0")
    byte_order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if byte_order is None:
        return 1
    try:
        start = struct.unpack_from(f"{byte_order}I", tiff, 4)[0]
        for index in range(min(struct.unpack_from(f"{byte_order}H", tiff, start)[0], MAX_EXIF_ENTRIES)):
            tag, kind, _, value = struct.unpack_from(f"{byte_order}HHIH", tiff, start + 2 + 12 * index)
            if (tag, kind) == (ORIENTATION, SHORT):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends early
        pass
    return 1


def _unreadable(got: str) -> InputError:
    return InputError("image", got, READABLE, "send JPEG")


def _animation() -> InputError:
    return InputError("image", "an animation", "one image", "send JPEG")


def _read_jpeg(data: bytes, max_scans: int) -> ImageHeader:
    """Segment by segment to the end of the first image; what follows it, and most APP segments, are left out of the copy."""
    size, scans, parts, offset, orientation = (0, 0), 0, [data[:2]], 2, 1
    for _ in range(MAX_SEGMENTS):
        if data[offset] != 0xFF or (match := NOT_FILL.search(data, offset)) is None:
            raise _unreadable("no marker where one must be")
        offset, marker = match.start() + 1, data[match.start()]
        if marker == EOI and scans and size[0]:
            return ImageHeader(*size, scans, b"".join([*parts, b"\xff\xd9"]), orientation)
        if marker in STANDALONE:
            continue
        length = struct.unpack_from(">H", data, offset)[0]
        if length < 2 or offset + length > len(data) or marker in (0, SOI, EOI):
            raise _unreadable("a damaged segment")
        if marker in OTHER_SOF or (marker in SOF and size[0]):  # lossless, arithmetic, hierarchical, or a second frame
            raise InputError("image", "a rare kind of JPEG", "a baseline or progressive one", "send an ordinary JPEG")
        if marker in SOF:
            height, width = struct.unpack_from(">HH", data, offset + 3)
            size = (width, height)
        if marker == APP1 and data[offset + 2 : offset + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[offset + 2 : offset + length])
        if marker == SOS and not size[0]:
            raise _unreadable("a scan before the frame")
        if marker == SOS or marker in DECODER_SEGMENTS:
            parts.append(b"\xff" + data[offset - 1 : offset + length])
        offset += length
        if marker == SOS:
            scans += 1
            if scans > max_scans:  # each scan is a pass over all pixels, and may be 13 bytes long
                raise InputError("image", f"more than {max_scans} scans", f"at most {max_scans}", "send an ordinary JPEG")
            if (match := MARKER.search(data, offset)) is None:
                raise _unreadable("a file that ends early")
            parts.append(data[offset : match.start()])
            offset = match.start()
    raise InputError("image", f"more than {MAX_SEGMENTS} segments", "a few", "send an ordinary JPEG")


def _read_png(data: bytes) -> ImageHeader:
    """Chunk by chunk; the copy has only those that pixels depend on."""
    parts, size, orientation = [data[: len(PNG_SIGNATURE)]], (0, 0), 1
    for name, start, length in _chunks(data, len(PNG_SIGNATURE), ">I4s", checksum_bytes=4):
        if (name == b"IHDR") != (len(parts) == 1):
            raise _unreadable("a header that is not where it must be")
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", data, start)
            size = (width, height)
        if name in (b"acTL", b"fcTL", b"fdAT"):
            raise _animation()
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(data[start - 8 : start + length + 4])
        if name == b"eXIf":
            orientation = exif_orientation(data[start : start + length])
        if name == b"IEND":
            return ImageHeader(*size, 1, b"".join(parts), orientation)
    raise _unreadable("a file that ends early")


def _read_webp(data: bytes) -> ImageHeader:
    """Chunk by chunk; the size of the one image must be that of the canvas around it, if there is one."""
    canvas, size, image, orientation = (0, 0), (0, 0), b"", 1
    for name, start, length in _chunks(data, 12, "<4sI", checksum_bytes=0):
        if name in (b"ANIM", b"ANMF") or (name == b"VP8X" and data[start] & 2):
            raise _animation()
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(data[start + n : start + n + 3], "little") for n in (4, 7))
            canvas = (width, height)
        if name == b"EXIF":
            orientation = exif_orientation(data[start : start + length])
        if name in (b"VP8 ", b"VP8L") and not image:
            if name == b"VP8 ":
                width, height = struct.unpack_from("<HH", data, start + 6)
                size = (width & 0x3FFF, height & 0x3FFF)
            else:
                bits = struct.unpack_from("<I", data, start + 1)[0]
                size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            image = data[start - 8 : start + length + length % 2]
    if not image or canvas not in (size, (0, 0)):
        raise _unreadable("no image, or two sizes in one file")
    return ImageHeader(*size, 1, b"RIFF" + struct.pack("<I", 4 + len(image)) + b"WEBP" + image, orientation)


def _chunks(data: bytes, offset: int, layout: str, *, checksum_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (name, start of the content, its length) of each chunk. layout: of the 8 bytes before the content."""
    max_chunks = MAX_SEGMENTS + len(data) // MIN_CHUNK_BYTES
    for _ in range(max_chunks):
        if offset >= len(data):
            return
        first, second = struct.unpack_from(layout, data, offset)
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        start = offset + 8
        if start + length > len(data):
            raise _unreadable("a file that ends early")
        yield name, start, length
        padding = length % 2 if not checksum_bytes else 0  # RIFF (WebP) pads to even lengths, PNG does not
        offset = start + length + checksum_bytes + padding
    raise InputError("image", f"more than {max_chunks} chunks", "a few", "send JPEG")
