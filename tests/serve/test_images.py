"""Images of clients as cameras and programs write them: the right way up, opaque, with all their levels."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from svlm_jax.serve.chat.media import read_image
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.images import Box, decode_image, exif_orientation
from tests.serve.test_attacks import PNG_HEAD, chunk, encoded, segment

BOX = Box(160, 160)


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a picture", orientation
    return encoded(form, (64, 48), exif=exif, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_seen_the_right_way_up(form, orientation):
    """Telephones write pixels as the sensor has them; a commentator who sees them on their side is wrong about everything."""
    data = turned(form, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, Limits(), BOX), expected)
    np.testing.assert_array_equal(read_image(data, Limits()), expected)
    assert decode_image(data, Limits(), Box(32, 32)).shape[:2] == ((32, 24) if orientation >= 5 else (24, 32))


def test_only_the_orientation_is_read_of_exif(monkeypatch, recwarn):
    """Else 70 kB of entries take seconds, and write a line for each of them to stderr."""
    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", lambda *_: pytest.fail("all entries were loaded"))
    entries = struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
    entries += b"".join(struct.pack("<HHII", 0x1000 + number, 7, 60_000, 8) for number in range(5000))
    bomb = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5001) + entries
    plain = encoded("JPEG", (64, 48))
    data = plain[:2] + segment(0xE1, bomb[:65_533]) + plain[2:]
    assert decode_image(data, Limits(), BOX).shape == read_image(data, Limits()).shape == (64, 48, 3) and not recwarn.list


@pytest.mark.parametrize(
    "exif",
    [b"", b"II", b"Exif\0\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff",
     b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHxx", 0x0112, 3, 1, 9)],
)  # fmt: skip
def test_damaged_exif_turns_nothing(exif):
    assert exif_orientation(exif) == 1


def test_16_bits_are_scaled_and_transparency_is_laid_on_white():
    """Else thermal cameras are white all over, and hidden colours show."""
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    image = decode_image(out.getvalue(), Limits(), BOX)
    assert image[0, 0, 0] == 0 and image[-1, -1, 0] == 255 and abs(float(image.mean()) - 127.5) < 1
    clear = io.BytesIO()
    Image.new("RGBA", (64, 48), (255, 0, 0, 0)).save(clear, "PNG")
    assert (decode_image(clear.getvalue(), Limits(), BOX) == 255).all()


def test_a_large_png_may_have_many_chunks():
    """FFmpeg writes 4 kB a chunk, libpng 8 kB: a screenshot of 3 MB has hundreds."""
    data = encoded("PNG", (900, 700))
    whole, parts = data.split(b"IDAT")[0][:-4], b""
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    pixels = b"".join(piece for name, piece in _chunks(data) if name == b"IDAT")
    parts = b"".join(chunk(b"IDAT", pixels[start : start + 4096]) for start in range(0, len(pixels), 4096))
    assert parts.count(b"IDAT") > 256 and whole.startswith(PNG_HEAD[:8])
    limits = Limits(max_image_bytes=4_000_000)
    np.testing.assert_array_equal(read_image(whole + parts + chunk(b"IEND", b""), limits), expected)


def _chunks(data: bytes):
    offset = 8
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4])
        yield data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        offset += 12 + length
