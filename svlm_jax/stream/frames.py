"""Raw frames on their way to the device: where they are resized, when they are sent, and the tables that go with them.

A chunk of uint8 frames is sent by the thread that has read it (`upload`), while the device works on the chunk before. The step
then sends nothing but integers, and tables of a size only once. The device makes the patches that the host would make
(`model/pixels`), so the words of a stream do not depend on where that happens.

Axes: B streams, F frames, H, W pixels, P patches, M merged vision tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Integer

from svlm_jax.config import ModelConfig, ResizeOn, StreamConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import family_of
from svlm_jax.inputs import (
    VISION_TABLES,
    Clip,
    Grid,
    PatchLayout,
    RawFrames,
    ResizeWeights,
    VisionInput,
    patch_layout,
    vision_tables,
)
from svlm_jax.media.processor import Processor
from svlm_jax.media.resize_weights import FrameBox, frame_patch_index, resize_weights

Size = tuple[int, int, Grid]  # height and width of frames, and the grid of their patches


def resizes_on_device(setting: ResizeOn, processor: Processor, config: StreamConfig) -> bool:
    """Whether frames of a stream are resized on the device. "auto": where there is an accelerator. On a CPU both ways cost the
    same, and the host's runs beside the step.

    Raises:
        InputError: "device", for a stream whose frames the host has to prepare.
    """
    # Recomputed windows retain frames, in saved states too: patches are smaller, and states can be loaded by any session.
    obstacle = "--mode recompute" if config.mode == "recompute" else ""
    if not processor.tower_normalises:
        obstacle = "a normalisation that is not the model's"
    if setting == "device" and obstacle:
        raise InputError("--resize-on", f"device with {obstacle}", "host for it", "leave the flag out")
    return not obstacle and (setting == "device" or (setting == "auto" and jax.default_backend() != "cpu"))


def frame_box(clip: Clip, config: VisionConfig) -> FrameBox | None:
    """For a stream of clips like this one; None where the host makes the patches."""
    if clip.frames is None:
        return None
    t, h, w = clip.grid
    size = (clip.frames.height, clip.frames.width, h * config.patch_size, w * config.patch_size)
    return FrameBox.of(t * config.temporal_patch_size, *size)


def with_length(clip: Clip, t: int, config: VisionConfig) -> Clip:
    """A clip like this one, of t temporal patches: its first, or all of them again and again. Its frames are on the host."""
    if t == clip.grid[0]:
        return clip
    grid, times = (t, *clip.grid[1:]), tuple(np.resize(clip.times, t).tolist()) if clip.times else ()
    if clip.frames is None:
        patches = np.resize(clip.patches, (math.prod(grid), clip.patches.shape[1]))
        return clip._replace(patches=patches, grid=grid, times=times)
    pixels = np.resize(clip.frames.pixels, (t * config.temporal_patch_size, *clip.frames.pixels.shape[1:]))
    return clip._replace(frames=clip.frames._replace(pixels=pixels), grid=grid, times=times)


def check_box(box: FrameBox | None) -> None:
    """Refuse frames that the device would not resize exactly.

    Raises:
        InputError: more than 2 GiB of them, or frames that shrink beyond measure.
    """
    if box is not None and not box.is_exact:
        got = f"{box.num_frames} frames of {box.width}x{box.height} px"
        raise InputError(
            "frames of a chunk", got, "less than 2 GiB, shrunk to more than 1/128", "resize on the host: --resize-on host"
        )


def check_clip(clip: Clip, grid: Grid, box: FrameBox | None, config: ModelConfig) -> None:
    """Refuse a clip for which a session was not made.

    Args:
        grid: the largest of the session, as a number of patches and as one of patches in a frame; in families with time stamps
            as a number of temporal patches too, since each has one.

    Raises:
        InputError: more patches, or frames that do not fit into the box.
        ValueError: patches for a session that takes frames, or the other way round.
    """
    t, h, w = clip.grid
    max_patches, max_frame_patches = math.prod(grid), math.prod(grid[1:])
    if t * h * w > max_patches or h * w > max_frame_patches:
        got, expected = f"{t} x {h}x{w} patches", f"at most {max_patches}, {max_frame_patches} in a frame"
        raise InputError("frames of a chunk", got, expected, "make a session for them")
    if t > grid[0] and family_of(config).chat.frame_text is not None:
        raise InputError("frames of a chunk", f"{t} temporal patches", f"at most {grid[0]}", "make a session for them")
    if (clip.frames is None) != (box is None):
        got, expected = ("patches", "frames") if box else ("frames", "patches")
        raise ValueError(f"step: got {got} of a chunk, expected {expected}, like the clip that the session was made for")
    if clip.frames is None or box is None:
        return
    _, height, width = clip.frames
    vision = config.vision
    if not box.holds(t * vision.temporal_patch_size, height, width, h * vision.patch_size, w * vision.patch_size):
        got, expected = f"{width}x{height} px", f"at most {box.width}x{box.height} px"
        raise InputError("frames of a chunk", got, expected, "make a session for them")


def upload(clip: Clip, box: FrameBox) -> Clip:
    """Send the frames of a clip to the device, without waiting for them; one that is there already is returned as it is. May be
    called from any thread."""
    if clip.frames is None or isinstance(clip.frames.pixels, jax.Array):
        return clip
    return clip._replace(frames=clip.frames._replace(pixels=jax.device_put(_boxed(clip, box))))


def _boxed(clip: Clip, box: FrameBox) -> np.ndarray:
    """Frames [F, H', W' * 3] in their place in the box; the same memory where they fill it."""
    assert clip.frames is not None
    pixels = np.ascontiguousarray(clip.frames.pixels)
    num_frames, height, width, _ = pixels.shape
    if (num_frames, height, width) != box[:3]:
        boxed = np.zeros((*box[:3], 3), np.uint8)
        boxed[:num_frames, :height, :width] = pixels
        pixels = boxed
    return pixels.reshape(box.num_frames, box.height, box.width * 3)


def raw_vision_input(
    clips: Sequence[Clip | None], box: FrameBox, config: VisionConfig, max_patches: int, frame_span: int, *, on_mesh: bool
) -> tuple[VisionInput, list[Integer[np.ndarray, " M"]]]:
    """What `pack_vision` returns, for clips of frames. Streams without a clip share frames that are on the device already.

    Args:
        on_mesh: whether devices share the streams: frames then stay on the host until the step divides them.
    """
    sizes: list[Size | None] = [clip and _size(clip) for clip in clips]
    tower_rows = [_layout(size, config, max_patches).vision_index for size in sizes]
    tables = _tables if on_mesh else _tables_on_device
    vision = replace(tables(tuple(sizes), box, config, max_patches), frame_span=frame_span)
    if on_mesh:
        frames = np.stack([_blank(box) if clip is None else _boxed(clip, box) for clip in clips])
    else:
        frames = tuple(_pixels(upload(clip, box)) if clip else _blank_on_device(box) for clip in clips)
    return replace(vision, patches=vision.patches._replace(frames=frames)), tower_rows


def _size(clip: Clip) -> Size:
    assert clip.frames is not None
    return clip.frames.height, clip.frames.width, clip.grid


def _pixels(clip: Clip) -> jax.Array:
    assert clip.frames is not None
    return clip.frames.pixels


def _layout(size: Size | None, config: VisionConfig, max_patches: int) -> PatchLayout:
    return patch_layout((size[2],) if size else (), config, max_patches)


@lru_cache(maxsize=64)
def _tables(sizes: tuple[Size | None, ...], box: FrameBox, config: VisionConfig, max_patches: int) -> VisionInput:
    """All of a batch's `VisionInput` but the frames: the same in every chunk, while sizes do not change."""
    batch, side = len(sizes), config.patch_size
    columns, rows = _no_weights(batch, box.columns, box.column_weights), _no_weights(batch, box.rows, box.row_weights)
    index = np.full((batch, max_patches), -1, np.int32)
    for b, size in enumerate(sizes):
        if size is not None:
            height, width, (_, h, w) = size
            columns.start[b], columns.weight[b] = resize_weights(width, w * side, box.columns, box.column_weights)
            rows.start[b], rows.weight[b] = resize_weights(height, h * side, box.rows, box.row_weights)
            index[b] = frame_patch_index(size[2], config, max_patches, box)
    raw = RawFrames((), columns, rows, index)
    return vision_tables([_layout(size, config, max_patches) for size in sizes], raw)


def _no_weights(batch: int, size: int, kernel: int) -> ResizeWeights:
    return ResizeWeights(np.zeros((batch, size), np.int32), np.zeros((batch, size, kernel), np.int32))


@lru_cache(maxsize=64)
def _tables_on_device(sizes: tuple[Size | None, ...], box: FrameBox, config: VisionConfig, max_patches: int) -> VisionInput:
    tables = _tables(sizes, box, config, max_patches)
    arrays = {name: getattr(tables, name) for name in ("patches", *VISION_TABLES)}
    return replace(tables, **jax.device_put(arrays))


def _blank(box: FrameBox) -> np.ndarray:
    return np.zeros((box.num_frames, box.height, box.width * 3), np.uint8)


@lru_cache(maxsize=8)
def _blank_on_device(box: FrameBox) -> jax.Array:
    return jax.device_put(_blank(box))
