"""Attention by cuDNN, through jax. It knows prefixes and causality but no ring buffer: anything else is told by an additive
bias of [B, 1, T, S], which costs little for a decode step and much for a chunk. Whole causal sequences need none, and have
cuDNN's own backward pass.

Axes: B batch, T tokens, N query heads, S slots, H head dim.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.rotary import rotate


def attention(q, k, v, *, first, last, index, rotary=None, causal: bool = False):
    """Attention as `reference.attention` defines it; `causal`: a promise that slot t holds token t and is seen from t on.

    Raises:
        NotImplementedError: a dtype or head dim that cuDNN does not take.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        raise NotImplementedError(f"cudnn: got {q.dtype} and head dim {q.shape[-1]}; takes 16 bits, multiples of 8 to 256")
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    k, v = (x.swapaxes(1, 2) for x in (k, v))
    slot = index[:, None, :]
    seen = last >= (0 if first is None else first)
    if causal:
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        out = jnp.where(seen[..., None, None], out, 0)
        return jnp.where(kept(last, index)[:, None, None, None], out, jnp.nan)
    visible = (slot >= 0) & (slot <= last[..., None]) & (True if first is None else first[..., None] <= slot)
    bias = jnp.where(visible, 0.0, -1e9).astype(q.dtype)[:, None]
    out = jax.nn.dot_product_attention(q, k, v, bias=bias, implementation="cudnn")
    return jnp.where(jnp.any(visible, -1)[..., None, None], out, 0)


def kept(last, index):
    """Whether the promise of `causal` holds, for each sequence: [B] bool."""
    place = jnp.arange(index.shape[1])
    real = index >= 0
    rightmost = jnp.all(real[:, :-1] >= real[:, 1:], axis=1)
    return rightmost & jnp.all(jnp.where(real, index, place) == place, axis=1) & jnp.all(last == index, axis=1)
