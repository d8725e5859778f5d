"""Claims about how the work of the kernels is cut: a tile of query rows reads the slots that it attends to, and few others."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import blocks


@pytest.mark.parametrize("q_tile", [32, 64])
def test_padding_rows_do_not_widen_what_their_tile_reads(q_tile):
    """Else the last tile of each head reads every slot, and sets the time of the kernel: results would still be right."""
    patch = jnp.arange(200)[None]
    first = patch // 20 * 20  # segments of 20 patches
    _, (first, last) = blocks.fold(jnp.zeros((1, 200, 1, 8)), 1, q_tile, (first, first + 19))
    index = jnp.pad(patch, ((0, 0), (0, 56)), constant_values=blocks.EMPTY_SLOT_INDEX)
    low, high = np.moveaxis(np.asarray(blocks.tile_bounds(first, last, index, q_tile, kv_tile=64)), -1, 0)
    assert (high - low <= 1 + q_tile // 64 + 1).all(), (low, high)
