"""Images of every kind, and what is said of those that cannot be used."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.media.image import as_frames, load_image
from svlm_jax.media.pixels import PixelConfig, preprocess
from tests.media.test_video import grey, refused

QWEN_IMAGE = PixelConfig(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "RGB"])
@pytest.mark.parametrize("kind", ["object", "file"])
def test_every_8_bit_mode_becomes_the_rgb_that_transformers_makes_of_it(tmp_path, mode, kind):
    library = pytest.importorskip("transformers.image_transforms")
    source = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    image = Image.fromarray(source)
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(source[..., 3]))
    if kind == "file":
        path = tmp_path / "image.tif"
        image.save(path)
        image = Image.open(path)
    pixels = load_image(path if kind == "file" else image)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, library.convert_to_rgb(image, return_numpy=True))


def test_transparent_pixels_become_white_also_in_a_palette_and_in_an_array(tmp_path):
    clear = np.zeros((20, 20, 4), np.uint8)
    assert (load_image(clear) == 255).all()
    assert (load_image(Image.fromarray(clear)) == 255).all()
    palette = Image.new("P", (20, 20), 3)
    palette.putpalette(range(48))
    palette.save(tmp_path / "p.png", transparency=3)
    assert (load_image(tmp_path / "p.png") == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_images_are_scaled_and_not_clipped(tmp_path, suffix):
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    want = np.round(levels / 257).astype(np.uint8)
    image = load_image(tmp_path / f"deep.{suffix}")
    assert (image == want[..., None]).all()
    np.testing.assert_array_equal(load_image(levels), image)


def test_a_phone_photo_is_turned_upright_by_its_exif_tag(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise to view
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "phone.png"), np.rot90(pixels, -1))


def test_an_rgb_array_is_not_copied_and_grey_arrays_get_three_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert load_image(pixels) is pixels
    for grey_array in (pixels[..., 0], pixels[..., :1]):
        np.testing.assert_array_equal(load_image(grey_array), np.repeat(pixels[..., :1], 3, axis=2))


def test_a_one_pixel_image_works_with_one_line_of_warning():
    with pytest.warns(UserWarning) as caught:
        image = load_image(np.full((1, 1, 3), 7, np.uint8))
    assert len(caught) == 1
    assert re.fullmatch(r"image of 1x1 px is smaller than one 14x14 patch and will be upscaled", str(caught[0].message))
    patches, grid = preprocess(image[None], QWEN_IMAGE)
    assert grid == (1, 4, 4) and np.ptp(patches.reshape(16, 3, -1), axis=(0, 2)).max() == 0


def test_a_strip_is_refused_by_the_aspect_ratio_rule():
    with pytest.warns(UserWarning, match="20000x10"):
        image = load_image(np.zeros((10, 20000, 3), np.uint8))
    refused(lambda: preprocess(image[None], QWEN_IMAGE), "aspect ratio 2000", "crop or pad")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp", "ppm"])
def test_a_truncated_image_is_refused_and_never_leaks_another_error(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    outcomes = []
    for part in np.linspace(0, 0.95, 20):
        path.write_bytes(data[: int(part * len(data))])
        try:
            load_image(path)
            outcomes.append(True)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            outcomes.append(False)
    assert not any(outcomes[:10])


def test_bad_images_are_refused_in_one_line(tmp_path):
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("this is no picture")
    refused(lambda: load_image(empty), "empty.png", "an empty file", "download it again")
    refused(lambda: load_image(text), "text.png", "cannot identify", "save it again")
    refused(lambda: load_image(tmp_path / "missing.png"), "missing.png", "no such file", "check the path")
    refused(lambda: load_image(tmp_path), "a directory", "name one file")
    refused(lambda: load_image(Image.fromarray(np.zeros((20, 20), np.float32))), "32-bit", "0..255")
    refused(lambda: load_image(Image.new("RGB", (0, 5))), "0x5", "leave this image out")
    lazy = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(lazy, "BMP")
    refused(lambda: load_image(Image.open(io.BytesIO(lazy.getvalue()[:600]))), "image: got OSError", "save it again")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(lambda: load_image(path), "bomb.png", "10000 pixels", "scale it down")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((20, 20, 3), np.float32),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((20, 20, 2), np.uint8),
        np.zeros((0, 20, 3), np.uint8),
        np.zeros((2, 20, 20, 3), np.uint8),
        np.zeros((20, 20, 4), np.uint16)[..., :2],
    ],
    ids=["float", "channels first", "two channels", "no rows", "a clip", "16-bit two channels"],
)
def test_arrays_of_another_shape_or_dtype_are_refused(array):
    refused(lambda: load_image(array), str(array.dtype), str(list(array.shape)), "uint8 [H, W, 3]", "channels last")


# --- lists of images ---


def test_as_frames_takes_paths_images_and_arrays_together(tmp_path):
    frames = grey(3)
    Image.fromarray(frames[0]).save(tmp_path / "0.png")
    mixed = [tmp_path / "0.png", Image.fromarray(frames[1]), frames[2]]
    np.testing.assert_array_equal(as_frames(mixed), frames)
    assert as_frames(frames) is frames


def test_as_frames_refuses_no_images_other_sizes_and_single_images():
    refused(lambda: as_frames([]), "an empty list", "check the folder")
    refused(lambda: as_frames([grey(1)[0], grey(1, width=98)[0]]), "image 1", "98x64", "96x64", "one size")
    refused(lambda: as_frames("frame.png"), "str", "a list", "wrap a single image in a list")
    refused(lambda: as_frames(grey(1).astype(np.float32)), "float32", "uint8")


def test_no_program_is_run_for_a_picture_whatever_it_is_called(tmp_path, monkeypatch):
    """PIL hands PostScript to Ghostscript: a folder of somebody's pictures must not run it."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    refused(lambda: load_image(tmp_path / "photo.jpg"), "photo.jpg", "a readable image")
    assert not (tmp_path / "ran").exists()
