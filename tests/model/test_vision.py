"""Claims about svlm_jax.model.vision: padding, neighbours and other frames leave the rows of an image alone."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import xla as attention_module
from svlm_jax.checkpoint import huggingface
from svlm_jax.families import config_json, preset
from svlm_jax.inputs import pack_vision
from svlm_jax.media.pixels import preprocess, stream_frame
from svlm_jax.model.parameters import from_parameters
from svlm_jax.model.vision import normalised

CLOSE = 2e-5  # absolute, of rows of order one in float32


@pytest.fixture(scope="module")
def tower(tiny_tied_dir):
    """The tower of a small checkpoint, as a compiled function of a VisionInput; windows of 16 patches, the last layer full."""
    config = config_json.read(tiny_tied_dir)
    graph, state = nnx.split(from_parameters(config, huggingface.load(tiny_tied_dir, config)).vision)
    run = jax.jit(lambda vision: nnx.merge(graph, state)(vision).rows)
    run.config = config.vision
    return run


def noise(grid, seed=0):
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), 1176)).astype(np.float32), grid


def features(tower, clips, size=256):
    """Rows of merged units in patchify order [M, D], and all rows of the bucket."""
    packed, (rows,) = pack_vision([clips], tower.config, size)
    every = np.asarray(tower(packed))[0]
    return every[rows], every


def test_rows_do_not_depend_on_the_bucket(tower):
    clip = noise((2, 6, 10))
    want, every = features(tower, [clip])
    assert want.shape == (30, tower.config.out_hidden_size)
    assert np.isfinite(every).all() and np.abs(want).max() > 0.1
    for size in (120, 512):  # without a pad, all dense; with many
        got, every = features(tower, [clip], size)
        assert np.isfinite(every).all()
        np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE)


def test_a_large_bucket_takes_the_local_path_in_every_layer(tower, monkeypatch):
    spans = []
    local = attention_module._local
    monkeypatch.setattr(attention_module, "_local", lambda *a: spans.append(a[-1]) or local(*a))
    packed, _ = pack_vision([[noise((1, 6, 10))]], tower.config, 768)  # a size that nothing else compiles
    jax.eval_shape(tower, packed)
    assert sorted(spans) == sorted([64, tower.config.window_patches])  # layers that are alike are traced once


def test_what_stands_in_pad_patches_does_not_matter(tower):
    packed, (rows,) = pack_vision([[noise((2, 6, 10))]], tower.config, 256)
    clean = np.asarray(tower(packed))[0]
    dirty = replace(packed, patches=packed.patches.copy(), positions=packed.positions.copy())
    dirty.patches[0, 120:] = np.random.default_rng(3).normal(size=(136, 1176)) * 1e4
    dirty.positions[0, 120:] = 999
    soiled = np.asarray(tower(dirty))[0]
    assert np.isfinite(soiled).all()
    np.testing.assert_array_equal(soiled[rows], clean[rows])
    assert not np.array_equal(soiled[30:], clean[30:])  # the pads themselves did change


def test_two_images_in_one_row_are_each_as_if_alone(tower):
    first, second, third = noise((1, 6, 10), 1), noise((1, 16, 4), 2), noise((1, 2, 2), 3)
    together, _ = features(tower, [first, second, third])
    apart = [features(tower, [clip])[0] for clip in (first, second, third)]
    np.testing.assert_allclose(together, np.concatenate(apart), rtol=0, atol=CLOSE)


def test_rows_of_a_batch_are_each_as_if_alone(tower):
    clips = [noise((1, 6, 10), 1), noise((1, 4, 14), 2), noise((2, 4, 12), 3)]
    packed, merged = pack_vision([[clip] for clip in clips], tower.config, 256)
    for together, rows, clip in zip(tower(packed), merged, clips, strict=True):
        np.testing.assert_allclose(together[rows], features(tower, [clip])[0], rtol=0, atol=CLOSE)


def test_the_size_of_the_frame_bucket_does_not_matter(tower):
    packed, (rows,) = pack_vision([[noise((3, 6, 10))]], tower.config, 256)
    want = np.asarray(tower(packed))[0, rows]
    assert packed.frame_span == 64
    got = np.asarray(tower(replace(packed, frame_span=128)))[0, rows]
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE)


def test_identical_frames_give_identical_rows(tower):
    patches, grid = noise((1, 6, 10))
    alone, _ = features(tower, [(patches, grid)])
    clip, _ = features(tower, [(np.tile(patches, (3, 1)), (3, *grid[1:]))])
    for frame in clip.reshape(3, *alone.shape):
        np.testing.assert_allclose(frame, alone, rtol=0, atol=CLOSE)


def test_a_frame_does_not_look_at_another_frame(tower):
    patches, grid = noise((3, 6, 10))
    changed = patches.copy()
    changed[60:120] += 1.0
    before, after = (features(tower, [(one, grid)])[0].reshape(3, 15, -1) for one in (patches, changed))
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] != after[1]).any(axis=-1).all()


def test_a_full_layer_looks_across_windows_of_its_frame(tower):
    """One changed patch reaches every unit of its frame; without the full layers it would reach its window alone."""
    patches, grid = noise((2, 4, 14))
    changed = patches.copy()
    changed[0] += 1.0
    before, after = (features(tower, [(one, grid)])[0].reshape(2, 14, -1) for one in (patches, changed))
    assert (before[0] != after[0]).any(axis=-1).all()
    np.testing.assert_array_equal(before[1], after[1])


def test_rows_depend_on_the_place_of_their_patches(tower):
    """The same picture moved by one window keeps its windows but not its angles."""
    patches, grid = noise((1, 8, 8))
    packed, (rows,) = pack_vision([[(patches, grid)]], tower.config, 256)
    here = np.asarray(tower(packed))[0, rows]
    moved = replace(packed, positions=packed.positions + np.int32([0, 40]))
    np.testing.assert_allclose(np.asarray(tower(moved))[0, rows], here, rtol=0, atol=CLOSE)  # angles are relative
    turned = replace(packed, positions=packed.positions[..., ::-1].copy())
    assert np.abs(np.asarray(tower(turned))[0, rows] - here).max() > 1e-3


def test_the_tower_normalises_levels_as_the_preprocessor_does():
    """To the last rounding: the preprocessor multiplies by 1/255 in float64, the tower in float32."""
    levels = np.random.default_rng(0).integers(0, 256, (2, 56, 84, 3), dtype=np.uint8)
    clip = preset("qwen2.5-vl-7b").vision
    half = replace(clip, patch_size=16, window_size=128, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)  # of Qwen3-VL
    for vision in (clip, half):
        pixels = stream_frame(vision)
        raw, grid = preprocess(levels, pixels, raw=True)
        want, same = preprocess(levels, pixels)
        assert pixels.has_norm_of(vision) and raw.dtype == np.uint8 and want.dtype == np.float32 and grid == same
        np.testing.assert_allclose(jax.jit(partial(normalised, config=vision))(raw), want, rtol=0, atol=1e-6)
    assert not stream_frame(half).has_norm_of(clip)


def test_levels_and_normalised_patches_are_not_mixed(tiny_dir):
    vision = config_json.read(tiny_dir).vision
    one, other = (np.zeros((4, 1176), dtype) for dtype in (np.uint8, np.float32))
    for samples in ([[(one, (1, 2, 2)), (other, (1, 2, 2))]], [[(one, (1, 2, 2))], [(other, (1, 2, 2))]]):
        with pytest.raises(ValueError, match="in a batch, expected one dtype"):
            pack_vision(samples, vision, 64)
    assert pack_vision([[], [(one, (1, 2, 2))]], vision, 64)[0].patches.dtype == np.uint8
