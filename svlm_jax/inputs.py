"""What the model takes: samples on the host, a padded batch of them as two bundles of arrays, and the layout of patches in it.

numpy only, so that data workers can build them (`model/vision` registers VisionInput as a jax pytree).

Patches travel in WINDOW ORDER: every attention window of the vision tower is one contiguous range, so the tower never permutes
anything, and a token finds its merged vision token through `Inputs.vision_index`. Each sample of a batch has its own images and
clips, so vision shards over the batch like everything else.

Axes: B batch · T tokens · P patches · M merged vision tokens = P / merge_unit · C numbers a patch · L learned positions that a
patch is between: 4, or 0 in towers without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from svlm_jax.config import VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.spans import Span

# Padded static sizes. A stream has one resolution and so one bucket; captions of any image share a few compilations.
TOKEN_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PATCH_BUCKETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
REMEDY = "use fewer or smaller frames, or a shorter prompt"
# Of a VisionInput, beside its patches.
VISION_TABLES = ("positions", "window_range", "frame_range", "position_index", "position_weight")
FRACTION_BITS = 22  # of the weights of a resize: 32 bits, less 8 of a pixel, less 2 for sums above 1 and below 0
EMPTY_RANGE = (1, 0)  # first > last: a query that attends to no key

Grid = tuple[int, int, int]  # (t, h, w) in patches


class Frames(NamedTuple):
    """Frames of a chunk as their source gave them, for a device that makes the patches.

    pixels: uint8 [F, H, W, 3] on the host; on the device [F, H', W' * 3] of a session's `FrameBox`, with the picture in its
    upper left corner. height, width: H and W.
    """

    pixels: Any
    height: int
    width: int


class Clip(NamedTuple):
    """An image or a clip as the vision tower reads it.

    patches [P, C] in patchify order: float32, normalised, or raw uint8 pixels; [0, C] where `frames` are given instead. grid
    (t, h, w) in patches. step: temporal positions from one t to the next. video: whether its pad tokens are those of a video.
    times: of a video, the second of each t, which is the mean of its frames'; () where it is not known.
    """

    patches: np.ndarray
    grid: Grid
    step: float = 1.0
    video: bool = False
    frames: Frames | None = None
    times: tuple[float, ...] = ()


class ResizeWeights(NamedTuple):
    """One pass of a resize, along one side: resized pixel i is the sum over k of weight[i, k] * source pixel start[i] + k.

    start [n] int32. weight [n, K] int32 with FRACTION_BITS; 0 beyond the source.
    """

    start: Any
    weight: Any


class RawFrames(NamedTuple):
    """`Frames` of a batch, and how the device makes patches of them (`model/pixels`): all of it data, so that one program
    serves every size that fits.

    frames: B arrays uint8 [F, H, W * 3], one for each stream, or one array [B, F, H, W * 3]. A minor axis of 3 would be padded
    on a TPU, so pixels and channels are one axis. What lies beyond a smaller picture has no weight. columns, rows: weights
    [B, Q, K] and [B, O, K] of the two passes. patch_index [B, P] int32: for each patch in window order its number, counted
    by pair of frames, row and column in resized frames of O x Q pixels; -1 on padding.
    """

    frames: Any
    columns: ResizeWeights
    rows: ResizeWeights
    patch_index: Any


class Sample(NamedTuple):
    """One sequence: ids [n] int32, its spans (which add up to n), and the clips of its VISION spans in order."""

    ids: np.ndarray
    spans: tuple[Span, ...]
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class VisionInput:
    """Patches of the images and clips of each sample, in window order, padded to a bucket.

    patches [B, P, C]: float32, normalised, or raw uint8 pixels, which the tower normalises; or `RawFrames`, of which the device
    makes such pixels before the tower. positions [B, P, 2] int32: row and
    column of the patch in its frame. window_range, frame_range [B, P, 2] int32: first and last patch that this one attends to
    in window layers and in full layers (which see one frame); padding has EMPTY_RANGE and is in the range of none.
    position_index [B, P, L] int32, position_weight [B, P, L] float32: the learned positions that a patch's own is a weighted
    sum of; L is 0 in towers without them. frame_span: static bucket that holds the patches of any one frame.
    """

    patches: Any  # numpy on the host, jax inside a jitted function, anything while jax walks the tree
    positions: Any
    window_range: Any
    frame_range: Any
    position_index: Any
    position_weight: Any
    frame_span: int


class Inputs(NamedTuple):
    """A batch of token sequences with their vision.

    ids [B, T] int32. index [B, T] int32: number of the token in its sample, -1 on padding (left or right). positions [B, 3, T]
    float32: (t, h, w). vision_index [B, T] int32: which merged vision token of this sample the token is, -1 for text.
    """

    ids: Any
    index: Any
    positions: Any
    vision_index: Any
    vision: VisionInput | None = None


def bucket(size: int, sizes: Sequence[int], name: str, remedy: str = REMEDY) -> int:
    """The smallest static size that holds `size`.

    Raises:
        InputError: none does; `name` says what is too large.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise InputError(name, size, f"at most {sizes[-1]}", remedy)


def patch_times(seconds: Float64[np.ndarray, " F"], size: int) -> tuple[float, ...]:
    """The second of each temporal patch of `size` frames: the mean of its first and last frame, where the last frame of a video
    is repeated to fill the patch. Source: `_calculate_timestamps` of transformers' Qwen3VLProcessor."""
    padded = np.pad(seconds, (0, -len(seconds) % size), mode="edge")
    return tuple(((padded[::size] + padded[size - 1 :: size]) / 2).tolist())


def window_order(grid: Grid, config: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Order of the merged units of one grid by attention window; a tower without windows takes them in patchify order.

    Returns:
        units [U] int: number in patchify order (t, row, column) of each unit, in window order.
        window [U] int: number of the window that each of them belongs to; windows never cross frames. Windows at the right and
        lower edge are smaller; none is empty.
    """
    merge = config.spatial_merge_size
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    side = config.window_size // config.patch_size // merge or max(h, w)  # of a window, in merged units
    frame, row, column = (axis.reshape(-1) for axis in np.indices((t, h, w)))
    windows_down, windows_across = -(-h // side), -(-w // side)
    window = (frame * windows_down + row // side) * windows_across + column // side
    units = np.argsort(window, kind="stable")  # inside a window: rows, then columns
    return units, window[units]


class PatchLayout(NamedTuple):
    """How the patches of some grids lie in a bucket.

    patch_index [n] int: index in patchify order, over all grids, of each patch in window order. vision_index [M] int32: which
    output of the vision tower is merged unit m, counted over all grids in patchify order. The others: as in VisionInput.
    """

    patch_index: np.ndarray
    positions: np.ndarray
    window_range: np.ndarray
    frame_range: np.ndarray
    position_index: np.ndarray
    position_weight: np.ndarray
    vision_index: np.ndarray
    frame_span: int


@lru_cache(maxsize=64)
def patch_layout(grids: tuple[Grid, ...], config: VisionConfig, size: int) -> PatchLayout:
    """The layout of images and clips one after the other in a bucket of `size` patches (a stream needs one every chunk)."""
    unit = config.merge_unit
    positions = np.zeros((size, 2), np.int32)
    window_range, frame_range = (np.full((size, 2), EMPTY_RANGE, np.int32) for _ in range(2))
    neighbours = 4 if config.num_position_embeddings else 0
    position_index, position_weight = np.zeros((size, neighbours), np.int32), np.zeros((size, neighbours), np.float32)
    patch_indices, vision_indices = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    start = 0
    for grid in grids:
        t, h, w = grid
        count = t * h * w
        if start + count > size:
            raise ValueError(f"vision bucket of {size} patches: got {start + count}")
        units, window = window_order(grid, config)
        patch_index = (units[:, None] * unit + np.arange(unit)).reshape(-1)
        part = slice(start, start + count)
        patch_indices.append(start + patch_index)
        positions[part] = _grid_positions(grid, config.spatial_merge_size)[patch_index]
        if neighbours:
            position_index[part], position_weight[part] = _learned_positions(positions[part], grid, config.positions_per_side)
        window_range[part] = start + _run_ranges(np.repeat(window, unit))
        # windows never cross frames, so a frame is contiguous in window order too
        frame_range[part] = start + _run_ranges(np.repeat(np.arange(t), h * w))
        inverse = np.empty_like(units)  # position in window order of each unit in patchify order
        inverse[units] = np.arange(len(units))
        vision_indices.append(start // unit + inverse)
        start += count
    frame_span = bucket(max((h * w for _, h, w in grids), default=1), PATCH_BUCKETS, "patches in a frame")
    vision_index = np.concatenate(vision_indices).astype(np.int32)
    tables = positions, window_range, frame_range, position_index, position_weight
    arrays = np.concatenate(patch_indices), *tables, vision_index
    for array in arrays:
        array.flags.writeable = False  # they are cached
    return PatchLayout(*arrays, frame_span)


def pack_vision(
    samples: Sequence[Sequence[tuple[np.ndarray, Grid]]], config: VisionConfig, size: int, dtype: Any = np.float32
) -> tuple[VisionInput, list[np.ndarray]]:
    """The images and clips of each sample of a batch one after the other, in window order, padded to `size` patches.

    Args:
        samples: for each sample (patches [P, C] in patchify order, grid (t, h, w) in patches) of its images and clips.
        size: patches in the bucket.
        dtype: of the patches where no sample has any.

    Returns:
        The batch, and `PatchLayout.vision_index` of each sample.
    """
    clips = [clip for sample in samples for clip in sample]
    for patches, (t, h, w) in clips:
        if patches.shape != (t * h * w, config.patch_dim):
            expected = f"({t * h * w}, {config.patch_dim})"
            raise ValueError(f"patches of grid {(t, h, w)}: got shape {patches.shape}, expected {expected}")
    dtypes = {str(patches.dtype) for patches, _ in clips}
    if len(dtypes) > 1:
        raise ValueError(f"patches: got {sorted(dtypes)} in a batch, expected one dtype")
    packed = np.zeros((len(samples), size, config.patch_dim), clips[0][0].dtype if clips else dtype)
    layouts = [patch_layout(tuple(grid for _, grid in sample), config, size) for sample in samples]
    for rows, sample, layout in zip(packed, samples, layouts, strict=True):
        start = 0
        for patches, _ in sample:
            part = slice(start, start + len(patches))
            # Straight into the batch: the one copy of the patches. (With mode="raise", take would write to a buffer first.)
            np.take(patches, layout.patch_index[part] - start, axis=0, out=rows[part], mode="clip")
            start += len(patches)
    return vision_tables(layouts, packed), [layout.vision_index for layout in layouts]


def vision_tables(layouts: Sequence[PatchLayout], patches: Any) -> VisionInput:
    """A batch of patches that lie as `layouts` say."""
    tables = {name: np.stack([getattr(layout, name) for layout in layouts]) for name in VISION_TABLES}
    return VisionInput(patches, **tables, frame_span=max(layout.frame_span for layout in layouts))


def blank_vision(batch: int, config: VisionConfig, size: int) -> VisionInput:
    """A batch without images, as raw pixels: the shapes and types of any other batch of `size` patches."""
    patches = np.zeros((batch, size, config.patch_dim), np.uint8)
    return vision_tables([patch_layout((), config, size)] * batch, patches)


def _grid_positions(grid: Grid, merge: int) -> np.ndarray:
    """(row, column) of every patch in patchify order (t, h/2, w/2, 2, 2), as int32 [P, 2]."""
    t, h, w = grid
    row, column = (axis.reshape(h // merge, merge, w // merge, merge).swapaxes(1, 2).reshape(-1) for axis in np.indices((h, w)))
    return np.tile(np.stack([row, column], axis=1), (t, 1)).astype(np.int32)


def _learned_positions(positions: np.ndarray, grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where patches at (row, column) [n, 2] of a grid lie in a square table of `side` x `side` learned positions that is
    stretched over it: the four rows of the table around each (int32 [n, 4]), and their weights (float32 [n, 4]).

    Bilinear, corner on corner, in float32 like transformers (`vision_utils.get_vision_interpolation_indices_and_weights`).
    """
    lengths = np.maximum(np.array(grid[1:], np.float32) - 1, 1)
    source = positions.astype(np.float32) * np.float32(side - 1) / lengths
    floor = np.floor(source)
    upper = source - floor
    weights = np.stack([1 - upper, upper], axis=2)  # [n, axis, 2]
    taps = np.minimum(floor.astype(np.int32)[..., None] + np.arange(2, dtype=np.int32), side - 1)
    index = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    weight = weights[:, 0, :, None] * weights[:, 1, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)


def _run_ranges(numbers: np.ndarray) -> np.ndarray:
    """Index of the first and last element of the run of equal numbers that each element belongs to, as int32 [n, 2]."""
    edges = np.flatnonzero(np.diff(numbers)) + 1
    first, last = np.r_[0, edges], np.r_[edges, len(numbers)] - 1
    lengths = last - first + 1
    return np.stack([np.repeat(first, lengths), np.repeat(last, lengths)], axis=1).astype(np.int32)
