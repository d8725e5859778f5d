"""PIL's resize from its weights: what a device computes with them are the pixels that PIL gives.

The two passes are in numpy here, so that no program is compiled for a size; `tests/model/test_pixels.py` compares the device's.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from svlm_jax.inputs import FRACTION_BITS
from svlm_jax.media.pixels import PixelConfig, resize, smart_resize
from svlm_jax.media.resize_weights import MAX_WEIGHTS, FrameBox, resize_weights
from tests.support.pixels import STREAM_FRAME, hard_frame

QWEN3_FRAME = PixelConfig(100 * 32 * 32, 768 * 32 * 32, patch_size=16)
SMALL = PixelConfig(min_pixels=56 * 56, max_pixels=168 * 168)
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 500))
# 720p, 1080p upright, 4K, odd, a webcam and a phone (where Pillow 13 alone takes rows first), no resize, thin
VIDEO = [(720, 1280), (1920, 1080), (2160, 3840), (721, 1283), (480, 640), (2532, 1170), (560, 1008), (1, 150), (150, 1)]


def one_pass(frame, weights, axis):
    """A pass in numpy, in int32 as on the device."""
    along = [-1 if a == axis else 1 for a in range(3)]
    total = np.int32(1 << (FRACTION_BITS - 1))
    for k in range(weights.weight.shape[1]):
        source = np.minimum(weights.start + k, frame.shape[axis] - 1)
        total = total + np.take(frame, source, axis).astype(np.int32) * weights.weight[:, k].reshape(along)
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


def resized(frame, rows, columns):
    height, width = frame.shape[:2]
    return one_pass(one_pass(frame, resize_weights(width, columns), 1), resize_weights(height, rows), 0)


@settings(max_examples=120, deadline=None)
@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_any_size_becomes_any_size_as_in_pil(height, width, rows, columns, seed):
    frame = hard_frame(height, width, seed)
    np.testing.assert_array_equal(resized(frame, rows, columns), resize(frame, rows, columns))


@pytest.mark.parametrize(("height", "width"), VIDEO)
def test_the_sizes_of_video_are_resized_as_in_pil(height, width):
    frame, size = hard_frame(height, width, 1), smart_resize(height, width, STREAM_FRAME)
    np.testing.assert_array_equal(resized(frame, *size), resize(frame, *size))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8000), st.integers(28, 2000))
def test_sums_are_exact_in_int32_and_in_the_float32_of_a_matmul(size, out):
    """Else pixels would be wrong at some sizes only: the largest sum of each pass, whatever the frame."""
    assume(size < 128 * out)
    weight = resize_weights(size, out).weight.astype(np.int64)
    assert weight.shape[1] <= MAX_WEIGHTS
    assert (weight.sum(1) > 0).all() and np.abs(weight).sum(1).max() * 255 + (1 << 21) < 2**31
    rest = weight
    for number in range(3):  # as in `model.pixels.matmul_pass`
        digit = rest if number == 2 else ((rest + 128) & 255) - 128
        rest = (rest - digit) >> 8
        assert np.abs(digit).max() <= 256  # every integer up to there is exact in bfloat16
        assert np.abs(digit).sum(1).max() * 255 < 2**24


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000), st.data(), st.sampled_from([STREAM_FRAME, SMALL, QWEN3_FRAME]))
def test_the_largest_box_holds_every_frame_that_fits(height, width, data, config):
    """What a page's viewers show its cameras must never be refused for its shape."""
    box = FrameBox.largest(2, height, width, config, max_aspect_ratio=4)
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    assume(max(h, w) <= 4 * min(h, w))
    assert box.holds(2, h, w, *smart_resize(h, w, config))


def test_the_box_of_a_source_holds_its_frames_and_no_larger_ones():
    box = FrameBox.of(2, 720, 1280, 560, 1008)
    assert box == (2, 720, 1280, 560, 1008, 6, 6)
    assert box.holds(2, 720, 1280, 560, 1008) and box.holds(2, 700, 1240, 560, 1008)
    assert not box.holds(2, 721, 1280, 560, 1008) and not box.holds(4, 720, 1280, 560, 1008)
    assert FrameBox.of(80, 2160, 3840, 560, 1008).is_exact and not FrameBox.of(90, 2160, 3840, 560, 1008).is_exact
    with pytest.raises(ValueError, match="resize weights: got"):
        resize_weights(720, 560, 504)
