"""The definition of attention that every implementation is held to: dense, float32, nothing clever."""

import jax
import jax.numpy as jnp

from pallas_kernels.rotary import rotate


def attention(q, k, v, *, first, last, index, rotary=None):
    """softmax(q k^T / sqrt(H)) v over the visible slots, in float32; zero where a query sees nothing.

    Args:
        q: [B, T, N, H] queries, rotated.
        k, v: [B, K, S, H] keys and values, head-major; query head n looks at kv head n // (N / K).
        first, last: [B, T] int32. A query sees the slots whose index is in first..last; first None: from 0 on.
        index: [B, S] int32, -1 for a slot that holds nothing.
        rotary: (cos, sin) [B, S, H/2], by which unrotated keys are to be rotated.
    """
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    batch, length, heads, width = q.shape
    grouped = q.reshape(batch, length, k.shape[1], -1, width)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, precision="highest") * width**-0.5
    slot = index[:, None, :]
    visible = (slot >= 0) & (slot <= last[..., None]) & (True if first is None else first[..., None] <= slot)
    visible = visible[:, None, None]
    weights = jnp.where(visible, jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1), 0.0)
    return jnp.einsum("bkgts,bksh->btkgh", weights, v, precision="highest").reshape(batch, length, heads, width)
