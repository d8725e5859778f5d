"""What the kernels share: queries folded onto their kv head, the tiles of slots that a tile of queries attends to, the merge
of splits.

Axes: B batch, T tokens, N query heads, K kv heads, G = N/K, R query rows = T * G, S slots, H head dim, J splits.
"""

import jax.numpy as jnp
from jax import Array

EMPTY_SLOT_INDEX = 2**31 - 1  # index of an empty slot inside a kernel: larger than any query's last, so one comparison does
MASK_VALUE = -1e30  # score of a slot that is not visible; finite, because -inf - -inf is NaN
# Where the running maximum of a row starts: far above MASK_VALUE, so that the weight of a masked score underflows to 0. Started
# at MASK_VALUE, a row that attends to nothing would weigh each slot exp(0) = 1.
RUNNING_MAX_INIT = -1e20


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def fold(q, kv_heads: int, multiple: int, limits):
    """q [B, T, N, H] -> query rows [B, K, R, H], row t * G + g, R rounded up to `multiple`; each of `limits` (first, last:
    [B, T] or None) -> [B, R], -1 in padding, which attends to nothing."""
    # Grouped-query attention: the G query heads of a kv head attend to the same keys; as rows of one tile they read them once.
    batch, length, heads, width = q.shape
    group = heads // kv_heads
    padding = round_up(length * group, multiple) - length * group
    q = q.reshape(batch, length, kv_heads, group, width).transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, width)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))

    def by_row(limit):
        return jnp.pad(jnp.repeat(limit, group, axis=1), ((0, 0), (0, padding)), constant_values=-1)

    return q, [None if limit is None else by_row(limit) for limit in limits]


def unfold(q_rows, shape):
    """The inverse of `fold`: [B, K, R, H or more] -> [B, T, N, H] of that shape."""
    batch, length, heads, width = shape
    group = heads // q_rows.shape[1]
    q_rows = q_rows[:, :, : length * group, :width].reshape(batch, q_rows.shape[1], length, group, width)
    return q_rows.transpose(0, 2, 1, 3, 4).reshape(shape)


def kernel_operands(q, k, v, first, last, index, q_tile: int, kv_tile: int, columns: int = 1) -> dict[str, Array]:
    """What a kernel is given for q [B, T, N, H] over k, v [B, K, S, H], by name: q as query rows; k, v and index padded to
    whole tiles of slots; last; first, unless it is None; bounds (`tile_bounds`). H is padded to a multiple of `columns`."""
    padding, width_padding = -k.shape[2] % kv_tile, -q.shape[-1] % columns
    if width_padding:  # zeros: the scores stay the same, and `unfold` drops these columns of the result
        q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, width_padding)))
    if padding or width_padding:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, width_padding))) for x in (k, v))
    q_rows, (first, last) = fold(q, k.shape[1], q_tile, (first, last))
    index = jnp.pad(index, ((0, 0), (0, padding)), constant_values=-1)
    index = jnp.where(index < 0, EMPTY_SLOT_INDEX, index)
    bounds = tile_bounds(first, last, index, q_tile, kv_tile)
    operands = {"bounds": bounds, "q": q_rows, "k": k, "v": v, "index": index, "last": last}
    return operands if first is None else operands | {"first": first}


def tile_bounds(first, last, index, q_tile: int, kv_tile: int):
    """The tiles of `kv_tile` slots that each tile of `q_tile` query rows attends to: [B, R / q_tile, 2] int32, from and up to
    (exclusive).

    Args:
        first, last: [B, R]; first None: from the beginning.
        index: [B, S], EMPTY_SLOT_INDEX where a slot is empty.
    """
    # Slots are in any order, so tiles in the middle may be needless: they are masked, not skipped. One range a tile of rows is
    # what a pipeline can prefetch.
    tiles = index.reshape(index.shape[0], -1, kv_tile)
    min_index, max_index = tiles.min(-1), jnp.where(tiles == EMPTY_SLOT_INDEX, -1, tiles).max(-1)
    row_last = last.reshape(last.shape[0], -1, q_tile).max(-1)
    needed = min_index[:, None] <= row_last[..., None]
    if first is not None:
        # A row that attends to nothing must not widen the range: last < first, or -1 for both in the padding of `fold`.
        attends = (first <= last) & (last >= 0)
        row_first = jnp.where(attends, first, EMPTY_SLOT_INDEX).reshape(first.shape[0], -1, q_tile).min(-1)
        needed &= max_index[:, None] >= row_first[..., None]
    number = jnp.arange(tiles.shape[1])
    low = jnp.where(needed, number, tiles.shape[1]).min(-1)
    high = jnp.where(needed, number + 1, 0).max(-1)
    return jnp.stack([jnp.minimum(low, high), high], -1).astype(jnp.int32)


def whole_tiles(first, last, index, q_tile: int, kv_tile: int):
    """Which tiles of slots every row of a query tile sees whole, so that they need no mask: [B, R / q_tile, S / kv_tile + 1]
    int32, 1 or 0; the last is 0, for a loop that reads one ahead.

    Args: as of `tile_bounds`.
    """
    tiles = index.reshape(index.shape[0], -1, kv_tile)
    min_index, max_index = tiles.min(-1), tiles.max(-1)  # an empty slot makes the latter EMPTY_SLOT_INDEX
    row_last = last.reshape(last.shape[0], -1, q_tile).min(-1)
    unmasked = max_index[:, None] <= row_last[..., None]
    if first is not None:
        unmasked &= min_index[:, None] >= first.reshape(first.shape[0], -1, q_tile).max(-1)[..., None]
    return jnp.pad(unmasked.astype(jnp.int32), ((0, 0), (0, 0), (0, 1)))


def filled_tiles(index, tile: int):
    """The tiles of `tile` slots that hold anything: [B, 2] int32, from and up to (exclusive). index: [B, S], -1 where a slot is
    empty."""
    padded = jnp.pad(index, ((0, 0), (0, -index.shape[1] % tile)), constant_values=-1)
    filled = (padded >= 0).reshape(len(index), -1, tile).any(-1)
    number = jnp.arange(filled.shape[1])
    high = jnp.where(filled, number + 1, 0).max(-1)
    low = jnp.where(filled, number, filled.shape[1]).min(-1)
    return jnp.stack([jnp.minimum(low, high), high], -1).astype(jnp.int32)


def merge_splits(out, lse):
    """Attention over all slots [B, K, R, H] from normalised results over parts of them [J, B, K, R, H], and the base-2
    log-sum-exp of the scores of each part [J, B, K, R]."""
    m = lse.max(0)
    weights = jnp.where(lse > RUNNING_MAX_INIT, jnp.exp2(lse - m), 0.0)  # a part without a visible slot weighs 0
    l = weights.sum(0)
    mixed = (out.astype(jnp.float32) * weights[..., None]).sum(0)
    return (mixed / jnp.where(l > 0, l, 1.0)[..., None]).astype(out.dtype)
