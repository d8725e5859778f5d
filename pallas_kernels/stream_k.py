"""Work cut evenly over a fixed number of thread blocks (stream-K, arXiv 2301.03598).

The steps of all query tiles (a step: one tile of slots) stand in one line, which is cut into equal shares. A query tile whose
steps fall into several shares has several partial results, merged by their log-sum-exp; no block waits for another.

Axes: B batch, K kv heads, I query tiles of a kv head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shares(NamedTuple):
    """max_parts: partial results of a query tile, at most (static).

    offsets: [B * K * I + 1] int32, where the steps of each query tile begin in the line; the last: how many there are in all.
    blocks: [blocks, 3] int32, the query tiles that a block works on, from and up to (exclusive), and the steps of a share.
    parts: [B, K, I] int32, partial results of each query tile; 0 if it attends to nothing.
    """

    max_parts: int
    offsets: jax.Array
    blocks: jax.Array
    parts: jax.Array


def cut(bounds: jax.Array, kv_heads: int, kv_tiles: int, blocks: int) -> Shares:
    """The shares of `blocks` thread blocks.

    Args:
        bounds: [B, I, 2] int32, the tiles of slots of each query tile: `blocks.tile_bounds`.
        kv_tiles: tiles of slots in all.
    """
    batch, tiles = bounds.shape[:2]
    steps = jnp.broadcast_to((bounds[..., 1] - bounds[..., 0])[:, None], (batch, kv_heads, tiles)).reshape(-1)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(steps, dtype=jnp.int32)])
    # The number of partial results is static, so it is that of full query tiles; if few steps are needed, shares are larger
    # than even ones where one tile would be cut into more.
    full_share = max(1, -(-batch * kv_heads * tiles * kv_tiles // blocks))
    max_parts = 1 + -(-kv_tiles // full_share)
    share = jnp.maximum(jnp.maximum(-(-offsets[-1] // blocks), -(-steps.max() // (max_parts - 1))), 1)
    start = jnp.arange(blocks, dtype=jnp.int32)[:, None] * share
    first = (offsets[1:] <= start).sum(1)
    end = jnp.maximum(first, (offsets[:-1] < start + share).sum(1))
    ranges = jnp.stack([first, end, jnp.broadcast_to(share, first.shape)], -1).astype(jnp.int32)
    parts = jnp.where(steps > 0, (offsets[1:] - 1) // share - offsets[:-1] // share + 1, 0)
    return Shares(max_parts, offsets, ranges, parts.reshape(batch, kv_heads, tiles))
