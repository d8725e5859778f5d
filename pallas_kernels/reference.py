"""The definition of attention that every implementation is compared with: dense, float32, nothing clever."""

import jax
import jax.numpy as jnp

from pallas_kernels.rotary import rotate


def attention(q, k, v, *, first, last, index, rotary=None):
    """softmax(q k^T / sqrt(H)) v over the visible slots, in float32; zero where a query attends to nothing.

    Args:
        q: [B, T, N, H] queries, rotated.
        k, v: [B, K, S, H] keys and values, head-major; query head n attends to kv head n // (N / K).
        first, last: [B, T] int32. A query attends to the slots whose index is in first..last; first None: from 0 on.
        index: [B, S] int32, -1 for an empty slot.
        rotary: (cos, sin) [B, S, H/2], by which unrotated keys are to be rotated.
    """
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[1], -1, width)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, precision="highest") * width**-0.5
    slot_index = index[:, None, :]
    visible = (slot_index >= 0) & (slot_index <= last[..., None]) & (True if first is None else first[..., None] <= slot_index)
    visible = visible[:, None, None]
    weights = jnp.where(visible, jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1), 0.0)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v, precision="highest").reshape(batch, length, heads, width)
