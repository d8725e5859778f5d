"""What the kernels share: queries folded onto their kv head, which tiles of slots a tile of rows looks at, the merge of splits.

Axes: B batch, T tokens, N query heads, K kv heads, G = N/K, R rows = T * G, S slots, H head dim, J splits.
"""

import jax.numpy as jnp

UNSEEN = 2**31 - 1  # index of an empty slot inside a kernel: after all that anybody sees
NOTHING = -1e30  # score of what is not visible; finite, so that differences of two are
FLOOR = -1e20  # where the running maximum of a row begins: far above NOTHING, whose weight is then 0 and never 1 or more


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def fold(q, kv_heads: int, multiple: int, limits):
    """q [B, T, N, H] -> rows [B, K, R, H], row t * G + g, R rounded up; each of `limits` [B, T] (or None) -> [B, R], so that
    the rows added see nothing."""
    batch, length, heads, width = q.shape
    group = heads // kv_heads
    more = round_up(length * group, multiple) - length * group
    rows = q.reshape(batch, length, kv_heads, group, width).transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, width)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, more), (0, 0)))
    wide = [None if x is None else jnp.pad(jnp.repeat(x, group, 1), ((0, 0), (0, more)), constant_values=-1) for x in limits]
    return rows, wide


def unfold(rows, shape):
    """Rows [B, K, R, H] -> [B, T, N, H] of that shape."""
    batch, length, heads, width = shape
    group = heads // rows.shape[1]
    rows = rows[:, :, : length * group].reshape(batch, rows.shape[1], length, group, width)
    return rows.transpose(0, 2, 1, 3, 4).reshape(shape)


def ranges(first, last, index, rows: int, slots: int):
    """Tiles of `slots` slots that a tile of `rows` rows has to look at: [B, R / rows, 2] int32, from and up to (not with).

    Args:
        first, last: [B, R]; first None: from the beginning.
        index: [B, S], UNSEEN where a slot is empty.
    """
    tiles = index.reshape(index.shape[0], -1, slots)
    least, most = tiles.min(-1), jnp.where(tiles == UNSEEN, -1, tiles).max(-1)
    limit = last.reshape(last.shape[0], -1, rows).max(-1)
    needed = least[:, None] <= limit[..., None]
    if first is not None:
        # Rows that see nothing (last < first) have no say.
        begin = jnp.where(first <= last, first, UNSEEN).reshape(first.shape[0], -1, rows).min(-1)
        needed &= most[:, None] >= begin[..., None]
    number = jnp.arange(tiles.shape[1])
    low = jnp.where(needed, number, tiles.shape[1]).min(-1)
    high = jnp.where(needed, number + 1, 0).max(-1)
    return jnp.stack([jnp.minimum(low, high), high], -1).astype(jnp.int32)


def merge(out, mass):
    """Results [J, B, K, R, H] of splits, each normalised, and log2 of their divisors [J, B, K, R] -> [B, K, R, H]."""
    peak = mass.max(0)
    weights = jnp.where(mass > FLOOR, jnp.exp2(mass - peak), 0.0)
    total = weights.sum(0)
    mixed = (out.astype(jnp.float32) * weights[..., None]).sum(0)
    return (mixed / jnp.where(total > 0, total, 1.0)[..., None]).astype(out.dtype)
