"""Attention in plain XLA: it runs where no kernel does, gives the kernels their gradient, and is the baseline of benchmarks.

Scores are materialised, a bounded block at a time; the rest is `reference.attention`. On a CPU a chunk of queries goes over
the cache in tiles of slots, from the first to the last that it can see: slots that are not used cost nothing, and the scores of
a tile stay in the caches of the CPU.

Axes: B batch, T queries, S slots, N query heads, K kv heads, G = N/K, H head dim.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import platform
from pallas_kernels.rotary import Rotary, rotate

# Largest float32 score block that is materialised, in elements: bounds memory for long prompts and big frames (256 MB), and on
# a CPU keeps a block in its caches (8 MB: half the time).
SCORE_BUDGET = 1 << 26
CPU_SCORE_BUDGET = 1 << 21
QUERY_BLOCK = 512
# A causal sequence is cut into at most so many chunks of at least so many queries; a chunk reads no slot after its last query.
MAX_CAUSAL_CHUNKS, MIN_CAUSAL_CHUNK = 16, 128
# Slots of a tile on a CPU: all used, 128 to 512 take as long on one thread, on two 128 takes 8 % longer; if few are used
# 128 is fastest. Fewer query rows a kv head than CPU_TILE_ROWS (a decode step) do not pay for the copy of a tile.
CPU_TILE, CPU_TILE_ROWS = 128, 64


def attention(q, k, v, *, first, last, index, rotary: Rotary | None = None, span: int | None = None, causal: bool = False):
    """Attention as `reference.attention` defines it, softmax in float32, the result in the dtype of q.

    Args:
        span: a static promise that S = T, that slot s has index s (or -1), and that no range is longer than `span`; then a
            block attends to its neighbours only.
        causal: a static promise that S = T, that slot s has index s (or -1), and that no token attends to a later one: half the
            work.
    """
    last, index = jnp.asarray(last), jnp.asarray(index)
    first = jnp.zeros_like(last) if first is None else jnp.asarray(first)
    slots, rows = k.shape[2], q.shape[1] * q.shape[2] // k.shape[1]
    if _on_cpu() and not causal and span is None and slots > CPU_TILE and rows >= CPU_TILE_ROWS:
        return _by_tiles(q, k, v, first, last, index, rotary)
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    if span is not None and 3 * span < slots:
        return _local(q, k, v, first, last, index, span)
    return _by_queries(q, k, v, first, last, index, causal)


def _by_queries(q, k, v, first, last, index, causal: bool):
    """All slots for a block of queries at a time; the causal ones of a chunk of queries for its blocks."""
    batch, length, heads, _ = q.shape
    slots = k.shape[2]
    # Above the budget the backward pass computes the scores again: keeping them would need as much memory as one block of them.
    attend = _attend if batch * heads * length * slots <= SCORE_BUDGET else jax.checkpoint(_attend)
    chunks = max(1, min(MAX_CAUSAL_CHUNKS, length // MIN_CAUSAL_CHUNK)) if causal else 1
    size = -(-length // chunks)
    outs = []
    for start in range(0, length, size):
        queries, past = slice(start, start + size), slice(start + size if chunks > 1 else None)
        limits = first[:, queries], last[:, queries]
        outs.append(_blocked(attend, q[:, queries], k[:, :, past], v[:, :, past], *limits, index[:, past]))
    return jnp.concatenate(outs, axis=1) if len(outs) > 1 else outs[0]


def _blocked(attend, q, k, v, first, last, index):
    """`attend`; if the scores do not fit the budget, a block of queries at a time, whose scores are computed again for the
    gradient."""
    batch, length, heads, _ = q.shape
    if batch * heads * length * k.shape[2] <= _score_budget():
        return attend(q, k, v, first, last, index)
    again = jax.checkpoint(lambda q, first, last: _attend(q, k, v, first, last, index))
    return _over_query_blocks(again, q, first, last, k.shape[2])


def _over_query_blocks(attend, q, first, last, slots: int):
    """`attend` on blocks of queries whose scores over so many slots fit the budget."""
    batch, length, heads, _ = q.shape
    block = max(16, min(QUERY_BLOCK, _score_budget() // (batch * heads * slots)) // 16 * 16)
    blocks = -(-length // block)
    block = -(-length // (16 * blocks)) * 16  # as many blocks of equal size: the last one would be mostly padding otherwise
    queries = tuple(_blocks(x, block, fill) for x, fill in ((q, 0), (first, 1), (last, 0)))
    return _unblock(jax.lax.map(lambda x: attend(*x), queries), length)


def _on_cpu() -> bool:
    return platform() == "cpu"


def _score_budget() -> int:
    return min(SCORE_BUDGET, CPU_SCORE_BUDGET) if _on_cpu() else SCORE_BUDGET


@jax.custom_vjp
def _by_tiles(q, k, v, first, last, index, rotary: Rotary | None):
    """Tiles of slots, one after the other, with a running softmax; keys are rotated a tile at a time."""
    batch, length, heads, _ = q.shape
    attend = partial(_attend_by_tiles, k=k, v=v, index=index, rotary=rotary)
    if batch * heads * length * CPU_TILE <= _score_budget():
        return attend(q, first, last)
    return _over_query_blocks(attend, q, first, last, CPU_TILE)


def _by_tiles_forward(*operands):
    return _by_tiles(*operands), operands


def _by_tiles_backward(operands, upstream):
    # The loop over tiles has no static length, so no gradient: it is that of the same attention without tiles.
    *qkv, first, last, index, rotary = operands

    def attend(q, k, v):
        return _by_queries(q, k if rotary is None else rotate(k, rotary, head_axis=1), v, first, last, index, causal=False)

    return (*jax.vjp(attend, *qkv)[1](upstream), None, None, None, None)


_by_tiles.defvjp(_by_tiles_forward, _by_tiles_backward)


def _attend_by_tiles(q, first, last, k, v, index, rotary: Rotary | None):
    batch, length, heads, width = q.shape
    kv_heads, slots = k.shape[1:3]
    groups = heads // kv_heads
    rows = _rows(q, kv_heads)
    start, stop = _visible_tiles(first, last, index)

    def step(number, state):
        m, l, out = state
        # The last tile starts early enough to be a whole one; what it shares with the tile before is not counted twice.
        tile_start = jnp.minimum(number * CPU_TILE, slots - CPU_TILE)
        tile = partial(jax.lax.dynamic_slice_in_dim, start_index=tile_start, slice_size=CPU_TILE)
        keys, values = tile(k, axis=2), tile(v, axis=2)
        if rotary is not None:
            keys = rotate(keys, Rotary(*(tile(part, axis=1) for part in rotary)), head_axis=1)
        tile_index = jnp.where(tile_start + jnp.arange(CPU_TILE) >= number * CPU_TILE, tile(index, axis=1), -1)
        scores = _scores(rows, keys, first, last, tile_index)
        new_m = jnp.maximum(m, jnp.max(scores, axis=-1, keepdims=True))
        finite_m = jnp.where(jnp.isfinite(new_m), new_m, 0.0)  # of queries that have seen nothing yet: no -inf minus -inf
        weights, rescale = jnp.exp(scores - finite_m), jnp.exp(m - finite_m)
        l = l * rescale + jnp.sum(weights, axis=-1, keepdims=True)
        return new_m, l, out * rescale + _weighted(weights, values)

    zero = jnp.zeros((batch, kv_heads, groups, length, 1), jnp.float32)
    state = (zero - jnp.inf, zero, jnp.broadcast_to(zero, (*zero.shape[:-1], width)))
    _, l, out = jax.lax.fori_loop(start, stop, step, state)
    return _normalised(out, l, q)


def _visible_tiles(first, last, index) -> tuple[jax.Array, jax.Array]:
    """The first tile with a slot that some query can see, and the tile after the last one."""
    visible = (index >= 0) & (index >= jnp.min(first, axis=1)[:, None]) & (index <= jnp.max(last, axis=1)[:, None])
    tiles = jnp.arange(index.shape[1]) // CPU_TILE
    return jnp.min(jnp.where(visible, tiles, tiles[-1] + 1)), jnp.max(jnp.where(visible, tiles, -1)) + 1


def _attend(q, k, v, first, last, index):
    scores = _scores(_rows(q, k.shape[1]), k, first, last, index)
    # The softmax by hand: a query that attends to nothing has m = -inf and l = 0, and gives zeros and no NaN gradient.
    m = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(m), m, 0.0))
    return _normalised(_weighted(weights, v), jnp.sum(weights, axis=-1, keepdims=True), q)


def _rows(q, kv_heads: int):
    """[B, T, N, H] -> [B, K, G*T, H]: queries of one kv head as the rows of one matrix, so that the products are plain batched
    ones, for which XLA does not transpose the cache."""
    batch, length, heads, width = q.shape
    rows = q.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    return rows.reshape(batch, kv_heads, -1, width)


def _scores(rows, k, first, last, index):
    """Scores [B, K, G, T, S] in float32, -inf where a query does not see a slot."""
    # float32 inputs mean float32 products (no TF32, no bfloat16 passes); bfloat16 accumulates in float32.
    dot = partial(jnp.einsum, precision=_precision(rows), preferred_element_type=jnp.float32)
    batch, kv_heads, _, width = rows.shape
    length = last.shape[1]
    # On a CPU the few queries of a decode step come second: four fifths of the time.
    keys_first = length == 1 and _on_cpu()
    scores = dot("bksh,bkmh->bksm", k, rows).swapaxes(2, 3) if keys_first else dot("bkmh,bksh->bkms", rows, k)
    scores = (scores * width**-0.5).reshape(batch, kv_heads, -1, length, k.shape[2])
    slot_index = index[:, None, :]
    visible = (first[:, :, None] <= slot_index) & (slot_index <= last[:, :, None]) & (slot_index >= 0)
    return jnp.where(visible[:, None, None], scores, -jnp.inf)


def _weighted(weights, v):
    """Sums [B, K, G, T, H] of values by the weights [B, K, G, T, S] of the softmax."""
    batch, kv_heads, groups, length, slots = weights.shape
    rows = weights.reshape(batch, kv_heads, groups * length, slots).astype(v.dtype)
    out = jnp.einsum("bkms,bksh->bkmh", rows, v, precision=_precision(v), preferred_element_type=jnp.float32)
    return out.reshape(batch, kv_heads, groups, length, -1)


def _normalised(out, l, q):
    """[B, K, G, T, H] over the sum of the weights, in the shape and dtype of q; zeros where a query sees nothing."""
    return (out / jnp.where(l > 0, l, 1.0)).transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _precision(x) -> str | None:
    return "highest" if x.dtype == jnp.float32 else None


def _local(q, k, v, first, last, index, span):
    """Blocks of `span` queries against their own and the two neighbouring blocks of slots."""
    batch, length, heads, _ = q.shape
    queries = tuple(_blocks(x, span, fill) for x, fill in ((q, 0), (first, 1), (last, 0)))
    keys, values = (_neighbours(_blocks(x.swapaxes(1, 2), span, 0)).swapaxes(2, 3) for x in (k, v))
    slots = _neighbours(_blocks(index, span, -1), fill=-1)
    batch_size = max(1, _score_budget() // (3 * batch * heads * span * span))
    attend = jax.checkpoint(lambda x: _attend(x[0], x[3], x[4], x[1], x[2], x[5]))
    out = jax.lax.map(attend, (*queries, keys, values, slots), batch_size=batch_size)
    return _unblock(out, length)


def _blocks(x: jax.Array, size: int, fill: int) -> jax.Array:
    """[B, T, ...] -> [ceil(T/size), B, size, ...], padded with `fill`."""
    count = -(-x.shape[1] // size)
    padding = [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, constant_values=fill)
    return x.reshape(x.shape[0], count, size, *x.shape[2:]).swapaxes(0, 1)


def _neighbours(blocks: jax.Array, fill: int = 0) -> jax.Array:
    """[n, B, size, ...] -> [n, B, 3*size, ...]: each block between the one before and the one after."""
    edge = jnp.full_like(blocks[:1], fill)
    return jnp.concatenate([jnp.concatenate([edge, blocks[:-1]]), blocks, jnp.concatenate([blocks[1:], edge])], axis=2)


def _unblock(blocks: jax.Array, length: int) -> jax.Array:
    out = blocks.swapaxes(0, 1)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]
