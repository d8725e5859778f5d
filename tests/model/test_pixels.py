"""Patches that the device makes of raw frames are those of the host: no pixel of any frame differs.

One program for each formulation serves all sizes here, as it does in a stream.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.families import preset
from svlm_jax.inputs import RawFrames, pack_vision
from svlm_jax.media.pixels import PixelConfig, preprocess, smart_resize
from svlm_jax.media.resize_weights import FrameBox, frame_patch_index, resize_weights
from svlm_jax.model.pixels import PASSES, patches_of
from tests.support.pixels import STREAM_FRAME, hard_frame

pytestmark = pytest.mark.usefixtures("optimized")
VISION = preset("qwen2.5-vl-7b").vision
CONFIG = PixelConfig(min_pixels=56 * 56, max_pixels=112 * 112)
BOX = FrameBox.largest(4, 90, 120, CONFIG, max_aspect_ratio=4)
BUCKET = 192
# Of Qwen3-VL: larger patches, in rows and columns of the frame, for its tower has no windows.
VISION_16 = replace(VISION, patch_size=16, window_size=0, fullatt_block_indexes=tuple(range(VISION.depth)))
CONFIG_16 = PixelConfig.of(VISION_16, 64 * 64, 128 * 128)


@cache
def program(formulation) -> Any:
    return jax.jit(partial(patches_of, config=VISION, formulation=formulation))


def raw_frames(clips, config, box, bucket, vision=VISION):
    """Each clip in the box, garbage beyond it; and what the host makes of it."""
    parts, patches = [], []
    for seed, clip in enumerate(clips):
        num_frames, height, width, _ = clip.shape
        patches.append([preprocess(clip, config, raw=True)])
        grid = patches[-1][0][1]
        frames = np.random.default_rng(seed).integers(0, 256, (box.num_frames, box.height, box.width, 3), dtype=np.uint8)
        frames[:num_frames, :height, :width] = clip
        columns = resize_weights(width, vision.patch_size * grid[2], box.columns, box.column_weights)
        rows = resize_weights(height, vision.patch_size * grid[1], box.rows, box.row_weights)
        index = frame_patch_index(grid, vision, bucket, box)
        parts.append((frames.reshape(*frames.shape[:2], -1), columns, rows, index))
    frames, columns, rows, index = zip(*parts, strict=True)
    stack = partial(jax.tree.map, lambda *arrays: np.stack(arrays))
    return RawFrames(frames, stack(*columns), stack(*rows), np.stack(index)), pack_vision(patches, vision, bucket)[0].patches


SIZES = st.tuples(st.integers(1, 2), st.integers(30, 90), st.integers(30, 120), st.integers(0, 99))


@pytest.mark.parametrize("formulation", PASSES)
@settings(max_examples=25, deadline=None)
@given(pictures=st.lists(SIZES, min_size=2, max_size=2))
def test_pictures_of_any_size_in_a_box_have_the_hosts_patches(formulation, pictures):
    """Larger and smaller than what they become, upright, odd, in one batch; one program, which nothing compiles again."""
    clips = [np.stack([hard_frame(h, w, seed + i) for i in range(2 * pairs)]) for pairs, h, w, seed in pictures]
    raw, want = raw_frames(clips, CONFIG, BOX, BUCKET)
    np.testing.assert_array_equal(program(formulation)(raw), want)
    assert program(formulation)._cache_size() == 1


def test_patches_of_16_pixels_are_the_hosts_too():
    box = FrameBox.largest(4, 90, 120, CONFIG_16, max_aspect_ratio=4)
    clips = [np.stack([hard_frame(h, w, seed) for seed in range(4)]) for h, w in ((90, 120), (50, 33))]
    raw, want = raw_frames(clips, CONFIG_16, box, BUCKET, VISION_16)
    assert want.shape == (2, BUCKET, 1536)
    np.testing.assert_array_equal(patches_of(raw, VISION_16), want)


@pytest.mark.parametrize(("height", "width"), [(360, 640), (560, 1008)])
def test_frames_of_a_stream_have_the_hosts_patches(height, width):
    """At the sizes of a real stream, resized and not; as one array too, which is how frames travel over a mesh."""
    clip = np.stack([hard_frame(height, width, seed) for seed in range(2)])
    box = FrameBox.of(2, height, width, *smart_resize(height, width, STREAM_FRAME))
    raw, want = raw_frames([clip], STREAM_FRAME, box, 2944)
    np.testing.assert_array_equal(patches_of(raw, VISION), want)
    np.testing.assert_array_equal(patches_of(raw._replace(frames=np.stack(raw.frames)), VISION), want)
