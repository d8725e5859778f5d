"""The rotation of rotary embeddings (RoPE), the first half of a head against the second; the model computes the angles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotary(NamedTuple):
    """Cosine and sine of the angles, float32 [B, T, H/2]; the two halves of a head share them."""

    cos: jax.Array
    sin: jax.Array


def rotate(x: jax.Array, rotary: Rotary, head_axis: int) -> jax.Array:
    """Rotate heads: x [B, T, N, H] with head_axis 2, or [B, N, T, H] with head_axis 1. Float32 inside, x's dtype outside."""
    cos, sin = (jnp.expand_dims(part, head_axis) for part in rotary)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)
