"""Image files and objects to uint8 RGB frames.

Owns the errors of images. numpy and PIL. Axes: F frames · H, W pixels · 3 channels R, G, B.
"""

import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import placeholder
from svlm_jax.media.paths import existing_file

PATCH = 14  # pixels on a side of a patch; a smaller image is enlarged before the model sees it
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what PIL's plugins raise for broken files

ImageSource = str | os.PathLike | Image.Image | np.ndarray


def load_image(source: ImageSource) -> np.ndarray:
    """A path, PIL image or array -> uint8 [H, W, 3].

    EXIF orientation is applied, as transformers' `load_image` does. Transparency is laid on white, as transformers 5's
    Qwen processor does with a PIL image. 16-bit pixels are scaled to 8 bits (PIL clips them); grayscale, palette and
    CMYK become RGB; an animation gives its first picture. Arrays: uint8 or uint16 [H, W], [H, W, 1], [H, W, 3] or
    [H, W, 4]; a uint8 [H, W, 3] array comes back as it is. A side shorter than a patch is allowed, with one warning.

    Raises:
        InputError: no such file, not an image, broken or too large for PIL's limit; an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        image = _image_of_array(source)
    elif isinstance(source, Image.Image):
        image = _readable_image(source, "image")
    elif isinstance(source, (str, os.PathLike)):
        path = existing_file(source, "image")
        image = _readable_image(path, f"image {shortened(str(path))}")
    else:
        raise InputError("image", type(source).__name__, "a path, a PIL image or an array", "load it as one of these")
    height, width = image.shape[:2]
    if min(height, width) < PATCH:
        text = f"image of {width}x{height} px is smaller than one {PATCH}x{PATCH} patch and will be upscaled"
        warnings.warn(text, stacklevel=2)
    return image


def fit_inside(size: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) to which a picture of that size is scaled without distortion, to fill another from side to side."""
    scale = min(largest[0] / size[0], largest[1] / size[1])
    width, height = (min(max(1, round(side * scale)), limit) for side, limit in zip(size, largest, strict=True))
    return width, height


def on_black(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, uint8 [H, W, 3], in the middle of a black picture of that (width, height), which is no smaller."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    picture[top : top + height, left : left + width] = image
    return picture


def letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, uint8 [H, W, 3], as a picture of that (width, height): scaled without distortion, in the middle, on black."""
    height, width = image.shape[:2]
    fitted = fit_inside((width, height), size)
    if fitted != (width, height):
        image = np.asarray(Image.fromarray(image).resize(fitted, Image.Resampling.BILINEAR, reducing_gap=2.0))
    return on_black(image, size)


def _image_of_array(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.dtype not in (np.uint8, np.uint16) or not array.size:
        got, expected = f"{array.dtype} {list(array.shape)}", "uint8 [H, W, 3] (or uint16; 1 or 4 channels; [H, W])"
        raise InputError("image array", got, expected, "move channels last and convert the values to 0..255 uint8")
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    if channels == 4:
        return on_white(array)
    return array if channels == 3 else np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)


def _readable_image(source: Path | Image.Image, field: str) -> np.ndarray:
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, field)
        with Image.open(source, formats=_formats()) as image:
            return _rgb(image, field)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(field, error, "a smaller image", "scale it down first") from error
    except UNREADABLE as error:
        got, remedy = f"{type(error).__name__} ({error})", "open it in a viewer to check it and save it again as PNG or JPEG"
        if isinstance(source, Path) and (kind := placeholder(source)):
            got, remedy = kind
        raise InputError(field, got, "a readable image", remedy) from error


def _formats() -> list[str]:
    """What PIL can read by itself: for EPS, whatever the name of the file, it would run Ghostscript on it."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _rgb(image: Image.Image, field: str) -> np.ndarray:
    """Any PIL image -> uint8 [H, W, 3], upright and opaque."""
    if min(image.size) < 1:
        raise InputError(field, f"{image.width}x{image.height} px", "at least 1x1 px", "leave this image out")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:  # 16-bit PGM files have mode "I" too
            raise InputError(field, "32-bit pixels", "8 or 16 bits a channel", "scale it to 0..255 and save it as PNG")
        return np.repeat(_to_8_bits(pixels)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode[-1] in "Aa":
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4], the last channel opacity -> uint8 [H, W, 3], laid on white."""
    image = Image.fromarray(rgba)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257, to the nearest


def as_frames(source: Sequence[ImageSource] | np.ndarray) -> np.ndarray:
    """Images of one size (anything `load_image` takes), or a uint8 [F, H, W, 3] array -> uint8 [F, H, W, 3].

    Raises:
        InputError: no images, different sizes, or an image that `load_image` refuses.
    """
    if isinstance(source, (str, os.PathLike, Image.Image)) or not hasattr(source, "__len__"):
        raise InputError("frames", type(source).__name__, "a list of images", "wrap a single image in a list")
    if not len(source):
        raise InputError("frames", "an empty list", "at least 1 image", "check the folder or pattern they come from")
    if isinstance(source, np.ndarray) and source.ndim == 4 and source.shape[3] == 3 and source.dtype == np.uint8:
        return source
    images = [load_image(image) for image in source]
    for number, image in enumerate(images):
        if image.shape != images[0].shape:
            (height, width), (first_height, first_width) = image.shape[:2], images[0].shape[:2]
            expected = f"{first_width}x{first_height} px as image 0"
            raise InputError(f"frames: image {number}", f"{width}x{height} px", expected, "resize them to one size")
    return np.stack(images)
