"""Rotary positions against `get_rope_index` of transformers: the same for images and short clips, and where they part.

In Qwen2-VL a temporal patch is one position, whatever the frame rate. In Qwen3-VL it is a block of its own, after a time stamp,
so there is nothing to part over. Its tower also has learned positions, resampled to each grid as the library does it.

We follow the classic rule (the next text starts at the largest position on any axis + 1, steps are not truncated), with which
StreamingVLM was trained. The library goes on from the larger side of the picture and truncates. If one of the last two tests
fails, upstream has changed its rule: read it again.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svlm_jax.families import preset
from svlm_jax.inputs import patch_layout
from svlm_jax.spans import positions
from tests.parity import reference as ref
from tests.parity.reference import Picture, image, torch, video

from transformers.vision_utils import get_vision_interpolation_indices_and_weights  # isort: skip  (needs torch)

SIDES = st.integers(1, 9).map(lambda units: 2 * units)
IMAGES = st.builds(image, SIDES, SIDES)


@st.composite
def short_clips(draw) -> Picture:
    """Clips at 2 fps (2 positions a step) whose last frame lies before the far side of the picture."""
    h, w = draw(SIDES), draw(SIDES)
    return video(draw(st.integers(1, (max(h, w) // 2 - 1) // 2 + 1)), h, w)


PROMPTS = st.lists(st.one_of(st.integers(1, 40), IMAGES, short_clips()), min_size=1, max_size=6)


@st.composite
def qwen2_clips(draw) -> Picture:
    """Clips of Qwen2-VL (1 position a step, at any frame rate) whose last frame lies before the far side of the picture."""
    h, w = draw(SIDES), draw(SIDES)
    return video(draw(st.integers(1, max(h, w) // 2)), h, w, fps=draw(st.sampled_from([1.0, 2.0, 8.0])))


QWEN2_PROMPTS = st.lists(st.one_of(st.integers(1, 40), IMAGES, qwen2_clips()), min_size=1, max_size=6)


def theirs(both: ref.Pair, samples) -> list[np.ndarray]:
    """[3, n] positions of every sample, from the library."""
    return [rows.T for rows in ref.their_positions(both.torch, samples, both.config)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=3))
def test_images_and_short_clips_have_the_positions_of_the_library(pair, prompts):
    both = pair("seven_to_one")
    samples = ref.make_samples(prompts, both.config)
    for sample, expected in zip(samples, theirs(both, samples), strict=True):
        np.testing.assert_array_equal(positions(sample.spans), expected)


def test_after_a_long_clip_the_library_goes_back_to_the_side_of_the_picture(pair):
    both = pair("seven_to_one")
    (sample,) = ref.make_samples([(4, video(6, 4, 6), 3)], both.config)
    ours, (other,) = positions(sample.spans), theirs(both, [sample])
    vision = slice(5, 5 + 6 * 2 * 3)
    np.testing.assert_array_equal(ours[:, : vision.stop], other[:, : vision.stop])
    assert ours[0, vision].max() == 5 + 2 * 5
    assert ours[:, vision.stop].tolist() == [16, 16, 16]  # the last frame stands at 15
    assert other[:, vision.stop].tolist() == [8, 8, 8]  # 5 + 3 columns: before the last frames


def test_the_library_truncates_fractions_of_a_temporal_step(pair):
    both = pair("seven_to_one")
    (sample,) = ref.make_samples([(4, video(4, 8, 8, fps=8.0), 3)], both.config)
    ours, (other,) = positions(sample.spans), theirs(both, [sample])
    frames = slice(5, 5 + 4 * 16, 16)
    assert ours[0, frames].tolist() == [5, 5.5, 6, 6.5]
    assert other[0, frames].tolist() == [5, 5, 6, 6]
    np.testing.assert_array_equal(ours[1:], other[1:])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(prompts=st.lists(QWEN2_PROMPTS, min_size=1, max_size=3))
def test_images_and_short_clips_of_qwen2_vl_have_the_positions_of_the_library(pair, prompts):
    both = pair("qwen2_vl")
    samples = ref.make_samples(prompts, both.config)
    for sample, expected in zip(samples, theirs(both, samples), strict=True):
        np.testing.assert_array_equal(positions(sample.spans), expected)


def test_after_a_long_clip_of_qwen2_vl_the_library_goes_back_too(pair):
    """Transformers 4 and the paper go on after the last frame."""
    both = pair("qwen2_vl")
    (sample,) = ref.make_samples([(4, video(6, 4, 6, fps=8.0), 3)], both.config)
    ours, (other,) = positions(sample.spans), theirs(both, [sample])
    vision = slice(5, 5 + 6 * 2 * 3)
    np.testing.assert_array_equal(ours[:, : vision.stop], other[:, : vision.stop])
    assert ours[0, vision].max() == 5 + 5
    assert ours[:, vision.stop].tolist() == [11, 11, 11]
    assert other[:, vision.stop].tolist() == [8, 8, 8]


QWEN3_CLIPS = st.builds(video, st.integers(1, 6), SIDES, SIDES, fps=st.sampled_from([1.0, 2.0, 8.0]))
QWEN3_PROMPTS = st.lists(st.one_of(st.integers(1, 40), IMAGES, QWEN3_CLIPS), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(prompts=st.lists(QWEN3_PROMPTS, min_size=1, max_size=3))
def test_whatever_stands_in_a_prompt_qwen3_vl_has_the_positions_of_the_library(pair, prompts):
    both = pair("qwen3_vl")
    samples = ref.make_samples(prompts, both.config)
    for sample, expected in zip(samples, theirs(both, samples), strict=True):
        np.testing.assert_array_equal(positions(sample.spans), expected)


# Smaller and larger than the table of 48 x 48, as large, one unit high, a frame of 720p.
@pytest.mark.parametrize("grid", [(1, 6, 10), (2, 26, 14), (3, 48, 48), (1, 2, 100), (1, 2, 2), (2, 46, 80), (1, 92, 64)])
def test_learned_positions_are_resampled_as_the_library_and_torch_do(grid):
    """A wrong neighbour or weight moves every patch of a frame by a fraction of a place, which nothing else would show."""
    config = preset("qwen3-vl-8b").vision
    side, (t, h, w) = config.positions_per_side, grid
    layout = patch_layout((grid,), config, t * h * w)
    index, weight = get_vision_interpolation_indices_and_weights(
        torch.tensor([grid]), side, align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(layout.position_index, index)
    np.testing.assert_allclose(layout.position_weight, weight, rtol=0, atol=2e-6)  # 2^-24 of a place of 47 on either side
    table = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resampled = torch.nn.functional.interpolate(table, (h, w), mode="bilinear", align_corners=True)[0].numpy()
    rows = table.reshape(3, -1).T.numpy()
    ours = (rows[layout.position_index] * layout.position_weight[..., None]).sum(1)
    row, column = layout.positions.T
    np.testing.assert_allclose(ours, resampled[:, row, column].T, rtol=0, atol=2e-5 * np.abs(rows).max())
