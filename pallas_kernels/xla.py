"""Attention in plain XLA: it runs where no kernel does, gives the kernels their gradient, and is the baseline of benchmarks.

Scores are materialised, a bounded block at a time; the rest is `reference.attention`.

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


def attention(q, k, v, *, first, last, index, rotary: Rotary | None = None, span: int | None = None, causal: bool = False):
    """Attention as `reference.attention` defines it, softmax in float32, the result in the dtype of q.

    Args:
        span: a static promise that S = T, that slot s has index s (or -1), and that no range is longer than `span`; then a
            block attends to its neighbours only.
        causal: a static promise that S = T, that slot s has index s (or -1), and that no token attends to a later one: half the
            work.
    """
    batch, length, heads, _ = q.shape
    slots = k.shape[2]
    last, index = jnp.asarray(last), jnp.asarray(index)
    first = jnp.zeros_like(last) if first is None else jnp.asarray(first)
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    if span is not None and 3 * span < slots:
        return _local(q, k, v, first, last, index, span)
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
    slots, budget = k.shape[2], _score_budget()
    if batch * heads * length * slots <= budget:
        return attend(q, k, v, first, last, index)
    block = max(16, min(QUERY_BLOCK, budget // (batch * heads * slots)) // 16 * 16)
    blocks = -(-length // block)
    block = -(-length // (16 * blocks)) * 16  # as many blocks of equal size: the last one would be mostly padding otherwise
    queries = tuple(_blocks(x, block, fill) for x, fill in ((q, 0), (first, 1), (last, 0)))
    out = jax.lax.map(jax.checkpoint(lambda x: _attend(x[0], k, v, x[1], x[2], index)), queries)
    return _unblock(out, length)


def _score_budget() -> int:
    return min(SCORE_BUDGET, CPU_SCORE_BUDGET) if platform() == "cpu" else SCORE_BUDGET


def _attend(q, k, v, first, last, index):
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    groups = heads // kv_heads
    # float32 inputs mean float32 products (no TF32, no bfloat16 passes); bfloat16 accumulates in float32.
    dot = partial(jnp.einsum, precision="highest" if q.dtype == jnp.float32 else None)
    # Queries of one kv head as the rows of one matrix: plain batched products, for which XLA does not transpose the cache.
    q_rows = q.reshape(batch, length, kv_heads, groups, width).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, width)
    scores = dot("bkmh,bksh->bkms", q_rows, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = scores.reshape(batch, kv_heads, groups, length, -1)
    slot_index = index[:, None, :]
    visible = ((first[:, :, None] <= slot_index) & (slot_index <= last[:, :, None]) & (slot_index >= 0))[:, None, None]
    scores = jnp.where(visible, scores, -jnp.inf)
    # The softmax by hand: a query that attends to nothing has m = -inf and l = 0, and gives zeros and no NaN gradient.
    m = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(m), m, 0.0))
    l = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.reshape(batch, kv_heads, groups * length, -1).astype(v.dtype)
    out = dot("bkms,bksh->bkmh", weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, kv_heads, groups, length, width) / jnp.where(l > 0, l, 1.0)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


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
