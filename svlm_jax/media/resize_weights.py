"""The weights of PIL's antialiased bicubic resize, for a device that applies them: each resized pixel is a weighted sum of
neighbouring source pixels.

PIL resizes uint8 in fixed point. It makes the weights in float64, divides them by their sum and rounds them to `FRACTION_BITS`;
each pass (columns, then rows: `pixels.resize`) ends in uint8. The same weights in int32 give the same pixels. numpy only.

Axes: n resized pixels along one side · K weights of a resized pixel.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from svlm_jax.config import VisionConfig
from svlm_jax.inputs import FRACTION_BITS, Grid, ResizeWeights, patch_layout
from svlm_jax.media.pixels import PixelConfig

MAX_WEIGHTS = 512  # of a pixel: more products of a pixel and 8 bits of a weight than float32 adds without rounding
SUPPORT = 2.0  # source pixels to each side that a bicubic weight reaches, before it is widened against aliasing


class FrameBox(NamedTuple):
    """Static sizes of a program that resizes frames: every chunk that fits is resized by it, and nothing compiles anew.

    num_frames, height, width: of the largest chunk, in pixels. rows, columns: the largest sides of a resized frame.
    row_weights, column_weights: K along each side.
    """

    num_frames: int
    height: int
    width: int
    rows: int
    columns: int
    row_weights: int
    column_weights: int

    @classmethod
    def of(cls, num_frames: int, height: int, width: int, rows: int, columns: int) -> "FrameBox":
        """For frames of exactly this size (and others that happen to fit), resized to rows x columns."""
        kernels = (resize_weights(size, out).weight.shape[1] for size, out in ((height, rows), (width, columns)))
        return cls(num_frames, height, width, rows, columns, *kernels)

    @classmethod
    def largest(cls, num_frames: int, height: int, width: int, config: PixelConfig, max_aspect_ratio: float) -> "FrameBox":
        """For frames of every size up to this one, with sides of at most this ratio."""
        factor = config.factor
        # A frame below min_pixels is enlarged: its longer side to at most that of the longest frame with so many pixels.
        enlarged = math.ceil(math.sqrt(config.min_pixels * max_aspect_ratio) / factor) * factor
        # Else a side goes to the nearest multiple, or one more where rounding the other side down leaves room in max_pixels.
        rows, columns = (max(enlarged, (round(side / factor) + 1) * factor) for side in (height, width))
        # Nearest multiples shrink a side to 2/3 at most; max_pixels by this much, and rounding down to a multiple by half.
        shrink = max(1.5, 2 * math.sqrt(height * width / config.max_pixels))
        kernel = 2 * math.ceil(SUPPORT * shrink) + 1
        return cls(num_frames, height, width, rows, columns, kernel, kernel)

    @property
    def is_exact(self) -> bool:
        """Whether the device can address every pixel with 32 bits, and add up the weights of one without rounding."""
        return (
            3 * self.num_frames * self.height * self.width < 1 << 31
            and max(self.row_weights, self.column_weights) <= MAX_WEIGHTS
        )

    def holds(self, num_frames: int, height: int, width: int, rows: int, columns: int) -> bool:
        """Whether so many frames of height x width, resized to rows x columns, fit."""
        fits = num_frames <= self.num_frames and height <= self.height and width <= self.width
        kernels = (resize_weights(size, out).weight.shape[1] for size, out in ((height, rows), (width, columns)))
        sizes = (rows, columns, *kernels)
        return fits and all(size <= limit for size, limit in zip(sizes, self[3:], strict=True))


@lru_cache(maxsize=256)
def resize_weights(size: int, out: int, padded_out: int | None = None, kernel: int | None = None) -> ResizeWeights:
    """The weights that take a side of `size` pixels to `out`. Where the two are equal, each is one weight of exactly 1.

    Args:
        padded_out, kernel: sizes that n and K are padded to; pixels that are added have weights of 0.
    """
    start, weight = _fixed_point(size, out)
    added = (padded_out or out) - out, (kernel or weight.shape[1]) - weight.shape[1]
    if min(added) < 0:
        raise ValueError(f"resize weights: got {weight.shape}, expected at most ({padded_out}, {kernel})")
    arrays = np.pad(start, (0, added[0])), np.pad(weight, ((0, added[0]), (0, added[1])))
    for array in arrays:
        array.flags.writeable = False  # they are cached
    return ResizeWeights(*arrays)


def frame_patch_index(grid: Grid, config: VisionConfig, num_patches: int, box: FrameBox) -> np.ndarray:
    """For each patch in window order, its number in the resized frames of the box; -1 on padding. int32 [num_patches]."""
    t, h, w = grid
    layout = patch_layout((grid,), config, num_patches)
    pair, (row, column) = layout.patch_index // (h * w), layout.positions[: t * h * w].T
    index = np.full(num_patches, -1, np.int32)
    index[: t * h * w] = (pair * (box.rows // config.patch_size) + row) * (box.columns // config.patch_size) + column
    return index


def _fixed_point(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [n] int32, weight [n, K] int32). Order and precision of each operation are PIL's: they are part of the result."""
    if size == out:  # PIL skips the pass
        return np.arange(out, dtype=np.int32), np.full((out, 1), 1 << FRACTION_BITS, np.int32)
    scale = size / out
    stretch = max(scale, 1.0)  # antialiasing widens the filter when the side shrinks
    center = (np.arange(out) + 0.5) * scale
    start = np.maximum(np.trunc(center - SUPPORT * stretch + 0.5), 0).astype(np.int64)
    stop = np.minimum(np.trunc(center + SUPPORT * stretch + 0.5), size).astype(np.int64)
    steps = np.arange((stop - start).max())
    is_inside = steps < (stop - start)[:, None]
    weight = _bicubic(((steps + start[:, None]) - center[:, None] + 0.5) * (1.0 / stretch)) * is_inside
    total = np.zeros(out)
    for column in weight.T:  # from left to right: np.sum would add in pairs, and round otherwise
        total += column
    weight /= total[:, None]
    return start.astype(np.int32), np.trunc(np.where(weight < 0, -0.5, 0.5) + weight * (1 << FRACTION_BITS)).astype(np.int32)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5, in PIL's order of operations."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
