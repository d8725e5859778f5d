"""Attention by cuDNN, through jax. It knows prefixes and causal attention but no ring buffer: anything else needs an attention
mask, an additive bias of [B, 1, T, S], which costs little for a decode step and much for a chunk. Complete causal sequences
need none, and have cuDNN's own backward pass.

Axes: B batch, T tokens, N query heads, S slots, H head dim.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.rotary import rotate


def attention(q, k, v, *, first, last, index, rotary=None, causal: bool = False):
    """Attention as `reference.attention` defines it; `causal`: a promise that slot t holds token t and that token
    t attends to slots 0..t.

    Raises:
        NotImplementedError: a dtype or head dim that cuDNN does not take.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        raise NotImplementedError(f"cudnn: got {q.dtype} and head dim {q.shape[-1]}; takes 16 bits, multiples of 8 to 256")
    if rotary is not None:
        k = rotate(k, rotary, head_axis=1)
    k, v = (x.swapaxes(1, 2) for x in (k, v))
    slot_index = index[:, None, :]
    if causal:
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        is_visible = last >= (0 if first is None else first)  # any slot at all: padding attends to none
        out = jnp.where(is_visible[..., None, None], out, 0)
        # cuDNN would answer a broken promise with plausible numbers.
        return jnp.where(is_causal_layout(last, index)[:, None, None, None], out, jnp.nan)
    visible = (slot_index >= 0) & (slot_index <= last[..., None]) & (True if first is None else first[..., None] <= slot_index)
    # The mask is finite: a row of -inf would be NaN. Such rows are zeroed below.
    bias = jnp.where(visible, 0.0, -1e9).astype(q.dtype)[:, None]
    out = jax.nn.dot_product_attention(q, k, v, bias=bias, implementation="cudnn")
    return jnp.where(jnp.any(visible, -1)[..., None, None], out, 0)


def is_causal_layout(last, index):
    """Whether the promise of `causal` holds, for each sequence: [B] bool."""
    position = jnp.arange(index.shape[1])
    is_token = index >= 0
    padded_right = jnp.all(is_token[:, :-1] >= is_token[:, 1:], axis=1)
    in_order = jnp.all(jnp.where(is_token, index, position) == position, axis=1)
    return padded_right & in_order & jnp.all(last == index, axis=1)
