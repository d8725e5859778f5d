"""What the model takes: two bundles of arrays, and how images and clips are laid out in them. numpy only, so that data workers
can build them (`model/vision` registers VisionInput as a jax pytree).

Patches travel in WINDOW ORDER: every attention window of the vision tower is one contiguous run, so the tower never permutes
anything, and a token finds its merged vision row through `Inputs.rows`. Each batch row holds the images and clips of its own
sample, so vision shards over the batch like everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.config import VisionConfig
from svlm_jax.errors import InputError

# Padded static sizes. A stream has one resolution and so one bucket; captions of any image share a few compilations.
TOKEN_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PATCH_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
SMALLER = "use fewer or smaller frames, or a shorter prompt"
NOTHING = (1, 0)  # first > last: a query that sees no slot


@dataclass(frozen=True)
class VisionInput:
    """Patches of the images and clips of each sample, in window order, padded to a bucket.

    patches [B, P, C]: float32, normalised, or uint8 levels, which the tower normalises. place [B, P, 2] int32: row and column
    of the patch in its frame. window, frame [B, P, 2] int32: first and last patch that this one attends to in window layers and
    in per-frame full layers; pads see nothing and are seen by none. frame_span: static bucket that holds the patches of any one
    frame.
    """

    patches: Any  # numpy on the host, jax inside a jitted function, anything while jax walks the tree
    place: Any
    window: Any
    frame: Any
    frame_span: int


class Inputs(NamedTuple):
    """A batch of token sequences with their vision.

    ids [B, T] int32. index [B, T] int32: place in the sample, -1 on padding (left or right). positions [B, 3, T] float32:
    (t, h, w). rows [B, T] int32: which merged vision row of this sample stands here, -1 where a token does.
    """

    ids: Any
    index: Any
    positions: Any
    rows: Any
    vision: VisionInput | None = None


def bucket(size: int, sizes: Sequence[int], name: str, remedy: str = SMALLER) -> int:
    """The smallest static size that holds `size`."""
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise InputError(name, size, f"at most {sizes[-1]}", remedy)


def window_order(grid: tuple[int, int, int], config: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Order of the merged units of one grid by attention window.

    Returns:
        units [U] int: unit (t, row, column) in patchify order that stands at each place of the window order.
        window [U] int: number of the window that each place belongs to; windows never cross frames. Windows at the right and
        lower edge are smaller; none is empty.
    """
    merge, side = config.spatial_merge_size, config.window_size // config.patch_size // config.spatial_merge_size
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    frame, row, column = (axis.reshape(-1) for axis in np.indices((t, h, w)))
    across = -(-w // side)
    window = (frame * (-(-h // side)) + row // side) * across + column // side
    units = np.argsort(window, kind="stable")  # inside a window: frame order, rows, columns
    return units, window[units]


class Layout(NamedTuple):
    """How the patches of some grids stand in a bucket. order [n] int: the patch (in patchify order, over all grids) at each
    place. place, window, frame, frame_span: as in VisionInput. rows [M] int32: where merged unit m, counted over all grids in
    patchify order, stands among the vision tower's outputs."""

    order: np.ndarray
    place: np.ndarray
    window: np.ndarray
    frame: np.ndarray
    rows: np.ndarray
    frame_span: int


@lru_cache(maxsize=64)
def layout(grids: tuple[tuple[int, int, int], ...], config: VisionConfig, size: int) -> Layout:
    """The layout of images and clips one after the other in a bucket of `size` patches (a stream asks for one every chunk)."""
    unit = config.merge_unit
    place = np.zeros((size, 2), np.int32)
    window, frame = (np.full((size, 2), NOTHING, np.int32) for _ in range(2))
    orders, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    start = 0
    for grid in grids:
        t, h, w = grid
        count = t * h * w
        if start + count > size:
            raise ValueError(f"vision bucket of {size} patches: got {start + count}")
        units, numbers = window_order(grid, config)
        order = (units[:, None] * unit + np.arange(unit)).reshape(-1)
        here = slice(start, start + count)
        orders.append(start + order)
        place[here] = _places(grid, config.spatial_merge_size)[order]
        window[here] = start + _runs(np.repeat(numbers, unit))
        frame[here] = start + _runs(np.repeat(np.arange(t), h * w))
        inverse = np.empty_like(units)
        inverse[units] = np.arange(len(units))
        rows.append(start // unit + inverse)
        start += count
    frame_span = bucket(max((h * w for _, h, w in grids), default=1), PATCH_BUCKETS, "patches in a frame")
    arrays = (np.concatenate(orders), place, window, frame, np.concatenate(rows).astype(np.int32))
    for array in arrays:
        array.flags.writeable = False
    return Layout(*arrays, frame_span)


def lay_out(
    clips: Sequence[tuple[np.ndarray, tuple[int, int, int]]], config: VisionConfig, size: int, dtype: Any = np.float32
) -> tuple[VisionInput, np.ndarray]:
    """Put images and clips of one sample one after the other, in window order, padded to `size` patches.

    Args:
        clips: (patches [P, C] in patchify order, grid (t, h, w) in patches) of each image or clip.
        size: patches in the bucket.
        dtype: of the patches where there are no clips (as the rest of the batch has them).

    Returns:
        A VisionInput without batch axis, and the rows of its `layout`.
    """
    for pixels, (t, h, w) in clips:
        if pixels.shape != (t * h * w, config.patch_dim):
            raise ValueError(
                f"patches of grid {(t, h, w)}: got shape {pixels.shape}, expected ({t * h * w}, {config.patch_dim})"
            )
    laid = layout(tuple(grid for _, grid in clips), config, size)
    kind = clips[0][0].dtype if clips else np.dtype(dtype)
    if any(pixels.dtype != kind for pixels, _ in clips):
        raise ValueError(f"patches: got {sorted({str(pixels.dtype) for pixels, _ in clips})}, expected one dtype")
    patches = np.zeros((size, config.patch_dim), kind)
    if clips:
        pixels = clips[0][0] if len(clips) == 1 else np.concatenate([pixels for pixels, _ in clips])
        np.take(pixels, laid.order, axis=0, out=patches[: len(laid.order)])
    return VisionInput(patches, laid.place, laid.window, laid.frame, laid.frame_span), laid.rows


def stack(clips: Sequence[VisionInput]) -> VisionInput:
    """A batch of what `lay_out` made of each sample."""
    if len({clip.patches.dtype for clip in clips}) > 1:
        raise ValueError(f"patches: got {sorted({str(clip.patches.dtype) for clip in clips})} in a batch, expected one dtype")
    names = ("patches", "place", "window", "frame")
    arrays = {name: np.stack([getattr(clip, name) for clip in clips]) for name in names}
    return VisionInput(**arrays, frame_span=max(clip.frame_span for clip in clips))


def _places(grid: tuple[int, int, int], merge: int) -> np.ndarray:
    """(row, column) of every patch in patchify order (t, h/2, w/2, 2, 2), as int32 [P, 2]."""
    t, h, w = grid
    row, column = (axis.reshape(h // merge, merge, w // merge, merge).swapaxes(1, 2).reshape(-1) for axis in np.indices((h, w)))
    return np.tile(np.stack([row, column], axis=1), (t, 1)).astype(np.int32)


def _runs(numbers: np.ndarray) -> np.ndarray:
    """First and last place of the run of equal numbers that each place belongs to, as int32 [n, 2]."""
    edges = np.flatnonzero(np.diff(numbers)) + 1
    first, last = np.r_[0, edges], np.r_[edges, len(numbers)] - 1
    lengths = last - first + 1
    return np.stack([np.repeat(first, lengths), np.repeat(last, lengths)], axis=1).astype(np.int32)
