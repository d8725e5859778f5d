"""Claims about how the work of the kernels is cut: a tile of query rows reads the slots that it attends to, and few others."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import blocks, grid


@pytest.mark.parametrize("q_tile", [32, 64])
def test_padding_rows_do_not_widen_what_their_tile_reads(q_tile):
    """Else the last tile of each head reads every slot, and sets the time of the kernel: results would still be right."""
    patch = jnp.arange(200)[None]
    first = patch // 20 * 20  # segments of 20 patches
    _, (first, last) = blocks.fold(jnp.zeros((1, 200, 1, 8)), 1, q_tile, (first, first + 19))
    index = jnp.pad(patch, ((0, 0), (0, 56)), constant_values=blocks.EMPTY_SLOT_INDEX)
    low, high = np.moveaxis(np.asarray(blocks.tile_bounds(first, last, index, q_tile, kv_tile=64)), -1, 0)
    assert (high - low <= 1 + q_tile // 64 + 1).all(), (low, high)


@pytest.mark.parametrize(
    ("name", "blocks", "kv_tiles", "splits"),
    [
        ("784 tokens of 7B over 14,336 slots: 172 blocks in two waves, the second a third full", 172, 112, 3),
        ("of 3B: 98 blocks in one wave, three quarters full", 98, 112, 4),
        ("of 72B: 392 blocks in three full waves", 392, 112, 1),
        ("16 streams of 7B: 21 waves", 2752, 112, 1),
        ("40 tokens of 7B: 12 blocks", 12, 107, 11),
        ("a frame of 720p: 464 blocks of 29 tiles", 464, 29, 1),
        ("a window", 464, 1, 1),
        ("nothing to split", 1, 0, 1),
    ],
)
def test_splits_fill_the_multiprocessors(name, blocks, kv_tiles, splits):
    """Else a second wave of a few blocks doubles the time of a prefill, or most of the GPU waits for a few blocks."""
    assert grid.kv_splits(blocks, kv_tiles) == splits, name


def test_splits_follow_the_number_of_multiprocessors(monkeypatch):
    monkeypatch.setattr(grid, "sm_count", lambda: 172)
    assert grid.kv_splits(172, 112) == 1


@pytest.mark.parametrize(
    ("name", "blocks", "kv_tiles", "splits"),
    [
        ("7B over 14,336 slots: 112 blocks of 8 tiles", 4, 224, 28),
        ("2 streams of it: 128 blocks of 14 tiles", 8, 224, 16),
        ("16 streams of it: 128 blocks of 112 tiles", 64, 224, 2),
        ("more blocks than multiprocessors", 160, 224, 1),
        ("a small cache: 4 tiles a block", 2, 18, 4),
        ("less than a tile", 2, 1, 1),
    ],
)
def test_a_decode_step_is_one_wave_whose_blocks_have_work(name, blocks, kv_tiles, splits):
    """Else a fifth of the GPU waits while the others read the cache."""
    assert grid.decode_splits(blocks, kv_tiles) == splits, name
    assert (splits - 1) * -(-kv_tiles // splits) < kv_tiles  # the last part has tiles too
